"""The one exception that the command line turns into a sentence and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right; the message says what was required, what came and what to do."""
