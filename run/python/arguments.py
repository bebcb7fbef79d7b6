"""Arguments of a `Run` and a `System`, and how the section `sampling` spells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from score_diffusion.run.errors import UserError

Label = int | str | Sequence[int | str]
"""One class by index or name, or several that the samples take in turn; -1 for no class."""
Prompt = str | Sequence[str]
"""One text, or several that the samples take in turn."""
Settings = Mapping[str, object]
"""Further keys of a section of the configuration: {"pc.snr": 0.2, "denoise": False} of `sampling`."""


def label_text(label: Label) -> str:
    """Classes as `--label` spells them."""
    labels = [label] if isinstance(label, int | str) else label
    return ",".join(map(str, labels))


def prompt_text(prompt: Prompt) -> str:
    """Texts as `--prompt` has them, one on each line.

    Raises:
        UserError: If there is none, or one is empty.
    """
    texts = [" ".join(text.split()) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    if not all(texts) or not texts:
        raise UserError(
            f"prompt must be a text or several, none of them empty, got {prompt!r}: to draw without one, set "
            "label=-1"
        )
    return "\n".join(texts)
