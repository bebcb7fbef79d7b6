"""Runs a command by several processes without torchrun, whose start takes seconds: they are forked from a
server that has imported what they need, and get the environment that torchrun would give them.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
MODULES = (
    "score_diffusion.run.commands.train",
    "score_diffusion.run.commands.sample",
    "score_diffusion.run.commands.restore",
    "score_diffusion.run.commands.likelihood",
    "score_diffusion.run.commands.evaluate",
    "score_diffusion.run.checkpoints.sharded",
    "sklearn.datasets",
)
CONTEXT.set_forkserver_preload(list(MODULES))


@dataclass(frozen=True)
class Finished:
    """The exit codes of the ranks of a job, and their outputs."""

    codes: list[int]
    out: list[str]
    err: list[str]


def spoil_a_sample() -> None:
    """Makes the last sample of the batch of step 4 useless, in the process that works on it."""
    import math

    from score_diffusion.run.training.batches import Batch, BatchDraw, BatchSource

    read = BatchSource.read

    def spoiled(batches: BatchSource, draw: BatchDraw) -> Batch:
        batch = read(batches, draw)
        if draw.positions[-1] == batches.order.positions(4)[-1]:
            batch.x_0[-1] = math.nan
        return batch

    BatchSource.read = spoiled


def predict_labels() -> None:
    """Trains a network for the labels of its data, by an objective without times."""
    import torch

    from score_diffusion.run.builders import training
    from score_diffusion.run.training.batches import Batch
    from score_diffusion.run.training.objectives import Objective
    from score_diffusion.sde_lib import ScoreModel

    class LabelRegression(Objective[ScoreModel]):
        uses_times = False

        def forward(self, model: ScoreModel, batch: Batch) -> torch.Tensor:
            output = model.net(batch.x_0, torch.zeros(len(batch)))
            return (output.flatten(1).mean(1) - batch.conditions["label"]).square()

    training.build_objective = lambda *arguments: LabelRegression()


def give_each_rank_other_data() -> None:
    """Lets the ranks read data of the same shape and other content."""
    from dataclasses import replace

    from score_diffusion.run.data import info

    load, digest = info.load_dataset, f"content of rank {os.environ['RANK']}"
    info.load_dataset = lambda *arguments: replace(load(*arguments), digest=digest)


def _rank(environment: dict[str, str], argv: list[str], said: Path, prepare: Callable[[], None]) -> None:
    os.environ.update(environment)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    import torch

    from score_diffusion.run.main import main

    torch.set_num_threads(1)
    prepare()
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def nothing() -> None:
    pass


def start(
    n: int,
    argv: list[str],
    folder: Path,
    prepare: Callable[[], None] = nothing,
    seeds: tuple[int, ...] = (),
) -> list[multiprocessing.Process]:
    """Starts prepare() and main(argv) as n ranks, each with its own seed if there are any; their outputs go
    to files in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(n):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        own = [*argv, f"--config.seed={seeds[rank]}"] if seeds else argv
        arguments = (environment, own, folder / f"rank{rank}", prepare)
        ranks.append(CONTEXT.Process(target=_rank, args=arguments))
        ranks[-1].start()
    return ranks


def finish(ranks: list[multiprocessing.Process], folder: Path, timeout: float = 60.0) -> Finished:
    """Waits for the ranks. What torch 2.9's Gloo writes to their standard output is left out."""
    for process in ranks:
        process.join(timeout)
        assert process.exitcode is not None, f"{process} has not ended after {timeout} s"

    def said(path: Path) -> str:
        lines = path.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    out, err = (
        [said(folder / f"rank{rank}.{name}") for rank in range(len(ranks))] for name in ("out", "err")
    )
    return Finished([process.exitcode for process in ranks], out, err)


def job(n: int, argv: list[str], folder: Path, prepare: Callable[[], None] = nothing) -> Finished:
    """Runs prepare() and main(argv) as n ranks."""
    return finish(start(n, argv, folder, prepare), folder)
