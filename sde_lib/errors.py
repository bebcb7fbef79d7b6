"""The one exception for what a caller can put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An argument or a result that the caller can put right.

    The message says what was required, what came and what to do. A program can show it as one sentence; any
    other exception is a fault of the code and deserves its traceback.
    """


def check_name(kind: str, name: str, names: Iterable[str]) -> None:
    """Refuses a name that is none of these.

    Args:
        kind: What it names, for the message: "sampler".
        name: The name.
        names: All names that there are.

    Raises:
        InputError: If it is none of them; the message shows five at most, those that are spelled alike.
    """
    names = list(names)
    if name not in names:
        close = names if len(names) <= 5 else difflib.get_close_matches(name, names, 5) or names[:5]
        count = "" if close == names else f"{len(names)} names, such as "
        raise InputError(f"{kind} must be one of {count}{', '.join(close)}, got {name!r}")
