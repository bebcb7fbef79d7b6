"""Standard output and error whose faults do not end a command: closed, full, unread, in another encoding."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


def prepare_standard_streams() -> None:
    """Makes stdout and stderr accept any text at any time; to be called before anything is printed.

    Characters that the encoding lacks become ?. Where a stream is closed, or cannot be written any more
    because its reader has ended or its disk is full, the text is dropped, and the command continues.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: a file opened later must not get the number of a standard stream
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", closefd=False)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        setattr(sys, name, DroppingStream(stream))


class DroppingStream:
    """A text stream that drops its text once it cannot be written any more.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # encoding, fileno and so on
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Lets the stream's file be the null device, which also takes what is buffered."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
