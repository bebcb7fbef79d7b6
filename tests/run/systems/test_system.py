"""Training and sampling of a system: the same bits wherever it was stopped, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.main import main
from score_diffusion.run.systems.cascade import _given
from score_diffusion.run.systems.chain import StageSamples, stage_seed
from score_diffusion.run.systems.configuration import read_stages
from score_diffusion.run.systems.kinds import load_chain
from score_diffusion.run.systems.system import read_system
from score_diffusion.run.training import loop

pytestmark = pytest.mark.slow

SYSTEM = str(Path(__file__).parents[1] / "tiny_system.py")


def train(workdir: Path, *arguments: str) -> int:
    return main(["--mode", "train", "--config", SYSTEM, "--workdir", str(workdir), *arguments])


def sample(workdir: Path, *arguments: str) -> int:
    return main(["--mode", "sample", "--workdir", str(workdir), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "system"
    assert train(workdir) == 0
    return workdir


@pytest.fixture
def system(finished: Path, tmp_path: Path) -> Path:
    """A copy of a trained system to work in."""
    return Path(shutil.copytree(finished, tmp_path / "system"))


@pytest.mark.parametrize("save", [2, 4], ids=["in the first stage", "in the second stage"])
def test_a_training_stopped_anywhere_ends_as_one_that_was_not(
    save: int, finished: Path, tmp_path: Path, same: Callable, log_of: Callable, monkeypatch
):
    """Stopped in place of its n-th checkpoint; each stage has two."""
    saves, complete = [], checkpoint.save

    def interrupted(*arguments: object) -> None:
        saves.append(1)
        if len(saves) == save:
            raise KeyboardInterrupt
        complete(*arguments)

    monkeypatch.setattr(loop.checkpoint, "save", interrupted)
    assert train(tmp_path / "system") == 130
    assert train(tmp_path / "system") == 0
    for stage in ("base", "x8"):
        a, b = checkpoint.latest(finished / stage), checkpoint.latest(tmp_path / "system" / stage)
        for part in ("model", "ema", "optimizer", "running", "held_out_loss"):
            assert same(getattr(a, part), getattr(b, part)), part
        assert log_of(finished / stage) == log_of(tmp_path / "system" / stage)


def test_a_finished_stage_is_passed_over(system: Path, snapshot: Callable, capsys):
    before = snapshot(system)
    assert main(["--mode", "train", "--workdir", str(system)]) == 0
    out = capsys.readouterr().out
    assert "Stage 1 of 2, base: finished" in out and "Stage 2 of 2, x8: finished" in out
    assert snapshot(system) == before


def test_more_steps_for_one_stage(system: Path):
    assert train(system, "--config.x8.training.steps=9") == 0
    assert checkpoint.steps(system / "base")[-1] == 8 and checkpoint.steps(system / "x8")[-1] == 9


def test_samples_do_not_depend_on_the_batch(finished: Path):
    """Sample k depends on (seed, k): not on the others that are drawn, nor on how many at a time."""
    stages = read_stages(read_system(finished), [("sampling.batch_size", 2)], "sample")
    chain = load_chain(read_system(finished), stages, torch.device("cpu"))
    whole, part = chain.draw(range(0, 5), 3), chain.draw(range(2, 5), 3)
    assert list(whole) == list(part) == ["base", "x8"]
    assert [stage.samples.shape for stage in whole.values()] == [(5, 1, 4, 4), (5, 1, 8, 8)]
    for name in whole:
        assert np.array_equal(whole[name].samples[2:], part[name].samples)
    other = chain.draw(range(0, 5), 4)
    assert not np.array_equal(other["x8"].samples, whole["x8"].samples)


def test_what_is_drawn_without_a_class_is_enlarged_without_one(tmp_path: Path):
    assert train(tmp_path / "system", "--config.base.training.conditional=False") == 0
    system = read_system(tmp_path / "system")
    for overrides, expected in ([], [-1]), ([("x8.sampling.label", "3,5")], [3, 5]):
        chain = load_chain(system, read_stages(system, overrides, "sample"), torch.device("cpu"))
        assert "label" not in chain.stages[0].trained.conditions.rows
        assert chain.last.conditions.rows["label"].tolist() == expected


def test_each_stage_has_noise_of_its_own_in_the_small_images(finished: Path):
    chain = load_chain(
        read_system(finished), read_stages(read_system(finished), (), "sample"), torch.device("cpu")
    )
    small = StageSamples(np.zeros((2, 1, 4, 4), np.float32), 1)
    noised = [
        _given(chain.last, small, chain.conditions, range(2), seed).conditions.of(range(2))["low_resolution"]
        for seed in (stage_seed(0, "x8"), stage_seed(0, "x16"), stage_seed(0, "x8"))
    ]
    assert torch.equal(noised[0], noised[2]) and not (noised[0] == noised[1]).any()


def test_the_files_of_samples(system: Path, capsys):
    assert sample(system, "--label", "3,7", "--config.sampling.num_samples=4") == 0
    folder = system / "samples"
    assert {path.name for path in folder.iterdir()} == {
        *("cascade.npz", "cascade.png", "cascade-base.png", "cascade-x8.png")
    }
    with np.load(folder / "cascade.npz") as arrays:
        assert arrays["samples"].shape == (4, 1, 8, 8) and arrays["after_base"].shape == (4, 1, 4, 4)
        assert arrays["captions"].tolist() == ["3", "7", "3", "7"]
        assert set(json.loads(str(arrays["settings"]))) == {"base", "x8"}


def test_what_a_system_draws_is_measured(system: Path):
    """The samples of the last stage, drawn once; again where a stage was trained on."""
    assert main(["--mode", "evaluate", "--workdir", str(system)]) == 0
    record = json.loads((system / "evaluation.json").read_text())
    assert record["file"] == "cascade.npz" and record["num_samples"] == 5
    assert record["training_steps"] == 8 and np.isfinite(record["samples"]["sliced_wasserstein"])
    assert main(["--mode", "evaluate", "--workdir", str(system)]) == 0
    assert len(list((system / "samples").glob("*.npz"))) == 1
    assert train(system, "--config.base.training.steps=9") == 0
    assert main(["--mode", "evaluate", "--workdir", str(system)]) == 0
    assert len(list((system / "samples").glob("*.npz"))) == 2


def test_the_page_of_a_system(system: Path):
    """It shows the stages, the samples after each, and the distances."""
    assert sample(system) == 0 and main(["--mode", "evaluate", "--workdir", str(system)]) == 0
    assert main(["--mode", "report", "--workdir", str(system)]) == 0
    page = (system / "report.html").read_text()
    for words in ("This is a cascade of 2 runs", "8 of 8", "cascade-base.png", "cascade-x8.png"):
        assert words in page
    assert "Stage base" in page and "Stage x8" in page and "sliced Wasserstein" in page
    shutil.rmtree(system / "x8" / "checkpoints")
    assert main(["--mode", "report", "--workdir", str(system)]) == 0  # while it is trained
    assert "0 of 8" in (system / "report.html").read_text()


def test_a_stage_is_an_ordinary_run(system: Path):
    for mode in ("sample", "likelihood", "evaluate"):
        assert main(["--mode", mode, "--workdir", str(system / "x8")]) == 0


def restore(workdir: Path, *arguments: str) -> int:
    few = ("--config.restore.num_inputs=2", "--config.restore.num_samples=3", "--nfe=4")
    return main(["--mode", "restore", "--workdir", str(workdir), *few, *arguments])


def test_a_stage_enlarges_given_images(system: Path, refused: Callable):
    by_model = ("--task", "superres", "--method", "model")
    assert restore(system / "x8", *by_model, "--label", "3") == 0
    with np.load(system / "x8/restored/superres-model.npz") as arrays:
        assert arrays["samples"].shape == (2, 3, 1, 8, 8) and arrays["measurement"].shape == (2, 1, 4, 4)
    needed = "this model enlarges images by 2 and restores nothing else: --task superres --method model"
    assert needed in refused(restore(system / "x8", "--task", "inpaint"))
    assert needed in refused(restore(system / "x8", *by_model, "--config.restore.superres.factor=4"))
    sentence = refused(main(["--mode", "interpolate", "--workdir", str(system / "x8")]))
    assert "this model enlarges images, and knows no path between two" in sentence
    assert "needs a model that was trained to enlarge images" in refused(restore(system / "base", *by_model))


def test_more_noise_than_training_had_is_refused(system: Path, refused: Callable, tmp_path: Path):
    little = ("--config.x8.training.augment_noise=0.05", "--config.x8.sampling.augment_noise=0")
    shutil.copytree(system / "base", tmp_path / "little" / "base")
    shutil.copy(system / "system.json", tmp_path / "little")
    assert train(tmp_path / "little", *little) == 0
    assert "to training.augment_noise=0.05 or less" in refused(
        sample(tmp_path / "little", "--config.x8.sampling.augment_noise=0.1")
    )
    assert "restore.noise=0.1 is more than the model was trained for: its small images had" in refused(
        restore(tmp_path / "little/x8", "--task=superres", "--method=model", "--noise=0.1")
    )


def test_stages_that_cannot_draw(system: Path, refused: Callable):
    x8, base = system / "x8", system / "base"
    shutil.move(x8, system.parent / "x8")
    assert "stage x8 of" in (sentence := refused(sample(system))) and "is missing: restore" in sentence
    shutil.copytree(base, x8)
    assert "stage x8 of a cascade enlarges images, and" in refused(sample(system))
    shutil.rmtree(x8)
    shutil.copytree(system.parent / "x8", x8)
    shutil.rmtree(x8 / "checkpoints")
    assert "has not been trained: resume the training of the system" in refused(sample(system))
    shutil.rmtree(x8)
    shutil.copytree(system.parent / "x8", x8)
    shutil.rmtree(base)
    shutil.copytree(x8, base)
    assert "the first stage of a cascade draws images from noise, and" in refused(sample(system))


def test_stages_that_do_not_fit(system: Path, finished: Path, refused: Callable, tmp_path: Path):
    """A first stage that draws 8x8 pixels where 4x4 are enlarged."""
    assert train(tmp_path / "other", "--config.base.data.shrink=1") == 0
    shutil.rmtree(system / "base")
    shutil.copytree(tmp_path / "other" / "base", system / "base")
    assert "stage x8 enlarges images of shape (1, 4, 4), and stage base draws (1, 8, 8)" in refused(
        sample(system)
    )


def test_a_stage_that_is_not_finished_is_named(system: Path, capsys):
    shutil.rmtree(system / "x8" / "checkpoints" / "00000008")
    assert sample(system) == 0
    assert "stage x8 has taken 4 of its 8 training steps" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["likelihood", "restore", "demo"])
def test_modes_of_one_run_name_the_stages(mode: str, finished: Path, refused: Callable):
    sentence = refused(main(["--mode", mode, "--workdir", str(finished)]))
    assert f"--mode {mode} works on one run" in sentence and str(finished / "x8") in sentence


def test_directories_that_hold_something_else(finished: Path, refused: Callable, tiny: str, tmp_path: Path):
    assert "holds the run of one model, not a system" in refused(train(finished / "base"))
    assert "is not empty and holds no run" in refused(
        main(["--mode", "train", "--config", tiny, "--workdir", str(finished)])
    )
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no system" in refused(train(tmp_path))


def test_a_damaged_system_file(system: Path, refused: Callable):
    for record in ({}, {"kind": "cascade", "stages": ["../base"]}, {"kind": "cascade", "stages": []}):
        (system / "system.json").write_text(json.dumps(record))
        assert "system.json is damaged" in refused(sample(system))
    (system / "system.json").write_text(json.dumps({"kind": "tower", "stages": ["base", "x8"]}))
    assert "is a system of the kind 'tower', and these are known: cascade" in refused(sample(system))


def test_a_dry_run_names_every_stage(tmp_path: Path, capsys):
    assert train(tmp_path / "system", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "Stage base" in out and "Stage x8" in out and not (tmp_path / "system").exists()
