"""What the machine has, and what is said before work starts that needs more of it.

memory    refused, with what is needed and what there is
time      days of work are announced
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from score_diffusion.run.console import warn
from score_diffusion.run.errors import UserError

CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
DAY = 86_400.0  # seconds
LOWER = {  # what needs less memory, by mode
    "train": "lower training.batch_size, raise training.accumulate, or choose a smaller network",
    "sample": "lower sampling.batch_size or sampling.num_samples",
    "likelihood": "lower likelihood.batch_size or likelihood.n_probes",
    "evaluate": "lower sampling.num_samples or sampling.batch_size",
    "data": "lower data.memory_gib or data.image_size",
}
OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "allocation fail")  # in texts of errors


def machine_memory(device: str = "cpu") -> tuple[int, str]:
    """Bytes of memory that a process may have, and whose they are in words.

    Args:
        device: "cuda" for the GPU's memory, if there is one.
    """
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "GPU"
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or no limit
            limits.append(int(Path(path).read_text()))
    of_process = resource.getrlimit(resource.RLIMIT_AS)[0]
    if of_process != resource.RLIM_INFINITY:
        limits.append(of_process)
    return min(limits), "machine"


def refuse_beyond_memory(needed: float, what: str, advice: str, device: str = "cpu") -> None:
    """Refuses what needs more memory than there is; memory in use by others is not looked at.

    Args:
        needed: Bytes, rather too few than too many.
        what: What needs them, the subject of the message.
        advice: What to do.
        device: Where, "cpu" or "cuda".

    Raises:
        UserError: If the memory does not suffice; the message says how much is needed and how much there is.
    """
    memory, where = machine_memory(device)
    if needed > memory:
        raise UserError(
            f"{what} takes {in_words(needed)} of memory and this {where} has {in_words(memory)}: {advice}"
        )


def in_words(count: float) -> str:
    """A number of bytes in MiB, or in GiB from 1 GiB on."""
    if count > 2**60:
        return "more than 1,000,000,000 GiB"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def warn_of_days(seconds: float, what: str, advice: str) -> None:
    """Says on stderr that work will take more than a day, if it will."""
    if seconds > DAY:
        days = seconds / DAY
        about = f"{days:,.1f} days" if days < 365 else f"{days / 365:,.0f} years"
        warn(f"{what} will take about {about}: {advice}")


@contextlib.contextmanager
def memory_explained(mode: str) -> Iterator[None]:
    """Turns a failed allocation, of PyTorch or of NumPy, into a sentence that names what to lower.

    Raises:
        UserError: If memory runs out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in text for words in OUT_OF_MEMORY):
            raise
        advice = LOWER.get(mode, "free some memory")
        raise UserError(f"not enough memory: {advice} ({text[:200] or 'memory ran out'})") from error
