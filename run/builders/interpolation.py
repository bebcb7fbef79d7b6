"""From a configuration to interpolations: the model, the pairs of samples, the flow between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.build import data_options
from score_diffusion.run.builders.data import load_shown_data
from score_diffusion.run.builders.inference import load_unconditioned, trains_conditions, with_conditions_if
from score_diffusion.run.data.inputs import HELD_OUT, InputReader
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.conditioning import ALL
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import ODESampler


@dataclass(frozen=True)
class Pairs:
    """Pairs of samples that paths lead between."""

    ends: Tensor
    """In the units of the model, float32 (n, 2, *shape)."""
    names: list[tuple[str, str]]
    found: int
    """How many samples there are to make pairs of."""

    def __len__(self) -> int:
        return len(self.ends)


def load_for_paths(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The model of a run under the condition of each pair: its class or prompt where some are named.

    Without any named, held-out data of a model of classes are interpolated within each class in turn, and
    everything else under the null condition.

    Raises:
        UserError: If there are no such conditions, or the model knows nothing without one.
    """
    if config.model.upscale:
        raise UserError("this model enlarges images, and knows no path between two of other small ones")
    trained, section = load_unconditioned(workdir, config, device), config.sampling
    within_classes = (
        config.interpolate.input == HELD_OUT
        and condition_sizes(trained.score).keys() == {"label"}
        and trains_conditions(config, trained.data)
    )
    named = section.label != ALL or section.prompt or section.prompts or section.conditions
    return with_conditions_if(bool(named) or within_classes, trained, config, workdir)


def build_flow(section: ConfigDict, trained: TrainedModel) -> ODESampler:
    """The probability flow of a section `interpolate`, with a step size for each sample."""
    return ODESampler(trained.sde, rtol=section.rtol, atol=section.atol)


def build_pairs(config: ConfigDict, trained: TrainedModel) -> Pairs:
    """The pairs that a section `interpolate` asks for, as many as there are of those.

    Held-out pairs are of the class that the model is conditioned on.

    Raises:
        UserError: If files cannot be read or do not fit the run's data, or there is no pair.
    """
    section, options, shown = config.interpolate, data_options(config.data), trained.shown
    if section.input != HELD_OUT:
        inputs = InputReader(options, shown.scaling, 2 * section.num_pairs).truth(section.input, shown.shape)
        x, count = trained.from_user(inputs.samples), len(inputs.samples) // 2
        if not count:
            raise UserError(f"a path needs two ends, and {section.input} holds one sample: name more files")
        names = list(zip(inputs.names[::2], inputs.names[1::2], strict=False))
        return Pairs(x[: 2 * count].unflatten(0, (count, 2)), names, inputs.found)
    dataset = load_shown_data(config.data, trained.data)
    classes = trained.conditions.labels(section.num_pairs)
    labels = dataset.test_conditions.get("label")
    if classes is not None and labels is None and (classes >= 0).any():
        raise UserError(
            f"pairs of a class are asked for, and the held-out samples of {dataset.name!r} have no labels: "
            "name data with labels, --config.data.path=, or set --label -1"
        )
    chosen = _pairs_of_classes(
        [None] * section.num_pairs if classes is None else classes.tolist(),
        range(len(dataset.test)) if labels is None else labels.tolist(),
    )
    if not chosen:
        if classes is None:
            raise UserError(
                f"a pair takes two held-out samples, and there are {len(dataset.test)}: name files, or data "
                "with more"
            )
        raise UserError("the held-out data have no two samples of the class: name another class or files")
    stored = torch.stack([dataset.test[index : index + 1] for pair in chosen for index in pair])
    x = trained.model_inputs(stored.squeeze(1)).float()
    names = [(f"{a}", f"{b}") for a, b in chosen]
    return Pairs(x.unflatten(0, (len(chosen), 2)), names, len(dataset.test))


def _pairs_of_classes(classes: Sequence[int | None], labels: Sequence[int]) -> list[tuple[int, int]]:
    """For each class in turn the next two samples of it, as long as there are two; None or -1 for any."""
    left: dict[int | None, list[int]] = {None: list(range(len(labels)))[::-1]}
    for index, label in reversed(list(enumerate(labels))):
        left.setdefault(label, []).append(index)
    pairs = []
    for wanted in classes:
        free = left.get(None if wanted == -1 else wanted, [])
        if len(free) < 2:
            break
        pairs.append((free.pop(), free.pop()))
    return pairs
