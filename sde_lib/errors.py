"""The one exception for what a caller can put right."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or a result that the caller can put right.

    The message says what was required, what came and what to do. A program can show it as one sentence; any
    other exception is a fault of the code and deserves its traceback.
    """
