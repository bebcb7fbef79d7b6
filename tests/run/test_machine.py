"""What needs more than the machine has is refused with both figures, or announced, before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run import machine
from score_diffusion.run.errors import UserError
from score_diffusion.run.machine import memory_explained, refuse_beyond_memory, warn_of_days

BILLION = 10**9


def test_both_figures_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "machine_memory", lambda device: (3 * 2**30, "machine"))
    refuse_beyond_memory(3 * 2**30, "a batch", "lower it")
    with pytest.raises(UserError, match=r"^a batch takes 3\.5 GiB .* this machine has 3\.0 GiB: lower it$"):
        refuse_beyond_memory(3.5 * 2**30, "a batch", "lower it")
    with pytest.raises(UserError, match="more than 1,000,000,000 GiB"):
        refuse_beyond_memory(float("inf"), "a batch", "lower it")


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "none").write_text("max\n")
    (tmp_path / "some").write_text("1048576\n")
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (str(tmp_path / "none"), str(tmp_path / "missing")))
    assert machine.machine_memory()[0] > 2**20
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", (str(tmp_path / "none"), str(tmp_path / "some")))
    assert machine.machine_memory() == (2**20, "machine")


def test_days_are_announced(capsys: pytest.CaptureFixture[str]):
    warn_of_days(80_000, "drawing", "draw less")
    assert capsys.readouterr().err == ""
    warn_of_days(2.5 * 86_400, "drawing", "draw less")
    warn_of_days(3 * 365 * 86_400, "drawing", "draw less")
    said = capsys.readouterr().err
    assert "drawing will take about 2.5 days: draw less" in said and "about 3 years" in said


def cuda_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize("mode", ["train", "sample", "likelihood"])
@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**55), lambda: np.empty(2**55), lambda: bytearray(2**62), cuda_is_full]
)
def test_memory_that_runs_out_is_one_sentence(mode: str, allocate: Callable):
    with pytest.raises(UserError, match="not enough memory: lower ") as caught, memory_explained(mode):
        allocate()
    key = {"train": "training", "sample": "sampling"}.get(mode, mode)
    assert f"{key}.batch_size" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory_explained("train"):
        raise RuntimeError("shapes do not match")


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        "model.channels", "model.embedding_dim", "model.blocks_per_level", "model.num_classes", "sde.N",
        "model.multipliers", "training.batch_size", "training.preview_samples",
    ],
)  # fmt: skip
def test_networks_and_batches_beyond_the_machine(key: str, cli: Callable, tmp_path: Path, refused: Callable):
    sentence = refused(cli("train", tmp_path / "run", f"--config.{key}={BILLION}"))
    figures = r"takes [\w ,.]+ GiB of memory and this \w+ has [\d.,]+ GiB: "
    assert re.search(f"{figures}|more than 20,000 tensors", sentence)
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.slow
def test_points_and_images_beyond_the_machine(cli: Callable, tmp_path: Path, refused: Callable):
    toy = ("--config.data.name=moons", "--config.model.name=mlp")
    number = f"--config.data.num_points={BILLION}"
    assert "takes 59.6 GiB" in refused(cli("train", tmp_path / "run", *toy, number))
    np.save(tmp_path / "x.npy", np.zeros((20, 8, 8), np.uint8))
    size = (f"--config.data.path={tmp_path / 'x.npy'}", f"--config.data.image_size={BILLION}")
    assert "lower data.image_size" in refused(cli("data", tmp_path / "run", *size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("sample", ["sampling.num_samples"]),
        ("sample", ["sampling.steps"]),
        ("sample", ["sampling.nfe"]),
        ("likelihood", ["likelihood.n_probes"]),
        ("likelihood", ["likelihood.bound_draws", "likelihood.method=bound"]),
        ("likelihood", ["likelihood.bound_terms", "likelihood.method=bound"]),
    ],
)
def test_numbers_of_a_run_beyond_the_machine(
    mode: str, arguments: list[str], cli: Callable, trained: Path, refused: Callable, snapshot: Callable
):
    before = snapshot(trained)
    first, *others = arguments
    sentence = refused(
        cli(mode, trained, f"--config.{first}={BILLION}", *(f"--config.{other}" for other in others))
    )
    assert re.search(r"takes [\d.,]+ GiB of memory and this machine has [\d.,]+ GiB: lower ", sentence)
    assert snapshot(trained) == before


@pytest.mark.slow
def test_days_of_work_are_announced_before_they_start(
    cli: Callable, trained: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """Each command is stopped by its first warning."""

    class Announced(BaseException):
        pass

    def stop(message: str) -> None:
        raise Announced(message)

    monkeypatch.setattr(machine, "warn", stop)
    monkeypatch.setattr(machine, "DAY", 0.001)
    sampling = ("--sampler", "ald", "--config.sampling.ald.n_steps_each=1000")
    scoring = ("--config.likelihood.n_probes=20",)
    bound = ("--config.likelihood.method=bound",)
    for mode, workdir, arguments, words in (
        ("sample", trained, sampling, "drawing 5 samples will take about"),
        ("likelihood", trained, scoring, "scoring will take about"),
        ("likelihood", trained, bound, "the variational bound will take about"),
        ("train", tmp_path / "new", (), "training to step 8 will take about"),
    ):
        with pytest.raises(Announced, match=words):
            cli(mode, workdir, *arguments)
