from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run import plots
from score_diffusion.run.builders.previews import _preview_conditions
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.training.previews import REAL_PICTURE, Preview
from score_diffusion.samplers import make_sampler
from score_diffusion.sde_lib import VPSDE, GaussianMixture

CPU = torch.device("cpu")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The samples that are drawn for pictures."""
    samples: list[np.ndarray] = []
    monkeypatch.setattr(plots, "save_samples", lambda path, x, *others: samples.append(x))
    return samples


def preview(count: int, batch_size: int) -> Preview:
    return Preview(make_sampler("eabm", VPSDE(), 15, denoise=True), (2,), Scaling(), count, batch_size)


def test_samples_are_the_same_in_batches_of_any_size(drawn: list[np.ndarray], tmp_path: Path):
    score, calls = GaussianMixture(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2])).score(VPSDE()), []

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return score(x, t)

    for batch_size in (10, 4):
        preview(10, batch_size).save(tmp_path / "a.png", counted, CPU, lambda: None)
    assert drawn[0].shape == (10, 2) and np.allclose(drawn[0], drawn[1], atol=1e-6)
    assert calls == [10] * 15 + [4] * 15 + [4] * 15 + [2] * 15


def test_polling_may_end_the_drawing(drawn: list[np.ndarray], tmp_path: Path):
    polls = []

    def poll() -> None:
        polls.append(None)
        if len(polls) == 3:
            raise InterruptedError

    score = GaussianMixture(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2])).score(VPSDE())
    with pytest.raises(InterruptedError):
        preview(10, 10).save(tmp_path / "a.png", score, CPU, poll)
    assert len(polls) == 3 and not drawn


@pytest.mark.parametrize(("trained", "level"), [(0.0, 0.0), (0.05, 0.05), (0.3, 0.1)])
def test_an_enlarging_network_previews_no_noise_that_it_was_not_trained_for(trained: float, level: float):
    keys = [
        ("model.upscale", "2"),
        ("training.conditional", "True"),
        ("training.augment_noise", str(trained)),
    ]
    config = apply_overrides(load_config("vpsde"), keys)
    assert _preview_conditions(config, load_digits(), 2).augmentation.level == level


def test_real_data_have_a_picture_to_compare_samples_with(finished_run: Path, tmp_path: Path):
    """As many held-out samples as a preview has, in the same form."""
    data = load_digits()
    images = data.scaling.stored_to_user(data.held_out[:8]).numpy()
    plots.save_samples(tmp_path / "expected.png", images, data.scaling.limits)
    assert (finished_run / REAL_PICTURE).read_bytes() == (tmp_path / "expected.png").read_bytes()
