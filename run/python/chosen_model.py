"""The model of a run with the weights, the conditions and the guidance that arguments in Python choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run.builders.inference import with_conditions
from score_diffusion.run.config import apply_overrides
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.python.arguments import Label, Prompt, Settings, label_text, prompt_text


class ModelChoice:
    """Chooses among the models that one run can be: other averages, other checkpoints, other conditions.

    Args:
        config: The configuration of the run.
        load: Loads the model with the weights that the section `sampling` of a configuration chooses.
        path: The run directory.
    """

    def __init__(self, config: ConfigDict, load: Callable[[ConfigDict], TrainedModel], path: Path) -> None:
        self._config, self._load, self._path = config, load, path
        self._loaded: dict[tuple[object, ...], TrainedModel] = {}

    def unconditioned(self, config: ConfigDict | None = None) -> TrainedModel:
        """The model with the weights that a configuration chooses, loaded once; None for the run's own."""
        config = config or self._config
        section = config.sampling
        key = (section.checkpoint, section.ema, section.ema_sigma_rel)
        if key not in self._loaded:
            self._loaded[key] = self._load(config)
        return self._loaded[key]

    def chosen(
        self,
        named: Settings,
        label: Label | None,
        prompt: Prompt | None,
        settings: Settings | None = None,
        complete: Callable[[TrainedModel, ConfigDict, Path], TrainedModel] = with_conditions,
    ) -> tuple[ConfigDict, TrainedModel]:
        """The configuration with some keys of `sampling` set, and the model under the conditions it chooses.

        Args:
            named: Keys of `sampling`; those that are None stay as they are in the run.
            label: The classes; None for those of the run.
            prompt: The texts; None for those of the run.
            settings: Further keys of `sampling`.
            complete: Adds conditions, and perhaps guidance.

        Raises:
            UserError: If a setting is unknown or has a wrong value, or the model has no such condition.
        """
        chosen = {key: value for key, value in named.items() if value is not None} | dict(settings or {})
        if label is not None:
            chosen["label"] = label_text(label)
        if prompt is not None:
            chosen["prompt"] = prompt_text(prompt)
        chosen = dict(sorted(chosen.items(), key=lambda item: item[0] != "sampler"))  # it resets the grid
        overrides = [(f"sampling.{key}", value) for key, value in chosen.items()]
        config = apply_overrides(self._config, overrides, "sample")
        return config, complete(self.unconditioned(config), config, self._path)

    def of_density(self, label: Label | None, prompt: Prompt | None) -> tuple[ConfigDict, TrainedModel]:
        """The model of p(x | class or text), or of p(x) where neither is given.

        Raises:
            UserError: If the model has no such condition, or knows no p(x) without one.
        """
        if self._config.model.upscale:
            raise UserError("this model enlarges images, and knows no p(x) without the small ones")
        training = self._config.training
        if label is not None or prompt is not None:
            return self.chosen({}, label, prompt)
        if training.conditional and not training.condition_dropout:
            raise UserError(
                "this model was trained with training.condition_dropout=0 and knows no p(x) without a "
                "condition: give the class of each sample as label, or its text as prompt"
            )
        return self.chosen({}, -1, None)
