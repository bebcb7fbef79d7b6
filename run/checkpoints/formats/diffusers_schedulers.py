"""diffusers' schedulers: the SDE, the prediction and the variance that one stands for.

What distinguishes schedulers otherwise is how they sample, which samplers here decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from score_diffusion.run.checkpoints.formats.settings import Settings
from score_diffusion.run.errors import UserError

SCHEDULER = "scheduler_config.json"
BETAS = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    **dict.fromkeys(("fixed_small", "fixed_small_log"), "small"),
    **dict.fromkeys(("fixed_large", "fixed_large_log"), "large"),
    "learned_range": "learned",
}
# Schedulers that read a table of betas; the first ones bound denoised samples by default.
CLIPPING_SCHEDULERS = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")
DDPM_SCHEDULERS = (
    *CLIPPING_SCHEDULERS,
    *("PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
SKIP_SCHEDULERS = ("ScoreSdeVeScheduler",)
STEPS = 100_000  # at most
FIRST_BETA, LAST_BETA = 1e-4, 0.02

DDPM_DEFAULTS: dict[str, object] = dict(
    num_train_timesteps=1000,
    beta_start=FIRST_BETA,
    beta_end=LAST_BETA,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
    thresholding=False,
    clip_sample_range=1.0,
)
SKIP_DEFAULTS: dict[str, object] = dict(num_train_timesteps=2000, sigma_min=0.01, sigma_max=1348.0)


@dataclass(frozen=True)
class Scheduler:
    """What a scheduler says of a network."""

    score: Mapping[str, object]
    """Arguments of ScoreModel after net and sde."""
    sde: Mapping[str, object]
    """A section `sde`."""
    variance: str = "small"
    """Of the reverse steps: "small", "large" or "learned"."""
    clip: float = 0.0
    """The bound on denoised samples; 0 for none."""
    notes: tuple[str, ...] = ()
    """What was assumed or left out."""


def describe_scheduler(
    folder: Path, in_channels: int, out_channels: int, skip: bool, centred: bool
) -> Scheduler:
    """The scheduler of a folder, next to the network's configuration or in a folder of its own.

    Args:
        folder: The folder of the network or the pipeline.
        in_channels: Channels of the images.
        out_channels: Channels of the network's output.
        skip: Whether the network has NCSN++'s form.
        centred: Whether the network brings its input from [0, 1] to [-1, 1].

    Raises:
        UserError: If the scheduler cannot be read, or stands for no SDE here.
    """
    candidates = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER)
    path = next((path for path in candidates if path.is_file()), None)
    defaults = SKIP_DEFAULTS if skip else DDPM_DEFAULTS
    if path is None:
        settings = Settings({}, defaults, f"{folder} without a scheduler")
    else:
        settings = Settings.from_json(path, defaults)
        settings.choice("_class_name", SKIP_SCHEDULERS if skip else DDPM_SCHEDULERS)
    found = (
        _variance_exploding(settings, in_channels, out_channels, centred)
        if skip
        else _ddpm(settings, in_channels, out_channels)
    )
    if path is not None:
        return found
    kind = SKIP_SCHEDULERS[0] if skip else DDPM_SCHEDULERS[0]
    noted = f"no {SCHEDULER} in the folder: the defaults of diffusers' {kind}"
    return Scheduler(found.score, found.sde, found.variance, found.clip, (noted, *found.notes))


def _ddpm(settings: Settings, in_channels: int, out_channels: int) -> Scheduler:
    settings.choice("trained_betas", (None,))
    settings.choice("rescale_betas_zero_snr", (False,))
    betas = BETAS[str(settings.choice("beta_schedule", tuple(BETAS)))]
    prediction = PREDICTIONS[str(settings.choice("prediction_type", tuple(PREDICTIONS)))]
    N = settings.integer("num_train_timesteps", 1, STEPS)
    sde: dict[str, object] = dict(name="ddpm", betas=betas, N=N)
    if betas != "cosine":
        first, last = settings.number("beta_start", 0, 1), settings.number("beta_end", 0, 1)
        if first > last:
            raise settings.refuse("beta_start", f"at most beta_end, {last:g}")
        if not (math.isclose(first, 1000 * FIRST_BETA / N) and math.isclose(last, 1000 * LAST_BETA / N)):
            sde |= dict(first_beta=first, last_beta=last)
    variance = _variance(settings, in_channels, out_channels)
    notes = []
    if settings.boolean("thresholding"):
        notes.append("left out: dynamic thresholding of denoised samples (thresholding)")
    score = dict(prediction=prediction, noise_input="position", learned_variance=variance == "learned")
    return Scheduler(score, sde, variance, _clip(settings), tuple(notes))


def _clip(settings: Settings) -> float:
    """The bound on denoised samples; 0 for none."""
    if settings.get("clip_sample") is None:
        clips = settings.get("_class_name") in (None, *CLIPPING_SCHEDULERS)
    else:
        clips = settings.boolean("clip_sample")
    return settings.number("clip_sample_range", above=0) if clips else 0.0


def _variance(settings: Settings, in_channels: int, out_channels: int) -> str:
    """The variance of the reverse steps; a learned one takes half of the output (Improved DDPM)."""
    if settings.get("variance_type") is None:
        settings.values["variance_type"] = (
            "learned_range" if out_channels == 2 * in_channels else "fixed_small"
        )
    variance = VARIANCES[str(settings.choice("variance_type", tuple(VARIANCES)))]
    required = 2 * in_channels if variance == "learned" else in_channels
    if out_channels != required:
        raise UserError(
            f"a network with in_channels = {in_channels} and out_channels = {out_channels} cannot be "
            f"converted with variance_type = {settings.get('variance_type')!r}: only as many channels out as "
            "in, or twice as many with 'learned_range'"
        )
    return variance


def _variance_exploding(settings: Settings, in_channels: int, out_channels: int, centred: bool) -> Scheduler:
    """ScoreSdeVe's SDE. Where the network centres its input, the data are in [0, 1] there: in [-1, 1] every σ
    is twice that.
    """
    if out_channels != in_channels:
        raise UserError(
            f"a network of NCSN++'s form must have as many channels out as in, {in_channels}, it has "
            f"{out_channels}"
        )
    scale = 2.0 if centred else 1.0
    smallest = settings.number("sigma_min", above=0, below=1e6)
    sde = dict(
        name="vesde",
        sigma_min=scale * smallest,
        sigma_max=scale * settings.number("sigma_max", above=smallest, below=1e6),
        N=settings.integer("num_train_timesteps", 2, STEPS),
    )
    noise_input = "log_half_noise_level" if centred else "log_noise_level"
    return Scheduler(dict(prediction="ve", noise_input=noise_input, learned_variance=False), sde)
