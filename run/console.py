"""What the commands say on the terminal: progress bars and the aligned block that ends every mode."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from tqdm import tqdm

from score_diffusion.run.distributed.processes import is_rank_0

_silent = False


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Shows nothing but warnings and errors in the block."""
    global _silent
    before, _silent = _silent, True
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        _silent = before


def progress_bar(
    total: int | None, title: str, unit: str, initial: int = 0, delay: float = 0.0, leave: bool = True
) -> tqdm:
    """A bar with rate and remaining time; in a log file one line every 10 s instead of ten a second.

    Work that ends within `delay` seconds shows none; `leave` keeps the bar on the screen afterwards. Only
    rank 0 shows it.
    """
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        initial=initial,
        delay=delay,
        leave=leave,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
        disable=_silent or not is_rank_0(),
    )


def advance_to(bar: tqdm, position: int, total: int) -> None:
    """Moves a bar to a position of a total, both of which only became known now."""
    bar.total = total
    bar.update(position - bar.n)


def warn(message: str) -> None:
    """Prints something that does not end the command to stderr, on rank 0 only."""
    if is_rank_0():
        print("warning:", " ".join(message.split()), file=sys.stderr)  # names of files may hold line breaks


def format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m {seconds:02d}s" if hours else f"{minutes}m {seconds:02d}s"


def print_result(title: str, rows: list[tuple[str, object]]) -> None:
    """Prints rows (name, value) under a title, the values aligned; the last thing every mode does."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of cells, the first one a header, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()
