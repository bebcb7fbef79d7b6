"""What a trained model is conditioned on: classes chosen by name or index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from score_diffusion.models.conditions import null_condition
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.errors import UserError

ALL, NONE = "all", "-1"
LISTED = 20  # classes in a message


def chosen_conditions(
    label: str, sizes: Mapping[str, int], info: DataInfo, conditional: bool
) -> SampleConditions:
    """What samples are conditioned on.

    Args:
        label: sampling.label: class names or indices, "all" or "-1".
        sizes: The kinds of conditions that the network takes, with their sizes.
        info: The data of the run, with the names of the classes.
        conditional: Whether training conditioned the model.

    Raises:
        UserError: If the network has no such class, or its classes were never trained.
    """
    asks_for_classes = label not in (ALL, NONE)
    if asks_for_classes and "label" not in sizes:
        raise UserError(f"sampling.label={label} needs a network with classes, and this one has none")
    if asks_for_classes and not conditional:
        raise UserError(
            f"sampling.label={label} needs a model that was trained with class labels, and this one was "
            "trained without: set sampling.label=-1"
        )
    if not sizes or not conditional:
        return SampleConditions()
    if label == NONE:
        return unconditional(sizes, info)
    labels = range(sizes["label"]) if label == ALL else parse_labels(label, info.classes, sizes["label"])
    return SampleConditions.of_classes(labels, info.classes)


def unconditional(sizes: Mapping[str, int], info: DataInfo) -> SampleConditions:
    """The null condition for all samples."""
    return SampleConditions(null_condition(sizes, info.shape[1:]), info.classes)


def parse_labels(text: str, classes: Sequence[str], count: int) -> list[int]:
    """The class indices that a text names: one class, or several separated by commas.

    A class is named by its name or its index. Where names are numbers, they are what is meant.

    Args:
        text: The text.
        classes: Names of the classes; empty if they have none.
        count: Number of classes.

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
        listed = ", ".join([*by_name][:LISTED]) + (", ..." if len(by_name) > LISTED else "")
        names = f"{listed}" if not by_index else f"0 to {count - 1}" + (f" or {listed}" if listed else "")
        raise UserError(
            f"sampling.label must be classes of the {count} that the network has, {names}; got {wrong!r}"
        )
    return labels
