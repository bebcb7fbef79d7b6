"""What the site makes of docstrings, which are plain text with code in backticks."""

from __future__ import annotations

import re

import griffe

TOGETHER = re.compile(r"^( +)((?:\w+, )+\w+): (.*(?:\n\1 +.*)*)", re.M)
REFERENCES = re.compile(r"^References?:\n(?: +.*\n?)+", re.M)
CODE = re.compile(r"(`[^`]*`|^ {4,}.*$)", re.M)


class PlainDocstrings(griffe.Extension):
    """Escapes what Markdown would take for its own, and makes lists of references and arguments."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = escaped(listed(separated(obj.docstring.value)))


def separated(text: str) -> str:
    """The text with `a: As for X.` and `b: As for X.` where it has `a, b: As for X.`."""
    return TOGETHER.sub(
        lambda match: "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", ")), text
    )


def listed(text: str) -> str:
    """The text with a list of its references: each begins at the section's indentation."""
    return REFERENCES.sub(lambda match: re.sub(r"^ {4}(?=\S)", "    - ", match[0], flags=re.M), text)


def escaped(text: str) -> str:
    """The text whose * and < are shown as they are."""
    parts = CODE.split(text)
    return "".join(part if i % 2 else re.sub(r"[*<]", r"\\\g<0>", part) for i, part in enumerate(parts))
