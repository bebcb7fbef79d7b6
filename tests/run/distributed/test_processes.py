from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run import main
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.distributed import processes
from tests.run.processes import (
    finish,
    give_each_rank_other_data,
    job,
    predict_labels,
    spoil_a_sample,
    start,
)

pytestmark = pytest.mark.slow

TINY = str(Path(__file__).parents[1] / "tiny.py")
SAMPLES = ["--config.sampling.num_samples=9", "--config.sampling.batch_size=2"]
RESTORES = ["--nfe=4", "--config.restore.num_inputs=3", "--config.restore.num_samples=3"]
SCORES = ["--config.likelihood.num_images=5", "--config.likelihood.batch_size=2"]


def results(workdir: Path) -> dict[str, object]:
    """What sample, restore, likelihood and evaluate left, without the time they took."""
    found = {}
    for path in sorted(workdir.glob("*.json")):
        found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if "seconds" not in k}
    for path in sorted([*workdir.glob("samples/*.npz"), *workdir.glob("restored/*.npz")]):
        with np.load(path) as arrays:
            found[path.name] = {name: arrays[name].tobytes() for name in arrays if "seconds" not in name}
    return found


def test_shares_are_consecutive_and_nearly_equal(monkeypatch: pytest.MonkeyPatch):
    for ranks, n in ((1, 5), (3, 7), (4, 2), (3, 0)):
        monkeypatch.setattr(processes, "world_size", lambda ranks=ranks: ranks)
        shares = []
        for rank in range(ranks):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            shares.append(processes.own_share(n))
        assert [index for share in shares for index in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def single(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the finished training."""
    return share_out(1, finished_run, tmp_path_factory.mktemp("single"))


MODES = {
    "sample": [*SAMPLES, "--sampler", "pc"],
    "restore": [*RESTORES, "--task=superres"],
    "likelihood": [*SCORES, "--config.likelihood.method=both", "--config.likelihood.bound_terms=1"],
    "evaluate": [*SAMPLES, "--grid=fitted", "--nfe=3"],
}


def share_out(n: int, finished_run: Path, folder: Path) -> Path:
    workdir = Path(shutil.copytree(finished_run, folder / "run"))
    with pytest.MonkeyPatch.context() as patch:  # the shortest fit, which the jobs read
        patch.setattr("score_diffusion.run.inference.fitted_solver.EVALUATIONS", 0)
        assert main.main(["--mode", "sample", "--workdir", str(workdir), *MODES["evaluate"]]) == 0
    for mode, arguments in MODES.items():
        done = job(n, ["--mode", mode, "--workdir", str(workdir), *arguments], folder / mode)
        assert done.codes == [0] * n, done.err
        assert "Traceback" not in "".join(done.err)
        assert done.out[0] and not any(done.out[1:])  # only rank 0 speaks
    return workdir


@pytest.mark.parametrize("n", [4])
def test_shared_work_gives_the_same_bits(n: int, single: Path, finished_run: Path, tmp_path: Path):
    assert results(share_out(n, finished_run, tmp_path)) == results(single)
    expected = {"pc.npz", "superres-moment_matching.npz", "likelihood.json", "evaluation.json"}
    assert expected <= set(results(single))


def test_the_classes_of_shared_samples_are_those_of_one_process(cli: Callable, tmp_path: Path):
    assert cli("train", tmp_path / "run", *CONDITIONAL, "--config.training.steps=2") == 0
    found = []
    for n in (1, 2):
        workdir = Path(shutil.copytree(tmp_path / "run", tmp_path / str(n)))
        classify = [*SCORES, "--config.likelihood.classify=denoising", "--config.likelihood.classify_draws=2"]
        for mode, arguments in (("sample", [*SAMPLES, "--label=7,3"]), ("likelihood", classify)):
            done = job(n, ["--mode", mode, "--workdir", str(workdir), *arguments], tmp_path / mode)
            assert done.codes == [0] * n, done.err
        found.append(results(workdir))
    assert found[0] == found[1] and "classification" in found[0]["likelihood.json"]


def training(tiny: str, workdir: Path, *arguments: str) -> list[str]:
    return ["--mode", "train", "--config", tiny, "--workdir", str(workdir), *arguments]


EXACT = ["--config.model.dropout=0", "--config.training.log_every=1", "--config.training.held_out=8"]
# ten noise levels, each seen often enough for its losses to decide how often it is drawn
IMPORTANCE = ["--config.training.times=importance", "--config.sde.N=10", "--config.training.batch_size=32"]
IMPORTANCE += ["--config.data.flip=true", "--config.training.accumulate=2"]


def curve(workdir: Path) -> np.ndarray:
    """Loss and gradient norm of every step, shape (steps, 2)."""
    rows = map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
    return np.array([(row["loss"], row["grad_norm"]) for row in rows])


CONDITIONAL = ("--config.training.conditional=true", "--config.training.condition_dropout=0.4")
CASES = {"one": (1, "ddp"), "two": (2, "ddp"), "shards": (2, "fsdp"), "four": (4, "ddp")}


@pytest.mark.parametrize(
    ("arguments", "cases"),
    [
        ((), ("one", "two", "shards", "four")),
        (IMPORTANCE, ("one", "shards")),
        (("--config.training.objective=uncertainty",), ("one", "two")),
        (CONDITIONAL, ("one", "shards")),
    ],
    ids=["plain", "importance", "uncertainty", "conditional"],
)
def test_many_processes_train_as_one_does_with_the_whole_batch(
    arguments: tuple, cases: tuple, tiny: str, tmp_path: Path
):
    saved = {}
    for name in cases:
        n, parallel = CASES[name]
        argv = training(tiny, tmp_path / name, *EXACT, *arguments, f"--config.training.parallel={parallel}")
        done = job(n, argv, tmp_path / f"{name}-said")
        assert done.codes == [0] * n, done.err
        assert not any(done.out[1:])
        saved[name] = checkpoint.latest(tmp_path / name)
    assert len(list((tmp_path / "shards/checkpoints").glob("00000008/shard-*"))) == 2 * ("shards" in cases)
    one = curve(tmp_path / "one")
    assert one.shape == (8, 2) and one.std() > 1e-3
    if arguments == IMPORTANCE:
        counts = saved["one"].times["counts"]
        assert counts.min() >= 10 and counts.float().std() > 2  # the last batches were drawn by their losses
    for name in cases[1:]:
        assert np.abs(curve(tmp_path / name) - one).max() < 1e-5
        for part in ("model", "ema", "times", "objective"):
            expected, found = getattr(saved["one"], part), getattr(saved[name], part)
            assert expected.keys() == found.keys()
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)


def test_all_ranks_skip_a_step_that_one_finds_not_finite(tiny: str, tmp_path: Path):
    logs = {}
    for n, parallel in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        workdir = tmp_path / f"{parallel}{n}"
        argv = [*training(tiny, workdir, *EXACT), "--config.training.log_every=3"]
        done = job(n, [*argv, f"--config.training.parallel={parallel}"], tmp_path / "said", spoil_a_sample)
        assert done.codes == [0] * n, done.err
        logs[workdir] = list(map(json.loads, (workdir / "log.jsonl").read_text().splitlines()))
        assert [row["skipped"] for row in logs[workdir]] == [0, 0, 1, 0]  # at steps 3, 4, 6, 8
        assert checkpoint.latest(workdir).ema_updates == 7
    one, *others = logs.values()
    for rows in others:
        for row, expected in zip(rows, one, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
            assert row["level_losses"] == pytest.approx(expected["level_losses"], abs=1e-4)
            assert row["held_out_loss"] == pytest.approx(expected["held_out_loss"], abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_objective_with_labels_and_without_times_is_trained_by_many_processes(
    accumulate: int, tiny: str, tmp_path: Path
):
    few = (f"--config.training.accumulate={accumulate}", "--config.training.preview_samples=0")
    for n in (1, 2):
        argv = training(tiny, tmp_path / str(n), *EXACT, *few)
        done = job(n, argv, tmp_path / "said", predict_labels)
        assert done.codes == [0] * n, done.err
    one, two = (curve(tmp_path / str(n)) for n in (1, 2))
    assert np.abs(one - two).max() < 1e-4 and one[:, 0].std() > 1e-3
    row = json.loads((tmp_path / "2/log.jsonl").read_text().splitlines()[-1])
    assert row["level_losses"] == [] and row["held_out_loss"] > 0


@pytest.mark.parametrize("what", ["data", "settings"])
def test_ranks_with_different_data_or_settings_are_refused(what: str, tiny: str, tmp_path: Path):
    argv = training(tiny, tmp_path / "run")
    if what == "data":
        done = job(2, argv, tmp_path / "said", give_each_rank_other_data)
    else:
        done = finish(start(2, argv, tmp_path / "said", seeds=(1, 2)), tmp_path / "said")
    assert done.codes == [2, 2]
    expected = "898 and 899 held-out" if what == "data" else "error: rank 1 has another seed than rank 0"
    assert expected in done.err[0] and "rank 1" in done.err[0] and "Traceback" not in "".join(done.err)
    assert not (tmp_path / "run").exists()


def test_batches_that_cannot_be_shared_out_are_refused(tiny: str, tmp_path: Path):
    done = job(3, training(tiny, tmp_path / "run"), tmp_path)
    assert done.codes == [2, 2, 2]
    assert done.err[0].startswith("error: training.batch_size=8 ") and done.err[0].count("\n") == 1
    assert "multiple of 3" in done.err[0]
    assert done.err[1].startswith("error of rank 1: ")
    assert not (tmp_path / "run").exists()


SETTINGS = ("steps=30", "log_every=1", "checkpoint_every=10", "sample_every=30", "held_out=8")
LONG = [f"--config.training.{setting}" for setting in SETTINGS]


def wait_for(steps: int, workdir: Path, times: int = 1) -> None:
    """Waits until so many steps are logged, so many times."""
    deadline = time.monotonic() + 60
    log = workdir / "log.jsonl"
    while not log.exists() or log.read_text().count(f'"step": {steps},') < times:
        assert time.monotonic() < deadline, "training does not get on"
        time.sleep(0.01)


def state(workdir: Path) -> dict[str, object]:
    """All that the newest checkpoint of a run holds, but for the time it took."""
    return {**vars(checkpoint.latest(workdir)), "seconds": None}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a run of two processes that nothing disturbed."""
    made = {}

    def run(parallel: str) -> Path:
        if parallel not in made:
            folder = tmp_path_factory.mktemp(parallel)
            argv = training(TINY, folder / "run", *LONG, f"--config.training.parallel={parallel}")
            assert job(2, argv, folder).codes == [0, 0]
            made[parallel] = folder / "run"
        return made[parallel]

    return run


def test_a_signal_to_any_rank_stops_all_and_shards_resume_to_the_same_bits(
    uninterrupted: Callable, same: Callable, tiny: str, tmp_path: Path
):
    workdir, said = tmp_path / "run", tmp_path / "said"
    argv = training(tiny, workdir, *LONG, "--config.training.parallel=fsdp")
    argv.append("--config.training.sample_every=12")  # a picture in between leaves no trace in the weights
    ranks = start(2, argv, said)
    wait_for(5, workdir)
    os.kill(ranks[1].pid, signal.SIGTERM)
    done = finish(ranks, said)
    assert done.codes == [143, 143], done.err
    assert "Training stopped by SIGTERM" in done.out[0] and "give the same command again" in done.out[0]
    assert 5 < checkpoint.latest(workdir).step < 30
    assert job(2, argv, said).codes == [0, 0]
    assert same(state(workdir), state(uninterrupted("fsdp")))


def test_any_number_of_processes_resumes_from_full_or_sharded_checkpoints(tiny: str, tmp_path: Path):
    """One process resumes from two's shards, and two with shards from one's checkpoint, as from their own."""

    def train(n: int, parallel: str, steps: int, workdir: Path) -> None:
        sizes = [f"--config.training.steps={steps}", f"--config.training.parallel={parallel}"]
        done = job(n, training(tiny, workdir, *EXACT, *sizes), tmp_path / "said")
        assert done.codes == [0] * n, done.err
        assert ("at step 4" in done.out[0]) == (steps == 8)

    single, joined, split = (tmp_path / name for name in ("single", "joined", "split"))
    train(1, "ddp", 4, single)
    shutil.copytree(single, split)
    train(2, "fsdp", 4, joined)
    train(1, "ddp", 8, single)
    train(1, "ddp", 8, joined)
    train(2, "fsdp", 8, split)
    for workdir in (joined, split):
        assert np.abs(curve(workdir) - curve(single)).max() < 1e-5


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_shard_is_named_and_passed_over(
    damage: str, uninterrupted: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = Path(shutil.copytree(uninterrupted("fsdp"), tmp_path / "run"))
    piece = next((workdir / "checkpoints/00000030").glob("shard-00002-*"))
    content = bytearray(piece.read_bytes())
    content[-3] ^= 1
    piece.write_bytes(content)
    if damage == "missing":
        piece.unlink()
    assert checkpoint.latest(workdir).step == 20
    assert f"{piece} is {damage.replace('flipped', 'damaged')}" in capsys.readouterr().err
    done = job(2, ["--mode", "sample", "--workdir", str(workdir), *SAMPLES], tmp_path / "said")
    assert done.codes == [0, 0]
    assert f"{piece} is" in done.err[0] and f"{piece} is" not in done.err[1]
    assert "after 20 training steps" in done.out[0]


def test_a_rank_that_hangs_ends_the_job(tiny: str, tmp_path: Path):
    workdir, said = tmp_path / "run", tmp_path / "said"
    ranks = start(2, training(tiny, workdir, *LONG, "--config.training.patience=2"), said)
    wait_for(5, workdir)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    ranks[0].join(30)
    os.kill(ranks[1].pid, signal.SIGKILL)
    done = finish(ranks, said)
    assert done.codes == [2, -9]
    assert "rank 0 lost another process of the job" in done.err[0] and "Timed out" in done.err[0]


def torchrun(workdir: Path, *options: str) -> subprocess.Popen[str]:
    script = Path(checkpoint.__file__).parents[1] / "main.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options, str(script)]
    return subprocess.Popen(
        [*command, *training(TINY, workdir, *LONG)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(process: subprocess.Popen) -> list[int]:
    """The processes that a process started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_under_torchrun_a_killed_rank_and_a_signal_lose_nothing(
    uninterrupted: Callable, same: Callable, tmp_path: Path
):
    workdir = tmp_path / "run"
    launcher = torchrun(workdir, "--max-restarts", "1")
    wait_for(12, workdir)
    os.kill(children(launcher)[1], signal.SIGKILL)
    wait_for(12, workdir, times=2)
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode != 0 and "exitcode: -9" in err
    assert out.count("at step 10") == 1 and "Training stopped by SIGTERM" in out
    assert 12 <= checkpoint.latest(workdir).step < 30

    assert job(2, training(TINY, workdir, *LONG), tmp_path / "said").codes == [0, 0]
    assert same(state(workdir), state(uninterrupted("ddp")))
