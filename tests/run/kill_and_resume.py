"""Trains a run through many lives, each a process of its own and killed at a random moment but the last.

    python tests/run/kill_and_resume.py WORKDIR KILLS SEED ARGUMENT...

The arguments are those of `--mode train`. The processes are forks of this one, which has imported everything,
has trained in another folder and has no other thread. Checkpoints are written slowly, so that some moments
fall inside a write, and pictures not at all. Prints, as JSON, how many lives were killed, and how many of
them inside a write.
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

LONGEST = 0.4  # seconds of a life that is killed
PAUSE = 0.008  # seconds, twice in every file of a checkpoint


def write_slowly(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            file.write(half)
            file.flush()
            time.sleep(PAUSE)
        os.fsync(file.fileno())


def live(arguments: list[str], slowly: bool) -> int:
    """Starts a life; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        plots.save_loss_curve = plots.save_samples = Recorder.show_picture = lambda *arguments: None
        if slowly:
            directory.write_durable = write_slowly
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(workdir: Path, kills: int, seed: int, arguments: list[str]) -> dict[str, int]:
    tqdm.monitor_interval = 0  # its monitor is a thread
    moments, inside = random.Random(seed), 0
    rehearsal = ["--mode", "train", "--workdir", str(workdir.with_name("rehearsal")), *arguments]
    with redirect_stdout(sys.stderr):
        main([*rehearsal, "--config.training.steps=1"])
    if threading.active_count() > 1:
        raise SystemExit(f"threads would not survive a fork: {threading.enumerate()}")
    arguments = ["--mode", "train", "--workdir", str(workdir), *arguments]
    for _ in range(kills):
        process = live(arguments, slowly=True)
        time.sleep(moments.uniform(0, LONGEST))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(
                f"a life ended by itself with status {status}: the training is too short, or failed"
            )
        inside += any((workdir / "checkpoints").glob(".*"))
    _, status = os.waitpid(live(arguments, slowly=False), 0)
    return {"killed": kills, "inside_a_write": inside, "last_status": status}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
