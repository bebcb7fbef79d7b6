"""The exception that the command line turns into a sentence and exit code 2, and names for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_SUGGESTED = 5


class UserError(ValueError):
    """Something the user can put right; the message says what was required, what came and what to do."""


def some_of(given: str, names: Iterable[str]) -> str:
    """Names for a message about one that is not among them: "a, b, c", or "26 names, such as a, b".

    Of more than five only those are shown that are spelled alike, or the first five if there are none.
    """
    names = list(names)
    if len(names) <= MOST_SUGGESTED:
        return ", ".join(names)
    nearest = difflib.get_close_matches(given, names, MOST_SUGGESTED) or names[:MOST_SUGGESTED]
    return f"{len(names)} names, such as {', '.join(nearest)}"
