"""What a run offers on the page: samplers, classes, guidance, prompts, and whether it has images."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from torch import Tensor

from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.build import grid_times
from score_diffusion.run.builders.guidance import GUIDES
from score_diffusion.run.builders.inference import trains_conditions
from score_diffusion.run.config import apply_overrides
from score_diffusion.run.constructor_keys import NO_GUIDANCE
from score_diffusion.run.demo.pictures import are_images
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.prompts import CAPTIONS_FILE, read_prompts
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.python.run import Run
from score_diffusion.run.tasks import method_of
from score_diffusion.samplers import SAMPLERS
from score_diffusion.samplers.inverse import METHODS
from score_diffusion.sde_lib import InputError

SUGGESTED = 40  # prompts
LIKELIHOOD = {
    "bits_per_dim": Values(kind=float),
    "standard_error": Values(kind=float | None),
    "training_steps": Values(kind=int),
}
ANY, NONE = "", "-1"
"""Labels: whatever the run does without one, and no class."""


@dataclass(frozen=True)
class SamplerChoice:
    name: str
    about: str
    """Kind and paper in words."""
    nfe: int | None
    """Evaluations of a sample by default; None where the sampler chooses its own steps."""


@dataclass(frozen=True)
class Guidance:
    name: str
    scale: float
    """By default."""
    has_prompt: bool
    """Whether it guides to a caption."""


@dataclass(frozen=True)
class Choices:
    """The controls of the page for one run, ready for JSON."""

    name: str
    about: str
    sampler: str
    """The run's own."""
    samplers: list[SamplerChoice]
    labels: list[tuple[str, str]]
    """For drawing, (what to send, what to show); empty without classes."""
    labels_of_images: list[tuple[str, str]]
    """The same for an image that is filled in or scored."""
    guidance: str
    guidances: list[Guidance]
    has_prompt: bool
    """Whether the network was trained with captions."""
    prompts: list[str]
    """Captions that it may draw."""
    methods: list[str]
    """That fill in, the run's own first; empty if samples are no images."""
    missing: str
    """Why there is no filling in and scoring; empty if there is."""
    size: tuple[int, ...]
    """Of a sample."""
    held_out_bits: tuple[float, float | None] | None = None
    """Bits/dim of held-out images, their standard error; None without a result for these weights."""


def choices_of(run: Run) -> Choices:
    """The choices of a run. Each guidance is tried, with one evaluation."""
    data, section = run.data, run.config.sampling
    conditional = trains_conditions(run.config, data)
    sizes = condition_sizes(run.score) if conditional else {}
    guidances = guidances_of(run)
    count = len(data.classes) or sizes.get("label", 0)
    named = [str(k) for k in range(count)] if not data.classes else list(data.classes)
    classes = [(name, name) for name in named]
    knows_none = run.config.training.condition_dropout > 0 or not data.num_train
    drawn = "label" in sizes or any(guidance.name == "classifier" for guidance in guidances)
    has_prompt = bool(data.text_length) and bool({"text", "tokens"} & {*sizes})
    images = are_images(data)
    own_method = method_of("inpaint", run.config.restore.method)
    return Choices(
        name=str(run.path),
        about=f"{run.sde}, {data}, {run.step:,} training steps",
        sampler=section.sampler,
        samplers=samplers_of(run),
        labels=_labels(classes, "each class in turn", knows_none or "label" not in sizes) if drawn else [],
        labels_of_images=_of_images(classes, knows_none) if "label" in sizes else [],
        guidance=section.guidance,
        guidances=guidances,
        has_prompt=has_prompt,
        prompts=_prompts(run) if has_prompt else [],
        methods=[own_method, *(name for name in METHODS if name != own_method)] if images else [],
        missing="" if images else _why_no_images(run),
        size=data.shape,
        held_out_bits=held_out_bits(run) if images else None,
    )


def _labels(classes: list[tuple[str, str]], otherwise: str, none: bool) -> list[tuple[str, str]]:
    return [(ANY, otherwise), *classes, *([(NONE, "no class")] if none else [])]


def _of_images(classes: list[tuple[str, str]], none: bool) -> list[tuple[str, str]]:
    return [(ANY, "not known"), *classes] if none else classes


def _why_no_images(run: Run) -> str:
    return f"Filling in and scoring are for grey and colour images, and this run has {run.data.kind}."


def samplers_of(run: Run) -> list[SamplerChoice]:
    """The samplers that serve the run's SDE, with the cost that they have by the run's settings."""
    found = []
    for name, spec in SAMPLERS.items():
        with contextlib.suppress(UserError, InputError):
            section = apply_overrides(run.config, [("sampling.sampler", name)], "sample").sampling
            times = grid_times(section, run.sde)
            options = section[name].to_dict() if name in section else {}
            sampler = spec.make(run.sde, times, denoise=section.denoise, **options)  # with its checks
            cost = spec.cost_with(options)
            others = cost.extra + sampler.denoise
            nfe = None if cost.per_step is None else cost.per_step * (len(times) - 1) + others
            kind = "SDE" if spec.stochastic else "ODE"
            found.append(SamplerChoice(name, f"{kind}: {spec.paper}", nfe))
    return found


class _Reached(Exception):
    """A guided score was evaluated."""


def guidances_of(run: Run) -> list[Guidance]:
    """The guidance methods that the run can be drawn with."""

    def reached(x: Tensor, t: Tensor, score: Tensor) -> None:
        raise _Reached

    found, section = [], run.config.sampling
    for name in GUIDES:
        prompt = {"clip.prompt": section.clip.prompt or "a"} if name == "clip" else {}
        with contextlib.suppress(UserError, InputError):
            try:
                run.watched(reached).sample(1, guidance=name, settings=prompt)
            except _Reached:
                found.append(Guidance(name, float(section[name].scale), name == "clip"))
    return [Guidance(NO_GUIDANCE, 0.0, False), *found]


def held_out_bits(run: Run) -> tuple[float, float | None] | None:
    """The result of `--mode likelihood` on the weights of the run; None without one."""
    for path in sorted(run.path.glob("likelihood*.json")):
        with contextlib.suppress(UserError):  # a damaged one, or one of another kind
            record = read_json(path, LIKELIHOOD, "run --mode likelihood again")
            if record["training_steps"] == run.step:
                return record["bits_per_dim"], record["standard_error"]
    return None


def _prompts(run: Run) -> list[str]:
    path = run.path / CAPTIONS_FILE
    return list(dict.fromkeys(read_prompts(path)))[:SUGGESTED] if path.is_file() else []
