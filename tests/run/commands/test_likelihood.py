"""--mode likelihood from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_likelihood(cli: Callable, trained: Path, capsys):
    assert cli("likelihood", trained) == 0
    assert "bits/dim" in capsys.readouterr().out
    result = json.loads((trained / "likelihood.json").read_text())
    assert 0 < result["bits_per_dim"] < 20 and 0 < result["standard_error"] < 5
    assert result["num_images"] == 4 and result["nfe"] > 6 and result["seconds"] > 0
    assert (trained / "likelihood.png").exists()
    assert (
        cli("likelihood", trained, "--config.likelihood.batch_size=4", "--config.likelihood.num_images=1")
        == 0
    )
    assert json.loads((trained / "likelihood-2.json").read_text())["standard_error"] is None


@pytest.mark.slow
def test_likelihood_does_not_depend_on_the_batch_size(cli: Callable, trained: Path, capsys):
    tight = (
        "--config.likelihood.rtol=1e-6",
        "--config.likelihood.atol=1e-6",
        "--config.likelihood.num_images=3",
    )
    for batch_size in (1, 3):
        assert cli("likelihood", trained, *tight, f"--config.likelihood.batch_size={batch_size}") == 0
    one, three = (
        json.loads((trained / name).read_text()) for name in ("likelihood.json", "likelihood-2.json")
    )
    assert one["bits_per_dim"] == pytest.approx(three["bits_per_dim"], abs=1e-3)
