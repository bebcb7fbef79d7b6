"""The run directory as a training finds it: is it in use, has it trained, did an earlier start leave files?

.training.lock    locked while a training runs, with its process; the system unlocks it when that ends
progress.json     step of the newest checkpoint: tells checkpoints that cannot be seen from none
leftovers-N/      files of a start that did not reach its first checkpoint, moved aside
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.console import warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.training.interruptions import SKIPPED_FOLDER
from score_diffusion.run.training.log import CSV_FILE, LOG_FILE, LOSS_CURVE
from score_diffusion.run.training.post_hoc_averages import SNAPSHOT_FOLDER

LOCK_FILE = ".training.lock"
PROGRESS_FILE = "progress.json"
PROGRESS_FIELDS = {"step": Values(kind=int, least=0)}
PREVIEWS = "samples/step_*.png"
LEFTOVERS = (LOG_FILE, CSV_FILE, LOSS_CURVE, SNAPSHOT_FOLDER, SKIPPED_FOLDER, PREVIEWS)


def preview_path(workdir: Path, step: int) -> Path:
    """Where the picture of samples of a step is."""
    return workdir / PREVIEWS.replace("*", f"{step:08d}")


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of a run directory, which is created if need be. Every rank calls it.

    Raises:
        UserError: If another training is running there.
    """
    files: list[IO[str]] = []
    processes.from_rank_0(lambda: files.append(_lock(workdir)))
    for file in files:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"process {os.getpid()} on {socket.gethostname()}, since {since}", file=file, flush=True)
    try:
        yield
    finally:
        for file in files:
            file.truncate(0)
            file.close()


def refuse_if_locked(workdir: Path) -> None:
    """An early check, which does not create the directory.

    Raises:
        UserError: If another training is running there.
    """
    processes.from_rank_0(lambda: _lock(workdir).close() if (workdir / LOCK_FILE).exists() else None)


def _lock(workdir: Path) -> IO[str]:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / LOCK_FILE, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "an unknown process"
        file.close()
        raise UserError(
            f"another training is running in {workdir} ({owner}): wait for it, stop it, or give another "
            "--workdir"
        ) from error
    except OSError as error:
        warn(f"{workdir} cannot be locked ({error.strerror}): start no second training in it")
    return file


def record_progress(workdir: Path, step: int) -> None:
    """Records that a checkpoint of this step is complete."""
    write_json(workdir / PROGRESS_FILE, {"format": 1, "step": step})


def refuse_if_checkpoints_vanished(workdir: Path) -> None:
    """To be called where no checkpoint is seen, before training starts from step 0.

    Raises:
        UserError: If a training has written checkpoints here.
    """
    path = workdir / PROGRESS_FILE
    if not path.exists():
        return
    advice = (
        f"restore or mount that folder; to train from the beginning give another --workdir, or remove {path}"
    )
    missing = f"no checkpoint is found in {workdir / checkpoint.FOLDER}"
    step = read_json(path, PROGRESS_FIELDS, f"{missing}, {advice}")["step"]
    raise UserError(f"{workdir} was trained up to step {step:,}, and {missing}: {advice}")


def move_leftovers_aside(workdir: Path) -> Path | None:
    """Moves the files of a start that did not reach its first checkpoint to a folder of their own.

    Returns:
        The folder; None if there are no such files.
    """
    left = [path for pattern in LEFTOVERS for path in sorted(workdir.glob(pattern))]
    if not left:
        return None
    folder = next(path for n in count(1) if not os.path.lexists(path := workdir / f"leftovers-{n}"))
    for path in left:
        target = folder / path.relative_to(workdir)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return folder
