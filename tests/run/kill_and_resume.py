"""Trains in many processes one after the other, each killed at a random moment, except for the last.

    python tests/run/kill_and_resume.py WORKDIR KILLS SEED ARGUMENT...

The arguments are those of `--mode train`. The processes are forks of this one, which has imported everything,
has trained in another folder and has no other thread. Checkpoints are written slowly, so that some are killed
during a write, and pictures are not drawn. Prints, as JSON, how many processes were killed, and how many of
them during a write.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import torch
from tqdm import tqdm

torch.set_num_threads(1)

from score_diffusion.run import plots  # noqa: E402
from score_diffusion.run.checkpoints import directory  # noqa: E402
from score_diffusion.run.main import main  # noqa: E402
from score_diffusion.run.training.log import Recorder  # noqa: E402

SHORTEST_SPAN = 1.2  # seconds in which a process is killed; longer where a start takes longer
PAUSE = 0.02  # seconds, twice in every file of a checkpoint


def write_slowly(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            file.write(half)
            file.flush()
            time.sleep(PAUSE)
        os.fsync(file.fileno())


def start(arguments: list[str], slowly: bool) -> int:
    """Starts a process; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if slowly:
            directory.write_durable = write_slowly
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(workdir: Path, kills: int, seed: int, arguments: list[str]) -> dict[str, int]:
    tqdm.monitor_interval = 0  # its monitor is a thread
    plots.save_loss_curve = plots.save_samples = Recorder.show_picture = lambda *arguments: None
    moments, during_a_write = random.Random(seed), 0
    rehearsal = ["--mode", "train", "--workdir", str(workdir.with_name("rehearsal")), *arguments]
    rehearsal.append("--config.training.preview_samples=0")
    with redirect_stdout(sys.stderr):
        main([*rehearsal, "--config.training.steps=1"])
        begin = time.perf_counter()
        main([*rehearsal, "--config.training.steps=2"])
        span = max(SHORTEST_SPAN, 2 * (time.perf_counter() - begin))
    if threading.active_count() > 1:
        raise SystemExit(f"threads would not survive a fork: {threading.enumerate()}")
    arguments = ["--mode", "train", "--workdir", str(workdir), *arguments]
    for _ in range(kills):
        process = start(arguments, slowly=True)
        time.sleep(moments.uniform(0, span))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(
                f"a process ended by itself with status {status}: the training is too short, or failed"
            )
        during_a_write += any((workdir / "checkpoints").glob(".*"))
    _, status = os.waitpid(start(arguments, slowly=False), 0)
    return {"killed": kills, "during_a_write": during_a_write, "last_status": status}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
