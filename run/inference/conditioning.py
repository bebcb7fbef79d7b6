"""What a trained model is conditioned on: classes chosen by name or index, and a user's own conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from score_diffusion.models.conditions import null_condition
from score_diffusion.run.data.condition_files import name_of
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.vocabulary import Vocabulary
from score_diffusion.run.errors import UserError, some_of

ALL, NONE = "all", "-1"
OWN = ("vector", "tokens", "image")  # kinds of a user's own conditions that have a size


def chosen_conditions(
    label: str,
    sizes: Mapping[str, int],
    info: DataInfo,
    conditional: bool,
    read_given: Callable[[], dict[str, Tensor]],
    vocabulary: Vocabulary | None = None,
) -> SampleConditions:
    """What samples are conditioned on.

    Args:
        label: sampling.label: class names or indices, "all" or "-1".
        sizes: The kinds of conditions that the network takes, with their sizes.
        info: The data of the run, with the names of the classes.
        conditional: Whether training conditioned the model.
        read_given: Reads prompts or a user's own conditions, where the network takes such, perhaps with
            classes.
        vocabulary: How the model reads texts; None for a model that was trained without.

    Raises:
        UserError: If the network has no such class, its classes were never trained, or the conditions that
            were read are not those that the network takes.
    """
    asks_for_classes = label not in (ALL, NONE)
    if asks_for_classes and "label" not in sizes:
        raise UserError(
            f"sampling.label={label} needs a network with classes, and this one has none: set it to all"
        )
    if asks_for_classes and not conditional:
        raise UserError(
            f"sampling.label={label} needs a model that was trained with class labels, and this one was "
            "trained without: set sampling.label=-1"
        )
    if not sizes or not conditional:
        return SampleConditions()
    if label == NONE:
        return unconditional(sizes, info, vocabulary)
    rows: dict[str, Tensor] = {}
    if set(sizes) - {"label"}:
        rows = check_kinds(read_given(), sizes, "the conditions to draw under", vocabulary)
    if "label" in sizes and (asks_for_classes or "label" not in rows):
        count = len(info.classes) or sizes["label"]  # the network may have more than the data
        labels = parse_labels(label, info.classes, count) if asks_for_classes else range(count)
        rows["label"] = torch.tensor(labels)
    return SampleConditions(rows, info.classes, vocabulary)


def takes_text(sizes: Mapping[str, int], vocabulary: Vocabulary | None) -> bool:
    """Whether a network that takes these kinds of conditions is given texts, as ids or as encodings."""
    return "text" in sizes or (vocabulary is not None and {*vocabulary.condition_sizes} <= {*sizes})


def check_kinds(
    rows: Mapping[str, Tensor], sizes: Mapping[str, int], what: str, vocabulary: Vocabulary | None = None
) -> dict[str, Tensor]:
    """The conditions that a network takes; labels may be missing, or be there although it takes none.

    Args:
        rows: The conditions by kind, texts as ids.
        sizes: The kinds that the network takes, with their sizes.
        what: What to call the conditions in a message.
        vocabulary: How the model reads texts; None for a model that was trained without.

    Raises:
        UserError: If other ones are missing, are not taken, or are of other sizes.
    """
    kept = {"label": "label" in sizes, "text": takes_text(sizes, vocabulary)}
    rows = {kind: values for kind, values in rows.items() if kept.get(kind, True)}
    if kept["text"] and "text" not in rows:
        raise UserError(f"{what} must be captions, as the network takes them: name data with captions")
    found = {kind: values.shape[1 if kind == "image" else -1] for kind, values in rows.items() if kind in OWN}
    of_text = {} if vocabulary is None else vocabulary.condition_sizes
    expected = {kind: size for kind, size in sizes.items() if kind in OWN and kind not in of_text}
    if found != expected:
        raise UserError(
            f"{what} must be {_in_words(expected)}, as the network takes them, got {_in_words(found)}"
        )
    if "label" in rows and int(rows["label"].max()) >= sizes["label"]:
        raise UserError(
            f"{what} have class {int(rows['label'].max())}, and the network has {sizes['label']}, from 0 on"
        )
    return rows


def _in_words(sizes: Mapping[str, int]) -> str:
    units = {"vector": "entries", "tokens": "entries each", "image": "channels"}
    return ", ".join(f"{name_of(kind)} of {size} {units[kind]}" for kind, size in sizes.items()) or "none"


def unconditional(
    sizes: Mapping[str, int], info: DataInfo, vocabulary: Vocabulary | None
) -> SampleConditions:
    """The null condition for all samples."""
    return SampleConditions(null_condition(sizes, info.shape), info.classes, vocabulary)


def parse_labels(text: str, classes: Sequence[str], count: int, key: str = "sampling.label") -> list[int]:
    """The class indices that a text names: one class, or several separated by commas.

    A class is named by its name or its index. Where names are numbers, they are what is meant.

    Args:
        text: The text.
        classes: Names of the classes; empty if they have none.
        count: Number of classes.
        key: What to call the text in a message.

    Raises:
        UserError: If there is no such class.
    """
    by_name = {name: k for k, name in enumerate(classes[:count])}
    if text in by_name:  # a name may have a comma
        return [by_name[text]]
    by_index = {} if any(name.isdecimal() for name in by_name) else {str(k): k for k in range(count)}
    known = by_index | by_name
    labels = [known.get(part.strip(), -1) for part in text.split(",")]
    if -1 in labels:
        wrong = text.split(",")[labels.index(-1)].strip()
        named = some_of(wrong, by_name)
        names = f"{named}" if not by_index else f"0 to {count - 1}" + (f" or {named}" if named else "")
        raise UserError(f"{key} must be classes that the model knows, {names}; got {wrong!r}")
    return labels
