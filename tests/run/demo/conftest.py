from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.config import load_config, save_config
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.python.run import Run
from score_diffusion.sde_lib import VPSDE, Gaussian

VARIANCE = 0.25


def exact_run(path: Path, shape: tuple[int, ...], levels: int | None) -> Run:
    """A run whose score is exact: data N(0, VARIANCE I)."""
    sde = VPSDE()
    score = Gaussian(torch.zeros(shape), torch.tensor(VARIANCE)).score(sde)
    data = DataInfo("own", shape, Scaling(levels), 100, 10)
    config = load_config("vpsde" if levels else "toy2d")
    save_config(config, path)
    return Run(config, lambda config: TrainedModel(score, sde, data, 7, 1e-5), path)


@pytest.fixture
def images(tmp_path: Path) -> Run:
    return exact_run(tmp_path, (1, 4, 4), 256)


@pytest.fixture
def points(tmp_path: Path) -> Run:
    return exact_run(tmp_path, (2,), None)


@pytest.fixture
def pixels() -> Callable[[dict], np.ndarray]:
    """The samples in a sheet as the page gets it, uint8 (n, H, W, 3)."""

    def read(message: dict) -> np.ndarray:
        file = base64.b64decode(message["png"].removeprefix("data:image/png;base64,"))
        sheet = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        h, w = message["height"], message["width"]
        places = [divmod(k, message["columns"]) for k in range(message["count"])]
        return np.stack([sheet[i * h : (i + 1) * h, j * w : (j + 1) * w] for i, j in places])

    return read
