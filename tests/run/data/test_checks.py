from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def test_data_that_use_little_of_their_range_are_named(
    cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """By --mode train as by --mode data."""
    np.save(tmp_path / "constant.npy", np.full((20, 8, 8), 7, np.uint8))
    np.save(tmp_path / "dark.npy", np.random.default_rng(0).integers(0, 16, (20, 8, 8), np.uint8))
    np.save(tmp_path / "good.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8))
    for name, message in (
        ("constant", "all training samples have the one grey level 7 of 256"),
        ("dark", "training samples use nothing but the grey levels 0 to 15 of 256"),
        ("good", ""),
    ):
        for mode, few in (("data", []), ("train", ["--config.training.steps=1"])):
            path = f"--config.data.path={tmp_path / name}.npy"
            assert cli(mode, tmp_path / f"{name}-{mode}", path, *few) == 0
            warned = capsys.readouterr().err
            assert message in warned and ("grey level" in warned) == bool(message)
