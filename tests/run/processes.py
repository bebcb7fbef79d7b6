"""Several processes at one job without torchrun, whose start takes seconds: forked from a server that has
imported what they need, with the environment that torchrun would give them.
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
    "score_diffusion.run.commands.likelihood",
    "score_diffusion.run.commands.evaluate",
    "score_diffusion.run.checkpoints.sharded",
    "sklearn.datasets",
)
CONTEXT.set_forkserver_preload(list(MODULES))


@dataclass(frozen=True)
class Finished:
    """How the ranks of a job ended, and what they said."""

    codes: list[int]
    out: list[str]
    err: list[str]


def spoil_a_sample() -> None:
    """Makes the last sample of the batch of step 4 useless, in the process that works on it."""
    import math

    from score_diffusion.run.training.trainer import Trainer

    read = Trainer.read

    def spoiled(trainer: Trainer, draw: object) -> object:
        batch = read(trainer, draw)
        if trainer.step == 4:
            if draw.places[-1] == trainer.draw(4).places[-1]:
                batch.x_0[-1] = math.nan
        return batch

    Trainer.read = spoiled


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
    n: int, argv: list[str], folder: Path, prepare: Callable[[], None] = nothing
) -> list[multiprocessing.Process]:
    """Starts prepare() and main(argv) as n ranks, which write what they say below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(n):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        arguments = (environment, argv, folder / f"rank{rank}", prepare)
        ranks.append(CONTEXT.Process(target=_rank, args=arguments))
        ranks[-1].start()
    return ranks


def finish(ranks: list[multiprocessing.Process], folder: Path, timeout: float = 60.0) -> Finished:
    """Waits for the ranks."""
    for process in ranks:
        process.join(timeout)
        assert process.exitcode is not None, f"{process} has not ended after {timeout} s"
    out, err = (
        [(folder / f"rank{rank}.{name}").read_text() for rank in range(len(ranks))] for name in ("out", "err")
    )
    return Finished([process.exitcode for process in ranks], out, err)


def job(n: int, argv: list[str], folder: Path, prepare: Callable[[], None] = nothing) -> Finished:
    """Runs prepare() and main(argv) as n ranks."""
    return finish(start(n, argv, folder, prepare), folder)
