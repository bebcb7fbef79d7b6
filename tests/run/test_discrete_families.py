"""NCSN, NCSNv2, DDPM and Improved DDPM from the command line, each with a tiny network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.build import build_sampler, build_sde
from score_diffusion.run.builders.scoring import build_dequantization
from score_diffusion.run.builders.training import build_times, build_trainer
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import load_config, read_config
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.inference.scoring import bound_held_out, score_held_out
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.main import main
from score_diffusion.sde_lib import (
    DDPM,
    GaussianMixture,
    geometric_levels,
    ncsnv2_levels,
    noisy_times,
    relative_step_size,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
RUN = {"training.steps": 3, "training.batch_size": 8, "training.checkpoint_every": 2}
UNET = {"model.channels": 8, "model.blocks_per_level": 1, "model.heads": 1}
REFINENET = {"model.channels": 4, "model.multipliers": "1,1", "model.dilations": "2"}
FAMILIES = {
    "ddpm": UNET | {"sde.N": 25},
    "improved_ddpm": UNET | {"sde.N": 12},
    "ncsn": REFINENET,
    "ncsnv2": REFINENET,
}
SAMPLING = {"num_samples": 2}
SAMPLER_OPTIONS = {
    "ddpm": {"steps": 6},
    "ddim": {"steps": 6},
    "ald": {"ald.n_steps_each": 2},
    "cas": {"steps": 120},
    "pc": {"steps": 6},
    "ode": {"ode.rtol": 0.01, "ode.atol": 0.01},
}
LIKELIHOOD = {"num_images": 3, "batch_size": 2, "rtol": 0.01, "atol": 0.01}


def keys(values: dict[str, object], section: str = "") -> list[str]:
    return [f"--config.{section}{key}={value}" for key, value in values.items()]


def train(name: str, workdir: Path, **training: object) -> int:
    arguments = keys(RUN | FAMILIES[name]) + keys(training, "training.")
    return main(["--mode", "train", "--config", name, "--workdir", str(workdir), *arguments])


def sample(workdir: Path, sampler: str, **sampling: object) -> int:
    arguments = keys(SAMPLING | sampling, "sampling.")
    return main(["--mode", "sample", "--workdir", str(workdir), "--sampler", sampler, *arguments])


def score(workdir: Path, **likelihood: object) -> int:
    arguments = keys(LIKELIHOOD | likelihood, "likelihood.")
    return main(["--mode", "likelihood", "--workdir", str(workdir), *arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        assert train(name, folder / name) == 0
    return {name: folder / name for name in FAMILIES}


@pytest.fixture
def trained(runs: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's finished run."""
    return lambda name: Path(shutil.copytree(runs[name], tmp_path / name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_sampled_by_every_sampler(name: str, trained: Callable, capsys):
    workdir = trained(name)
    nfe = {}
    for sampler, options in SAMPLER_OPTIONS.items():
        if sampler == "ald" and not name.startswith("ncsn"):
            options = options | {"steps": 30}  # noise levels; NCSN's are those of its chain
        assert sample(workdir, sampler, **options) == 0
        with np.load(workdir / f"samples/{sampler}.npz") as arrays:
            assert arrays["samples"].shape == (2, 1, 8, 8) and np.isfinite(arrays["samples"]).all()
            nfe[sampler] = int(arrays["nfe"])
    denoise = read_config(workdir).sampling.denoise
    leaves_noise = name.startswith("ncsn")  # the VE SDE ends at σ_min, where ddpm can denoise
    assert nfe["ddpm"] == 6 + (denoise and leaves_noise) and nfe["ddim"] == 6 + denoise
    levels = {"ddpm": 31, "improved_ddpm": 31, "ncsn": 10, "ncsnv2": 22}[name]
    assert nfe["ald"] == 2 * levels + denoise and nfe["cas"] == 120 + denoise


@pytest.mark.parametrize("name", ["ddpm", "improved_ddpm"])
def test_the_bound_stands_beside_the_likelihood_term_by_term(name: str, trained: Callable, capsys):
    workdir = trained(name)
    for method in ("ode", "bound", "both"):
        assert score(workdir, method=method) == 0
    output = capsys.readouterr().out
    assert all(row in output for row in ("bound, bits/dim", "L_T", "L_{t-1}", "L_0"))
    ode, bound, both = (json.loads((workdir / f"likelihood{n}.json").read_text()) for n in ("", "-2", "-3"))
    assert "bound" not in ode and "bits_per_dim" not in bound
    assert both["bound"] == bound["bound"] and both["bits_per_dim"] == ode["bits_per_dim"]
    total, terms = bound["bound"], bound["bound"]["terms"]
    assert total["bits_per_dim"] == pytest.approx(sum(term["bits_per_dim"] for term in terms.values()))
    N = FAMILIES[name]["sde.N"]
    assert total["nfe"] == N == len(total["steps"]) and total["standard_error"] > 0
    assert terms["L_0"]["bits_per_dim"] == pytest.approx(total["steps"][-1])
    assert terms["L_{t-1}"]["bits_per_dim"] == pytest.approx(sum(total["steps"][:-1]))
    assert (workdir / "likelihood-3.png").exists() and (workdir / "likelihood-3-bound.png").exists()
    assert score(workdir, method="bound", bound_terms=4, bound_draws=2) == 0
    drawn = json.loads((workdir / "likelihood-4.json").read_text())["bound"]
    assert drawn["nfe"] == 8 and "steps" not in drawn and set(drawn["terms"]) == {"L_T", "L_{t-1} + L_0"}


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_ve_has_a_likelihood_and_no_bound(name: str, trained: Callable, refused: Callable, capsys):
    workdir = trained(name)
    assert score(workdir) == 0
    for options in ({"method": "bound"}, {"method": "both"}, {"dequantization": "gaussian"}):
        assert "without noise at t = 0" in refused(score(workdir, **options))
    assert not (workdir / "likelihood-2.json").exists()


def test_points_have_a_bound_in_nats(tmp_path: Path, capsys):
    common = ["--config", "toy2d", "--workdir", str(tmp_path)]
    sizes = ["--config.training.steps=2", "--config.data.num_points=50", "--config.sde.N=30"]
    assert main(["--mode", "train", *common, *sizes]) == 0
    assert score(tmp_path, method="both") == 0
    result = json.loads((tmp_path / "likelihood.json").read_text())
    assert result["bound"]["negative_log_likelihood"] > 0 and "nats" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "times"), [("ddpm", "discrete"), ("improved_ddpm", "importance"), ("ncsnv2", "discrete")]
)
def test_a_resumed_run_has_the_same_bits(name: str, times: str, tmp_path: Path, capsys):
    """With importance sampling long enough that its probabilities are those of the losses."""
    options = {"times": times, "batch_size": 32, "checkpoint_every": 12}
    assert train(name, tmp_path / "straight", steps=18, **options) == 0
    straight = checkpoint.latest(tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/00000018")
    assert train(name, tmp_path / "resumed", steps=18, **options) == 0
    assert "at step 12" in capsys.readouterr().out
    resumed = checkpoint.latest(tmp_path / "resumed")
    for part in ("model", "ema", "times"):
        a, b = getattr(resumed, part), getattr(straight, part)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), part
    if times == "importance":
        assert (resumed.times["counts"] >= 10).all()
        assert resumed.times["counts"].sum() == 18 * 32


def test_importance_sampling_prefers_large_losses_and_its_loss_has_the_same_mean(capsys):
    config = load_config("improved_ddpm")
    config.update({"sde": {"N": 12}, "training": {"times": "importance"}})
    times = build_times(config.training, build_sde(config.sde))
    generator = torch.Generator().manual_seed(0)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return 1 + 30.0 * (t < 0.2)

    for _ in range(60):
        drawn = times.draw(16, generator)
        times.update(drawn, loss(drawn.t))
    drawn = times.draw(20000, generator)
    everywhere = noisy_times(build_sde(config.sde))
    assert (drawn.t < 0.2).double().mean() > 0.5 > (everywhere < 0.2).double().mean()
    assert (drawn.weights * loss(drawn.t)).mean() == pytest.approx(loss(everywhere).mean().item(), rel=0.02)


@pytest.mark.parametrize("times", ["discrete", "importance"])
@pytest.mark.parametrize("sde", ["ddpm", "vpsde", "vesde"])
def test_discrete_times_are_those_of_the_chain_with_noise(times: str, sde: str):
    config = load_config(sde)
    config.sde.N, config.training.times = 25, times
    sde = build_sde(config.sde)
    choice = build_times(config.training, sde)
    drawn = choice.draw(5000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.t.unique(), noisy_times(sde)) and (sde.sigma(drawn.t) > 0).all()
    assert torch.equal(drawn.t, noisy_times(sde)[drawn.k]) and choice.first == drawn.t.min()
    counts = drawn.k.bincount()
    assert (counts.double() / 5000 * len(counts) - 1).abs().max() < (0.01 if times == "discrete" else 0.3)


def test_bare_pixels_are_what_the_model_sees():
    config = load_config("ddpm")
    config.model.update(channels=8, blocks_per_level=1, heads=1)
    digits = load_digits()
    batches = build_trainer(config, digits, CPU).batches
    batch, indices = batches.read(batches.draw(0)), batches.order.indices(batches.order.positions(0))
    assert torch.equal(batch.x_0, digits.scaling.stored_to_model(digits.train[indices]))


def test_ncsnv2_resolves_its_levels_once(trained: Callable, tmp_path: Path, refused: Callable, capsys):
    workdir = trained("ncsnv2")
    section, digits = read_config(workdir).sde, load_digits()
    levels = ncsnv2_levels(digits.scaling.stored_to_model(digits.train), section.sigma_min)
    assert (section.sigma_max, section.N) == (levels[0].item(), len(levels))
    assert section.sigma_max == pytest.approx(9.63, abs=0.01) and section.N == 22
    assert torch.allclose(build_sde(section).sigma(noisy_times(build_sde(section)).flip(0)), levels)
    assert train("ncsnv2", workdir, steps=4) == 0  # goes on with "auto" in the configuration
    assert "resuming" in capsys.readouterr().out
    arguments = ["--mode", "train", "--config", "ncsnv2", "--workdir", str(workdir), *keys(RUN | REFINENET)]
    assert "sde.sigma_max is 9.6" in refused(main([*arguments, "--config.sde.sigma_max=12.5"]))
    arguments[5] = str(tmp_path / "new")
    assert main([*arguments, "--dry_run"]) == 0
    assert "sde.N = 22" in capsys.readouterr().out and not (tmp_path / "new").exists()


def test_the_step_size_by_technique_4_follows_the_steps(trained: Callable, capsys):
    config = read_config(trained("ncsnv2"))
    sde = build_sde(config.sde)
    gamma = (config.sde.sigma_max / config.sde.sigma_min) ** (1 / (config.sde.N - 1))
    for steps_each in (3, 5):
        config.sampling.ald.n_steps_each = steps_each
        sampler = build_sampler(config.sampling, sde)
        assert sampler.step_size == pytest.approx(relative_step_size(gamma, steps_each))


def test_ncsn_samples_at_its_own_levels_with_its_own_step_size():
    config = load_config("ncsn")
    sampler = build_sampler(config.sampling, build_sde(config.sde))
    levels = sampler.sde.sigma(sampler.times)
    assert torch.allclose(levels, geometric_levels(2.0, 0.02, 10))
    assert sampler.step_size == 2e-5 / 0.01**2 and sampler.n_steps_each == 100 and not sampler.denoise


class Lattice:
    """The exact score of independent pixels that are uniform on the grey levels, as a trained model."""

    def __init__(self, sde: DDPM, levels: int) -> None:
        pixels = 2 * torch.arange(levels).double()[:, None] / (levels - 1) - 1
        self.score = GaussianMixture(pixels, torch.zeros(levels)).score(sde)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.score(x.reshape(-1, 1), t.repeat_interleave(4)).reshape(x.shape)


@pytest.mark.parametrize("dequantization", ["uniform", "gaussian"])
def test_a_model_of_bare_pixels_scores_the_truth_with_gaussian_dequantization(dequantization: str):
    levels, config = 5, load_config("ddpm")
    sde = build_sde(config.sde)
    digits = torch.randint(levels, (24, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = Dataset("lattice", digits, digits, Scaling(levels=levels))
    first_time = build_times(config.training, sde).first
    trained = TrainedModel(Lattice(sde, levels), sde, DataInfo.of(data), 0, first_time)
    config.likelihood.dequantization = dequantization
    dequantize = build_dequantization(config.likelihood, trained)
    truth = math.log2(levels)
    ode = score_held_out(trained, digits, dequantize, batch_size=24, seed=0, divergence="exact")
    bound = bound_held_out(trained, digits, batch_size=24, seed=0, clip=(-1, 1), n_terms=50, n_draws=4)
    if dequantization == "gaussian":
        assert ode.mean == pytest.approx(truth, abs=0.01)
        assert bound.standard_error < 0.1 and abs(bound.mean - truth) < 4 * bound.standard_error
    else:
        assert ode.mean > truth + 10
