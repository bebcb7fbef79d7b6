"""--mode evaluate from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_evaluate_draws_samples_unless_a_file_of_these_settings_is_there(
    snapshot: Callable, cli: Callable, trained: Path, capsys
):
    assert cli("evaluate", trained) == 0
    assert {"eabm.npz", "eabm.png"} <= set(snapshot(trained / "samples"))
    assert cli("evaluate", trained) == 0
    assert not (trained / "samples/eabm-2.npz").exists()
    assert cli("evaluate", trained, "--config.sampling.num_samples=6") == 0
    assert cli("evaluate", trained, "--config.sampling.seed=1") == 0
    results = [json.loads((trained / f"evaluation{n}.json").read_text()) for n in ("", "-2", "-3", "-4")]
    assert [result["file"] for result in results] == ["eabm.npz", "eabm.npz", "eabm-2.npz", "eabm-3.npz"]
    assert results[0]["samples"] == results[1]["samples"]
    assert results[0]["real"]["frechet_distance"] == pytest.approx(0.293, abs=0.001)
    assert results[0]["samples"].keys() == results[0]["real"].keys()
