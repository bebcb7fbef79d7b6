"""A trained system in Python: `system = load_system("runs/cascade_mnist")`, then `system.sample(16)`.

The samples are bit for bit those of `--mode sample`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from score_diffusion.run.distributed.devices import pick_device
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.python.arguments import Label, Prompt, Settings, label_text, prompt_text
from score_diffusion.run.python.results import Samples
from score_diffusion.run.python.run import Run, load_run
from score_diffusion.run.systems.configuration import read_stages
from score_diffusion.run.systems.kinds import load_chain
from score_diffusion.run.systems.samples import draw_all
from score_diffusion.run.systems.system import is_system, read_system


@dataclass(frozen=True)
class SystemSamples(Samples):
    """What a system draws in the end, and what each of its stages drew."""

    after: Mapping[str, np.ndarray] | None = None
    """Floating point (n, *shape), by the name of the stage."""


class System:
    """A trained system of several runs.

    Args:
        path: Its directory.
        device: "auto" for CUDA where there is one, "cuda" or "cpu".

    Raises:
        UserError: If the directory holds no system.
    """

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        self.path, self.device = expanded(str(path)), device
        if not is_system(self.path):
            raise UserError(f"{self.path} holds no system of several runs: load one run with load_run")
        self._system = read_system(self.path)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of its stages."""
        return self._system.stages

    def __repr__(self) -> str:
        return f"System({str(self.path)!r}: {self._system.kind} of {', '.join(self.stages)})"

    def stage(self, name: str) -> Run:
        """The run of a stage.

        Raises:
            UserError: If there is no such stage, or it is not trained.
        """
        if name not in self.stages:
            raise UserError(f"{self.path} has no stage {name!r}; choose one of {', '.join(self.stages)}")
        return load_run(self._system.stage(name), self.device)

    def sample(
        self,
        n: int | None = None,
        *,
        label: Label | None = None,
        prompt: Prompt | None = None,
        nfe: int | None = None,
        seed: int | None = None,
        settings: Settings | None = None,
    ) -> SystemSamples:
        """Draws samples through all stages, those of `--mode sample` with the same settings. What is None is
        as in the runs.

        Args:
            n: Number of samples.
            label: The classes that are drawn, in turn.
            prompt: The texts that are drawn, in turn.
            nfe: Network evaluations per sample in each stage at most.
            seed: Sample k depends on the seed, k and its class or text only.
            settings: Further keys of `sampling`, {"cfg.scale": 2.0} of all stages, {"x28.cfg.scale": 2.0} of
                one.

        Raises:
            UserError: If a stage is not trained or they do not fit each other, or a setting is wrong.
        """
        named: dict[str, object] = dict(num_samples=n, nfe=nfe, seed=seed)
        named["label"] = None if label is None else label_text(label)
        named["prompt"] = None if prompt is None else prompt_text(prompt)
        chosen = {key: value for key, value in named.items() if value is not None} | dict(settings or {})
        overrides = [(self._full_name(key), value) for key, value in chosen.items()]
        stages = read_stages(self._system, overrides, "sample")
        chain = load_chain(self._system, stages, pick_device(self.device))
        drawn = draw_all(chain)
        assert drawn is not None  # there is one process
        samples, last = drawn[0], list(drawn[0].values())[-1]
        labels = chain.conditions.labels(len(last.samples))
        return SystemSamples(
            last.samples,
            sum(stage.nfe for stage in samples.values()),
            chain.last.data,
            None if labels is None else labels.numpy(),
            chain.conditions.names(len(last.samples)),
            {name: stage.samples for name, stage in samples.items()},
        )

    def _full_name(self, key: str) -> str:
        stage, _, rest = key.partition(".")
        return f"{stage}.sampling.{rest}" if stage in self.stages and rest else f"sampling.{key}"


def load_system(path: str | Path, device: str = "auto") -> System:
    """The trained system of a directory; arguments and errors as for `System`."""
    return System(path, device)
