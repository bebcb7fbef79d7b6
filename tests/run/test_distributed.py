from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from run import distributed
from tests.run.ranks import job

SIZES = [
    "--config.sampling.num_samples=9",
    "--config.sampling.batch_size=2",
    "--config.likelihood.num_images=7",
    "--config.likelihood.batch_size=2",
]


def results(workdir: Path) -> dict[str, object]:
    """What sample, likelihood and evaluate left, without the time they took."""
    found = {}
    for path in sorted(workdir.glob("*.json")):
        found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    for path in sorted(workdir.glob("samples/*.npz")):
        with np.load(path) as arrays:
            found[path.name] = {name: arrays[name].tobytes() for name in arrays}
    return found


def test_shares_are_consecutive_and_nearly_equal(monkeypatch: pytest.MonkeyPatch):
    for ranks, n in ((1, 5), (3, 7), (4, 2), (3, 0)):
        monkeypatch.setattr(distributed, "world_size", lambda ranks=ranks: ranks)
        shares = []
        for rank in range(ranks):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(distributed.share(n))
        assert [index for share in shares for index in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def alone(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the finished training."""
    return share_out(1, finished_run, tmp_path_factory.mktemp("alone"))


MODES = {
    "sample": ["--sampler", "pc"],
    "likelihood": ["--config.likelihood.method=both", "--config.likelihood.bound_terms=2"],
    "evaluate": ["--grid=fitted", "--nfe=4"],
}


def share_out(n: int, finished_run: Path, folder: Path) -> Path:
    workdir = Path(shutil.copytree(finished_run, folder / "run"))
    for mode, arguments in MODES.items():
        done = job(n, ["--mode", mode, "--workdir", str(workdir), *SIZES, *arguments], folder / mode)
        assert done.codes == [0] * n, done.err
        assert "Traceback" not in "".join(done.err)
        assert done.out[0] and not any(done.out[1:])  # only rank 0 speaks
    return workdir


@pytest.mark.parametrize("n", [2, 4])
def test_shared_work_gives_the_same_bits(n: int, alone: Path, finished_run: Path, tmp_path: Path):
    assert results(share_out(n, finished_run, tmp_path)) == results(alone)
    assert {"pc.npz", "likelihood.json", "evaluation.json"} <= set(results(alone))


def test_the_users_errors_end_every_rank(finished_run: Path, tmp_path: Path):
    argv = ["--mode", "sample", "--workdir", str(finished_run), "--sampler", "magic"]
    done = job(2, argv, tmp_path)
    assert done.codes == [2, 2]
    assert done.err[0].startswith("error: ") and done.err[1].startswith("error of rank 1: ")
