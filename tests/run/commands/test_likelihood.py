"""--mode likelihood from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from score_diffusion.run.builders.scoring import STEPS
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.image_grids import image_grid


def assert_picture_is_of(path: Path, levels: Tensor, values: np.ndarray) -> None:
    """The picture has the images with the largest values on the left, with the smallest on the right."""
    order = torch.from_numpy(np.argsort(-values))
    half = len(order) // 2
    groups = {"least likely": order[:half], "most likely": order.flip(0)[:half]}
    scaling, pixels = load_digits().scaling, np.asarray(Image.open(path).convert("RGB"))
    grids = [
        np.asarray(image_grid(scaling.stored_to_user(levels[k]).numpy(), scaling.limits, [name] * half))
        for name, k in groups.items()
    ]
    left, right = grids
    assert np.array_equal(pixels[:, : left.shape[1]], left)
    assert np.array_equal(pixels[:, -right.shape[1] :], right) and not np.array_equal(left, right)


def test_likelihood(cli: Callable, trained: Path, capsys):
    assert cli("likelihood", trained) == 0
    assert "bits/dim" in capsys.readouterr().out
    result = json.loads((trained / "likelihood.json").read_text())
    assert 0 < result["bits_per_dim"] < 20 and 0 < result["standard_error"] < 5
    assert result["num_images"] == 4 and result["nfe"] > 6 and result["seconds"] > 0
    assert (trained / "likelihood.png").exists()
    each = np.load(trained / "likelihood.npz")
    assert each["ode"].shape == (4,) and each["ode_estimates"].shape == (4, 1, 1)
    assert each["ode"].mean() == pytest.approx(result["bits_per_dim"])
    assert_picture_is_of(trained / "likelihood-extremes.png", load_digits().test[:4], each["ode"])
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


def test_every_part_of_the_standard_error(cli: Callable, trained: Path, capsys: pytest.CaptureFixture[str]):
    """With repeated draws and probes each has its part, and nothing depends on the batch size."""
    options = ("n_draws=2", "n_probes=2", "divergence=hutch++", "solver=exponential_adams", "steps=8")
    arguments = [f"--config.likelihood.{option}" for option in options]
    for batch_size in (4, 1):
        assert cli("likelihood", trained, *arguments, f"--config.likelihood.batch_size={batch_size}") == 0
    assert "standard error of" in capsys.readouterr().out
    one, two = (json.loads((trained / name).read_text()) for name in ("likelihood.json", "likelihood-2.json"))
    assert list(one["standard_error_parts"]) == ["images", "dequantization", "probes"]
    assert one["nfe"] == 18 and one["solver_error"] > 0
    low, high = one["interval"]
    assert low < one["bits_per_dim"] < high
    for name in ("bits_per_dim", "standard_error", "solver_error"):
        assert one[name] == pytest.approx(two[name], rel=1e-5)


def test_a_solver_of_fixed_steps(cli: Callable, trained: Path, capsys: pytest.CaptureFixture[str]):
    """It agrees with the adaptive one, counts its evaluations, and says how far off it may be."""
    adams = ("--config.likelihood.solver=exponential_adams", "--config.likelihood.steps=48")
    assert cli("likelihood", trained, "--config.likelihood.rtol=1e-6", "--config.likelihood.atol=1e-6") == 0
    assert cli("likelihood", trained, *adams) == 0
    assert "solver's error" in capsys.readouterr().out
    adaptive, fixed = (
        json.loads((trained / name).read_text()) for name in ("likelihood.json", "likelihood-2.json")
    )
    assert 0 < adaptive["solver_error"] < 1e-4 and fixed["nfe"] == 49 and 0 < fixed["solver_error"] < 1e-2
    assert fixed["bits_per_dim"] == pytest.approx(adaptive["bits_per_dim"], abs=2e-3)


CONDITIONAL = ("--config.training.conditional=true", "--config.training.steps=4")


def test_a_conditional_model_scores_each_image_with_its_own_class(
    cli: Callable, tmp_path: Path, refused: Callable, capsys: pytest.CaptureFixture[str]
):
    assert cli("train", tmp_path, *CONDITIONAL) == 0
    draws = ("--config.likelihood.classify_draws=3", "--config.likelihood.num_images=7")
    assert cli("likelihood", tmp_path, "--config.likelihood.classify=denoising", *draws) == 0
    out = capsys.readouterr().out
    assert "each sample's own label" in out and "accuracy" in out and "30 network evaluations" in out
    result = json.loads((tmp_path / "likelihood.json").read_text())
    assert result["conditioned_on"] == ["label"]
    labels = load_digits().test_labels[:7].tolist()
    counts = {str(label): labels.count(label) for label in set(labels)}
    assert {name: found["num_images"] for name, found in result["classes"].items()} == counts
    mean = sum(found["bits_per_dim"] * found["num_images"] for found in result["classes"].values()) / 7
    assert result["bits_per_dim"] == pytest.approx(mean)
    bare, difference = result["unconditional"]["bits_per_dim"], result["difference"]["ode"]["bits_per_dim"]
    assert result["bits_per_dim"] - bare == pytest.approx(difference)
    found = result["classification"]
    assert found["labels"] == labels and found["evaluations"] == 30 and found["classes"] == list("0123456789")
    log_p = np.array(found["log_probabilities"])
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-3)
    assert found["accuracy"] == pytest.approx((log_p.argmax(1) == labels).mean())


@pytest.mark.slow
def test_every_class_is_scored_where_likelihoods_classify(cli: Callable, tmp_path: Path):
    assert cli("train", tmp_path, *CONDITIONAL, "--config.training.condition_dropout=0") == 0
    tight = ("--config.likelihood.rtol=1e-6", "--config.likelihood.atol=1e-6")
    for batch_size in (3, 4):
        arguments = (
            "--config.likelihood.classify=likelihood",
            f"--config.likelihood.batch_size={batch_size}",
        )
        assert cli("likelihood", tmp_path, *arguments, *tight) == 0
    first, second = (json.loads((tmp_path / f"likelihood{n}.json").read_text()) for n in ("", "-2"))
    assert "unconditional" not in first  # there was no dropout
    for name in ("accuracy", "log_loss"):
        assert first["classification"][name] == pytest.approx(second["classification"][name], abs=1e-3)
    assert first["classification"]["evaluations"] > 60


def test_a_model_without_classes_classifies_nothing(cli: Callable, trained: Path, refused: Callable):
    before = sorted(trained.iterdir())
    sentence = refused(cli("likelihood", trained, "--config.likelihood.classify=denoising"))
    assert "classify=denoising needs a model that was trained with class labels" in sentence
    assert sorted(trained.iterdir()) == before


def test_other_data_and_the_bound_of_the_reverse_sde(
    cli: Callable, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable
):
    """Per-sample scores of both sets, whose areas are those of the file; batch size does not matter."""
    other = tmp_path / "flat.npy"
    np.save(other, np.full((3, 1, 8, 8), -1.0))
    options = ("method=reverse_sde", "reverse_times=4", "n_draws=2", f"path={other}")
    arguments = [f"--config.likelihood.{option}" for option in options]
    for batch_size in (4, 2):
        assert cli("likelihood", trained, *arguments, f"--config.likelihood.batch_size={batch_size}") == 0
    out = capsys.readouterr().out
    assert "reverse SDE's bound, bits/dim" in out and "AUROC" in out
    first, second = (json.loads((trained / f"likelihood{n}.json").read_text()) for n in ("", "-2"))
    each = np.load(trained / "likelihood.npz")
    assert each["reverse_sde_estimates"].shape == (4, 2, 1) and each["other"].shape == (3,)
    assert first["reverse_sde"]["bits_per_dim"] == pytest.approx(each["reverse_sde"].mean())
    assert first["reverse_sde"]["nfe"] == 16
    pairs = each["other"][:, None] > each["other_held_out"]
    assert first["other"]["auroc"]["likelihood"]["value"] == pytest.approx(pairs.mean())
    for result in ("reverse_sde", "other"):
        assert first[result]["bits_per_dim"] == pytest.approx(second[result]["bits_per_dim"], rel=1e-5)
    assert (trained / "likelihood-other.png").exists() and (trained / "likelihood-reverse-sde.png").exists()
    np.save(other, np.full((3, 1, 9, 8), -1.0))
    assert "have shape (n, 1, 8, 8)" in refused(cli("likelihood", trained, *arguments))


@pytest.mark.slow
def test_importance_weighted_bounds(cli: Callable, trained: Path, capsys: pytest.CaptureFixture[str]):
    """Of the exact divergence; they are those of the draws in the file."""
    options = ("num_images=2", "n_draws=2", "divergence=exact", "solver=exponential_adams", "steps=8")
    arguments = [f"--config.likelihood.{option}" for option in (*options, "checked_images=0")]
    assert cli("likelihood", trained, *arguments) == 0
    assert "weighted, 2 draws" in capsys.readouterr().out
    result = json.loads((trained / "likelihood.json").read_text())
    nats = np.load(trained / "likelihood.npz")["ode_estimates"][:, :, 0] * 64 * np.log(2)
    exact = (np.log(2) - np.logaddexp(-nats[:, 0], -nats[:, 1])).mean() / (64 * np.log(2))
    assert result["importance_weighted"]["2"]["bits_per_dim"] == pytest.approx(exact)
    assert exact <= result["bits_per_dim"]


def test_the_accuracy_of_the_solver_follows_from_the_standard_error(
    cli: Callable, trained: Path, capsys: pytest.CaptureFixture[str]
):
    """auto becomes a number, which is said and kept."""
    options = ("solver=exponential_adams", "num_images=2", "checked_images=0")
    assert cli("likelihood", trained, *(f"--config.likelihood.{option}" for option in options)) == 0
    result = json.loads((trained / "likelihood.json").read_text())
    steps = result["settings"]["steps"]
    assert steps in STEPS and result["nfe"] == steps + 1
    assert f"exponential_adams, {steps} steps" in capsys.readouterr().out
