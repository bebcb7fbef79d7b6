"""Post-hoc averages against the averages themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from score_diffusion.run.builders.inference import load_trained
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint, pack
from score_diffusion.run.checkpoints.directory import numbered, write_directory
from score_diffusion.run.config import read_config
from score_diffusion.run.training.averages import Average, Averages, named_weights, power, power_exponent
from score_diffusion.run.training.post_hoc_averages import (
    FILE,
    SUMMARY,
    combination_coefficients,
    inner_products,
    reconstruct,
    save_snapshot,
)

CPU = torch.device("cpu")
WIDTHS = (0.05, 0.1)


def test_inner_products_are_those_of_quadrature():
    rng = np.random.default_rng(0)
    for _ in range(20):
        (gamma_a, gamma_b), (t_a, t_b) = rng.uniform(0.5, 40, 2), rng.uniform(1, 100, 2)

        def product(tau: float, gamma_a=gamma_a, gamma_b=gamma_b, t_a=t_a, t_b=t_b) -> float:
            a = (gamma_a + 1) / t_a * (tau / t_a) ** gamma_a
            return a * (gamma_b + 1) / t_b * (tau / t_b) ** gamma_b

        expected = quad(product, 0, min(t_a, t_b), epsabs=0, epsrel=1e-12)[0]
        got = inner_products(*map(np.float64, (gamma_a, t_a, gamma_b, t_b)))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_combination_is_the_nearest_in_the_mean_square():
    """Against a least-squares fit of the profiles on a fine grid."""
    times = np.repeat(np.arange(1, 9) * 100.0, 2)
    gammas = np.tile([power_exponent(width) for width in WIDTHS], 8)
    gamma = power_exponent(0.075)
    tau = (np.arange(80000) + 0.5) / 100

    def profile(gamma: float, t: float) -> np.ndarray:
        return np.where(tau < t, (gamma + 1) / t * (tau / t) ** gamma, 0.0)

    wanted = profile(gamma, 800.0)
    profiles = np.stack([profile(g, t) for g, t in zip(gammas, times, strict=True)], 1)
    ours = profiles @ combination_coefficients(gammas, times, gamma, 800.0)
    fit = np.linalg.lstsq(profiles, wanted, rcond=None)[0]
    fitted = profiles @ (fit / fit.sum())
    assert np.linalg.norm(ours - wanted) == pytest.approx(np.linalg.norm(fitted - wanted), rel=0.01)
    assert np.linalg.norm(ours - wanted) < 0.02 * np.linalg.norm(wanted)
    exact = combination_coefficients(
        gammas, times, gammas[-1], 800.0
    )  # a profile that is there is taken as it is
    assert np.abs(exact - np.eye(16)[-1]).max() < 1e-6


@pytest.mark.parametrize("width", [0.02, 0.05, 0.07, 0.2, 0.25])
def test_weights_that_never_change_are_their_own_average(width: float, tmp_path: Path):
    """With few snapshots, too, and so are buffers."""
    model = nn.BatchNorm1d(5)
    model.register_buffer("frequencies", torch.linspace(0.5, 3, 4))
    averages = Averages(model, 0.999, sigma_rels=WIDTHS)
    for step in range(60):
        averages.update(model, torch.tensor(True))
        if (step + 1) % 20 == 0:
            save_snapshot(tmp_path, step + 1, averages)
    for name, value in reconstruct(tmp_path, saved(averages), WIDTHS, width).items():
        torch.testing.assert_close(value, model.state_dict()[name])


@pytest.fixture
def walk(tmp_path: Path) -> tuple[Averages, dict[float, Average]]:
    """Averages of weights that wander for 400 steps, with snapshots, and others tracked all the way."""
    torch.manual_seed(0)
    model = nn.Linear(20, 10)
    averages = Averages(model, 0.999, sigma_rels=WIDTHS)
    direct = {width: Average(model, power(width)) for width in (0.05, 0.075, 0.1, 0.13)}
    for step in range(400):
        with torch.no_grad():
            model.weight += 0.05 * torch.randn(10, 20)
        for average in direct.values():
            average.update(model, averages.updates, torch.tensor(1.0))
        averages.update(model, torch.tensor(True))
        if (step + 1) % 25 == 0:
            save_snapshot(tmp_path, step + 1, averages)
    return averages, direct


def saved(averages: Averages) -> Checkpoint:
    weights = averages.main.module.state_dict()
    return Checkpoint(400, weights, weights, {}, 0.0, 400, named_weights(averages.power))


def relative_error(weights: dict, average: Average) -> float:
    truth = average.module.weight
    return ((weights["weight"] - truth).norm() / (truth - truth.mean()).norm()).item()


def test_reconstructed_averages_are_those_tracked_all_the_way(walk: tuple, tmp_path: Path):
    averages, direct = walk
    for width, average in direct.items():
        error = relative_error(reconstruct(tmp_path, saved(averages), WIDTHS, width), average)
        assert error < (1e-5 if width in WIDTHS else 0.01), (width, error)
    assert relative_error(direct[0.1].module.state_dict(), direct[0.05]) > 0.1  # widths matter here


def test_a_damaged_snapshot_is_named_and_left_out(walk: tuple, tmp_path: Path, capsys):
    path = tmp_path / "snapshots/00000200/averages.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    averages, direct = walk
    weights = reconstruct(tmp_path, saved(averages), WIDTHS, 0.075)
    assert relative_error(weights, direct[0.075]) < 0.02
    assert "snapshots/00000200/averages.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tensors", "updates", "reason"),
    [
        ({"weight": torch.zeros(1)}, 200, r"power_0.05/weight has shape \(1,\) there and \(10, 20\) here"),
        ({"bias": torch.zeros(10)}, 200, "tensors are missing"),
        ({"weight": torch.full((10, 20), torch.nan)}, 200, "holds NaN"),
        ({}, -3, "updates must be an integer of at least 1, got -3"),
        ({}, "many", "got 'many'"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_left_out(tensors, updates, reason, walk, tmp_path: Path, capsys):
    """Its digests are those of its files, whoever wrote them: a shape of 1 would be broadcast."""
    averages, direct = walk
    state = averages.main.module.state_dict() | tensors
    missing = {"weight"} if "bias" in tensors else set()
    weights = {f"power_{w}/{k}": x.clone() for w in WIDTHS for k, x in state.items() if k not in missing}
    files = {FILE: pack(weights), SUMMARY: json.dumps({"updates": updates}).encode()}
    write_directory(tmp_path / "snapshots/00000200", files)
    found = reconstruct(tmp_path, saved(averages), WIDTHS, 0.075)
    assert relative_error(found, direct[0.075]) < 0.02
    message = capsys.readouterr().err
    assert re.search(reason, message) and "the snapshot is left out" in message


KEYS = (
    "--config.training.extra_ema_decays=0.3",
    "--config.training.ema_sigma_rels=0.05,0.1",
    "--config.training.snapshot_every=2",
)


@pytest.mark.slow
def test_sampling_chooses_among_the_averages(cli: Callable, tmp_path: Path, refused: Callable, capsys):
    workdir = tmp_path / "run"
    assert cli("train", workdir, *KEYS) == 0
    newest, config = checkpoint.latest(workdir), read_config(workdir)
    assert [path.name for path in numbered(workdir / "snapshots")] == [f"{step:08d}" for step in (2, 4, 6, 8)]

    def chosen(**keys: object) -> dict[str, torch.Tensor]:
        section = config.copy_and_resolve_references()
        section.sampling.update(keys)
        return load_trained(workdir, section, CPU).score.state_dict()

    def equal(a: dict, b: dict) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    assert equal(chosen(), newest.ema) and equal(chosen(ema=config.training.ema_decay), newest.ema)
    assert equal(chosen(ema=0.3), newest.average("ema_0.3")) and not equal(chosen(ema=0.3), newest.ema)
    tracked, made = newest.average("power_0.1"), chosen(ema_sigma_rel=0.1)
    assert all(torch.allclose(tracked[key], made[key], atol=1e-6) for key in tracked)
    assert cli("sample", workdir, "--config.sampling.ema_sigma_rel=0.07") == 0
    assert "σ_rel = 0.07" in capsys.readouterr().out
    assert "0.999, 0.3; got 0.9" in refused(cli("sample", workdir, "--config.sampling.ema=0.9"))
    both = ("--config.sampling.ema=0.3", "--config.sampling.ema_sigma_rel=0.1")
    assert "set one of" in refused(cli("sample", workdir, *both))
    assert "below 0.28" in refused(cli("sample", workdir, "--config.sampling.ema_sigma_rel=0.5"))


def test_averages_that_were_not_tracked_are_refused(cli: Callable, trained: Path, refused: Callable):
    sentence = refused(cli("sample", trained, "--config.sampling.ema_sigma_rel=0.1"))
    assert "ema_sigma_rels" in sentence


def test_the_best_checkpoint_can_be_sampled(cli: Callable, trained: Path, refused: Callable, capsys):
    best = checkpoint.best(trained)
    assert cli("sample", trained, "--config.sampling.checkpoint=best") == 0
    assert f"after {best.step} training steps" in capsys.readouterr().out
    assert "latest, best" in refused(cli("sample", trained, "--config.sampling.checkpoint=first"))
