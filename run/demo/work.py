"""What the page asks for: drawing samples, filling a mask in, scoring an image. Each sends messages.

frame      the states at an evaluation of the score, and the best guess E[x_0 | x_t] by Tweedie's formula
progress   evaluations so far
done       the result
"""

from __future__ import annotations

import copy
import shlex
import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from score_diffusion.run.config import apply_overrides, differing_keys, flatten, read_config
from score_diffusion.run.constructor_keys import NO_GUIDANCE
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.demo.pictures import Sheet, known_pixels, returned, sheet
from score_diffusion.run.demo.turns import Message, Turn
from score_diffusion.run.inference.sample_exports import shown_states
from score_diffusion.run.key_types import Values
from score_diffusion.run.python.run import Run
from score_diffusion.sde_lib import SDE, denoised_from

MOST_IMAGES, MOST_POINTS = 64, 2000  # samples of a drawing
FRAMES, FIGURES = 48, 16  # of a path, about; of points and signals, whose figures take longer
EVERY = 16  # evaluations between two messages of progress
LEAST_ALPHA = 1e-6  # below which nothing of the data is left in a state, and there is no best guess
FILLED_COLUMNS = 4  # of filled-in images, which stand next to the masked one
LEAST_DEVIATION = 1e-3  # that white stands for in a picture of deviations

TEXT = Values(kind=str)
DRAW = {
    "count": Values(kind=int, least=1, below=MOST_POINTS + 1),
    "sampler": TEXT,
    "nfe": Values(kind=int | None, least=1, below=10_001),
    "planned": Values(kind=int | None, least=1),
    "seed": Values(kind=int),
    "label": TEXT,
    "guidance": TEXT,
    "scale": Values(kind=float),
    "prompt": TEXT,
    "guiding_prompt": TEXT,
}
FILL = {
    "image": TEXT,
    "mask": TEXT,
    "count": Values(kind=int, least=2, below=17),
    "method": TEXT,
    "nfe": Values(kind=int, least=2, below=10_001),
    "seed": Values(kind=int),
    "label": TEXT,
    "prompt": TEXT,
}
SCORE = {"image": TEXT, "draws": Values(kind=int, least=1, below=65), "seed": Values(kind=int), "label": TEXT}
"""The fields of the requests."""


def _counted(evaluations: int, turn: Turn) -> int:
    """One evaluation more, of which the page hears from time to time."""
    if (evaluations + 1) % EVERY == 0:
        turn.emit({"kind": "progress", "evaluation": evaluations + 1})
    return evaluations + 1


@dataclass
class Path:
    """The way from noise to samples, sent as it is drawn, some of its evaluations.

    Args:
        turn: Whose work it is.
        sde: The SDE.
        data: The data of the run.
        count: Number of samples.
        planned: Evaluations of each; None where the sampler chooses its steps.
    """

    turn: Turn
    sde: SDE
    data: DataInfo
    count: int
    planned: int | None
    evaluations: int = 0
    others: int = 0
    columns: int | None = None
    """Of the sheets; None for nearly square ones."""

    def __call__(self, x: Tensor, t: Tensor, score: Tensor) -> None:
        """Sends the states x_t at times t with these scores, or leaves them out."""
        self.turn.check()
        if x.shape != (self.count, *self.data.shape):  # of other samples, which a method needs besides
            self.others = _counted(self.others, self.turn)
            return
        frames = FIGURES if len(self.data.shape) < 3 else FRAMES
        every = -(-(self.planned or 2 * self.evaluations) // frames) or 1
        if self.evaluations % every == 0:
            self.turn.emit(self._frame(x, t, score))
        self.evaluations += 1

    def _frame(self, x: Tensor, t: Tensor, score: Tensor) -> Message:
        time, states = t.max(), shown_states(self.sde, self.data.scaling, x, t)
        alpha, sigma = self.sde.alpha(time).item(), self.sde.sigma(time).item()
        guess = None
        if alpha > LEAST_ALPHA:
            denoised = self.data.scaling.model_to_user(denoised_from(self.sde, score, x, t))
            guess = self._picture(denoised)
        return {
            "kind": "frame",
            "evaluation": self.evaluations + 1,
            "planned": self.planned,
            "t": time.item(),
            "alpha": alpha,
            "sigma": sigma,
            "state": self._picture(states),
            "guess": guess,
        }

    def sheet(self, values: np.ndarray) -> Sheet:
        """A picture of samples, shape (n, *shape)."""
        return sheet(values, self.data, columns=self.columns)

    def _picture(self, values: Tensor) -> dict[str, object]:
        return self.sheet(values.cpu().numpy()).message()


def draw(run: Run, asked: dict, turn: Turn) -> Message:
    """Draws samples, those of `--mode sample` with the same settings.

    Args:
        run: The run.
        asked: Fields as in `DRAW`.
        turn: Whose work it is.
    """
    count = asked["count"] if len(run.data.shape) == 1 else min(asked["count"], MOST_IMAGES)
    settings: dict[str, object] = {}
    if asked["prompt"]:
        settings["prompt"] = asked["prompt"]
    if asked["guidance"] == "clip":
        settings["clip.prompt"] = asked["guiding_prompt"]
    guided = asked["guidance"] != NO_GUIDANCE
    path = Path(turn, run.sde, run.data, count, asked["nfe"] or asked["planned"])
    start = time.monotonic()
    samples = run.watched(path).sample(
        count,
        sampler=asked["sampler"],
        nfe=asked["nfe"],
        label=asked["label"] or None,
        guidance=asked["guidance"],
        scale=asked["scale"] if guided else None,
        seed=asked["seed"],
        batch_size=count,
        settings=settings,
    )
    return {
        "kind": "done",
        "sheet": sheet(samples.samples, samples.data).message(),
        "names": None if samples.names is None else list(samples.names),
        "nfe": samples.nfe,
        "seconds": time.monotonic() - start,
        "command": command(run, asked | {"count": count}),
    }


def command(run: Run, asked: dict) -> str:
    """The command that draws the same samples."""
    options = {
        "--workdir": str(run.path),
        "--sampler": asked["sampler"],
        "--nfe": asked["nfe"],
        "--label": asked["label"],
        "--config.sampling.seed": asked["seed"],
        "--config.sampling.num_samples": asked["count"],
    }
    options["--prompt"] = asked["prompt"]
    if asked["guidance"] != NO_GUIDANCE:
        options |= {"--guidance": asked["guidance"], "--scale": asked["scale"]}
    if asked["guidance"] == "clip":
        options["--config.sampling.clip.prompt"] = asked["guiding_prompt"]
    changed = differing_keys(run.config, read_config(run.path))  # on the command line of the page
    sections = flatten(run.config)
    options |= {f"--config.{key}": sections[key] for key in changed if key.startswith("sampling.")}
    given = [f"{name}={value}" for name, value in options.items() if value not in (None, "")]
    return shlex.join(["score-diffusion", "--mode", "sample", *given])


def fill(run: Run, asked: dict, turn: Turn) -> Message:
    """Fills the masked pixels of an image in: posterior samples by the run's restoring, without noise.

    Args:
        run: The run, of images.
        asked: Fields as in `FILL`.
        turn: Whose work it is.
    """
    image, known = returned(asked["image"], run.data), known_pixels(asked["mask"], run.data)
    if asked["prompt"]:
        run = copy.copy(run)
        run.config = apply_overrides(run.config, [("sampling.prompt", asked["prompt"])], "restore")
    path = Path(turn, run.sde, run.data, asked["count"], asked["nfe"], columns=FILLED_COLUMNS)
    start = time.monotonic()
    restored = run.watched(path).restore(
        image,
        "inpaint",
        known=known,
        noise=0.0,
        method=asked["method"],
        nfe=asked["nfe"],
        num_samples=asked["count"],
        label=asked["label"] or None,
        seed=asked["seed"],
        settings={"batch_size": asked["count"]},
    )
    deviation = restored.deviation.mean(1, keepdims=True)  # over channels
    most = max(float(deviation.max()), LEAST_DEVIATION)
    return {
        "kind": "done",
        "sheet": path.sheet(restored.samples[0]).message(),
        "mean": sheet(restored.mean, run.data).message(),
        "deviation": sheet(deviation, run.data, (0.0, most)).message(),
        "most": most,
        "nfe": restored.nfe,
        "seconds": time.monotonic() - start,
    }


def score(run: Run, asked: dict, turn: Turn) -> Message:
    """Scores an image: bits/dim and log-probability with the standard error of some repetitions.

    Args:
        run: The run, of images.
        asked: Fields as in `SCORE`.
        turn: Whose work it is.
    """
    evaluations = 0

    def progress(x: Tensor, t: Tensor, score: Tensor) -> None:
        nonlocal evaluations
        turn.check()
        evaluations = _counted(evaluations, turn)

    image, start = returned(asked["image"], run.data), time.monotonic()
    result = run.watched(progress).log_likelihood(
        image,
        label=asked["label"] or None,
        seed=asked["seed"],
        settings={"n_draws": asked["draws"], "batch_size": 1},
    )
    error = None if result.standard_error is None else float(result.standard_error[0])
    return {
        "kind": "done",
        "bits_per_dim": float(result.bits_per_dim[0]),
        "standard_error": error,
        "log_prob": float(result.log_prob[0]),
        "nfe": result.nfe,
        "seconds": time.monotonic() - start,
    }
