"""Cascades: a model of small images, and models that enlarge them (Ho et al., 2021).

    base draws x of 7x7   ->   x14 draws 14x14 given x   ->   x28 draws 28x28 given what x14 drew

Each enlarging model is conditioned on the image before it with the noise of its *conditioning augmentation*,
see `run/data/low_resolution.py`, and on the class or the text that the first model drew.

References:
    Cascaded Diffusion Models for High Fidelity Image Generation (Ho et al., 2021),
        https://arxiv.org/abs/2106.15282.
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Sections 2.3 and 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.config import with_values
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.conditioning import ALL, NONE, takes_text
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.systems.chain import Chain, ScoreStage, StageRun, StageSamples, stage_seed

LOW = "low_resolution"


class Cascade(Chain):
    """A first model, and models that enlarge what the one before them drew.

    Args:
        runs: The run directories.
        stages: The models, in the same order.
    """

    def __init__(self, runs: Mapping[str, StageRun], stages: Sequence[ScoreStage]) -> None:
        super().__init__(runs)
        self.stages = stages

    @classmethod
    def load(cls, runs: Mapping[str, StageRun], device: torch.device) -> Cascade:
        """The cascade of some run directories.

        Raises:
            UserError: If the first stage enlarges, another one does not, or its images have another size than
                those that the stage before it draws.
        """
        first, *others = runs.values()
        if first.config.model.upscale:
            raise UserError(
                f"the first stage of a cascade draws images from noise, and {first.path} enlarges images "
                "(model.upscale)"
            )
        for run in others:
            if not run.config.model.upscale:
                raise UserError(
                    f"stage {run.name} of a cascade enlarges images, and {run.path} does not: train it with "
                    f"--config.{run.name}.model.upscale=2"
                )
        stages = [ScoreStage.load(first, device)]
        for run in others:
            stages.append(ScoreStage.load(_as_the_first(run, stages[0]), device))
            _check_fits(stages[-2], stages[-1], run)
        return cls(runs, stages)

    def draw(self, indices: range, seed: int) -> dict[str, StageSamples]:
        first, *others = self.stages
        drawn = {first.name: first.draw(indices, seed)}
        before = drawn[first.name]
        for stage in others:
            own_seed = stage_seed(seed, stage.name)
            given = _given(stage.trained, before, self.conditions, indices, own_seed)
            drawn[stage.name] = before = stage.draw(indices, own_seed, given)
        return drawn

    def facts(self) -> list[tuple[str, object]]:
        return [stage.fact() for stage in self.stages]

    @property
    def last(self) -> TrainedModel:
        return self.stages[-1].trained

    @property
    def conditions(self) -> SampleConditions:
        return self.stages[0].trained.conditions


def _as_the_first(run: StageRun, first: ScoreStage) -> StageRun:
    """A stage that draws without class or text where the first stage does, unless one is chosen for it."""
    section = run.config.sampling
    chosen = section.label != ALL or section.prompt or section.prompts
    if chosen or {"label", "text"} & {*first.trained.conditions.rows}:
        return run
    return replace(run, config=with_values(run.config, {"sampling.label": NONE}))


def _check_fits(before: ScoreStage, stage: ScoreStage, run: StageRun) -> None:
    """Refuses a stage that does not enlarge what the stage before it draws.

    Raises:
        UserError: If the images have another size or other channels, or the texts other words.
    """
    factor, drawn, own = run.config.model.upscale, before.trained.data, stage.trained.data
    needed = (own.shape[0], *(side // factor for side in own.shape[1:]))
    if drawn.shape != needed:
        raise UserError(
            f"stage {stage.name} enlarges images of shape {needed}, and stage {before.name} draws "
            f"{drawn.shape}: train one of them for the other"
        )
    if own.text_length and not own.reads_texts_as(drawn):
        raise UserError(
            f"stages {before.name} and {stage.name} were trained with captions of other words: train both "
            "with the same data and data.tokenizer"
        )
    classes = condition_sizes(stage.trained.score).get("label", 0)
    if classes and own.classes != drawn.classes:
        raise UserError(
            f"stages {before.name} and {stage.name} were trained with other classes: train both with the "
            "same data"
        )


def _given(
    trained: TrainedModel, before: StageSamples, conditions: SampleConditions, indices: range, seed: int
) -> TrainedModel:
    """A model under what the stage before it drew, and the class or the text that the first stage drew."""
    own, small = trained.conditions, trained.data.scaling.user_to_model(torch.from_numpy(before.samples))
    sizes = condition_sizes(trained.score)
    reads_text = takes_text(sizes, trained.vocabulary)
    rows = {
        kind: row for kind, row in conditions.rows.items() if kind in sizes or (kind == "text" and reads_text)
    }
    rows[LOW] = small.roll(indices.start % len(small), 0)  # sample k has row k mod n
    augmentation = None if own.augmentation is None else replace(own.augmentation, seed=seed)
    return replace(trained, conditions=replace(own, rows={**own.rows, **rows}, augmentation=augmentation))
