"""Drawing, filling in and scoring for the page: what Python gives, and the path as it is drawn."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion import load_run
from score_diffusion.run.demo.pictures import sheet
from score_diffusion.run.demo.turns import Message, Stopped, Turn
from score_diffusion.run.demo.work import FRAMES, draw, fill, score
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main
from score_diffusion.run.python.run import Run
from score_diffusion.sde_lib import InputError
from tests.run.demo.conftest import VARIANCE

DRAW = {
    **{"count": 5, "sampler": "eabm", "nfe": 9, "planned": 50, "seed": 3, "label": "", "guidance": "none"},
    **{"scale": 1.0, "prompt": "", "guiding_prompt": ""},
}
FILL = {"count": 3, "method": "moment_matching", "nfe": 9, "seed": 1, "label": "", "prompt": ""}
SCORE = {"draws": 3, "seed": 2, "label": ""}


def done(work: Callable[[Run, dict, Turn], Message], run: Run, asked: dict) -> tuple[list[Message], Message]:
    """The messages of some work, and the last one."""
    turn, messages = Turn("page"), []
    last = work(run, asked, turn)
    while not turn.messages.empty():
        messages.append(turn.messages.get())
    return messages, last


def picture(run: Run, seed: int = 0, count: int = 1) -> np.ndarray:
    """Samples of the run, brightness (n, 1, H, W)."""
    return run.sample(count, nfe=6, seed=seed).samples


def url(run: Run, image: np.ndarray) -> str:
    return str(sheet(image, run.data).message()["png"])


def test_the_samples_are_those_of_python(images: Run, pixels: Callable):
    _, last = done(draw, images, DRAW)
    expected = images.sample(5, sampler="eabm", nfe=9, seed=3)
    np.testing.assert_array_equal(pixels(last["sheet"])[..., 0], expected.values)
    assert last["kind"] == "done" and last["nfe"] == expected.nfe == 9 and last["names"] is None


def test_the_path_begins_with_noise_and_guesses_by_tweedie(images: Run, pixels: Callable):
    """For data N(0, v I) the best guess at x_t is α v/(α² v + σ²) x_t."""
    seen: list[torch.Tensor] = []
    images.watched(lambda x, t, score: seen.append(x)).sample(5, sampler="eabm", nfe=9, seed=3)
    frames, _ = done(draw, images, DRAW)
    assert [frame["evaluation"] for frame in frames] == list(range(1, 10))
    assert frames[0]["t"] == 1.0 and frames[0]["planned"] == 9
    for frame, x in zip(frames, seen, strict=True):
        alpha, sigma = frame["alpha"], frame["sigma"]
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-6)  # variance preserving
        guess = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x
        for name, values in (("state", x), ("guess", guess)):
            levels = (values[:, 0].clamp(-1, 1) + 1) * 127.5
            assert np.abs(pixels(frame[name])[..., 0] - levels.numpy()).max() < 0.52


def test_a_long_path_is_thinned(images: Run):
    for asked in ({"sampler": "euler", "nfe": 200}, {"sampler": "ode", "nfe": None, "planned": None}):
        frames, last = done(draw, images, DRAW | asked)
        evaluations = [frame["evaluation"] for frame in frames]
        assert FRAMES / 3 < len(frames) <= 2 * FRAMES, asked
        assert evaluations[0] == 1 and evaluations == sorted(evaluations)
        assert evaluations[-1] > 0.8 * last["nfe"]


def test_a_frame_without_anything_of_the_data_has_no_guess(images: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("score_diffusion.run.demo.work.LEAST_ALPHA", 0.5)
    frames, _ = done(draw, images, DRAW)
    assert [frame["guess"] is None for frame in frames] == [frame["alpha"] <= 0.5 for frame in frames]
    assert frames[0]["guess"] is None and frames[-1]["guess"] is not None


@pytest.mark.slow
def test_the_command_draws_the_same(trained: Path, pixels: Callable, monkeypatch: pytest.MonkeyPatch):
    run = load_run(trained)
    asked = DRAW | {"sampler": "pc", "nfe": 8, "seed": -4}
    _, last = done(draw, run, asked)
    program, *arguments = shlex.split(str(last["command"]))
    assert program == "score-diffusion" and main(arguments) == 0
    samples = np.load(trained / "samples/pc.npz")["samples"]
    np.testing.assert_array_equal(pixels(last["sheet"]), pixels(sheet(samples, run.data).message()))


def test_filling_in_keeps_what_is_known(images: Run, pixels: Callable):
    image = picture(images)
    known = np.random.default_rng(0).integers(2, size=(4, 4)).astype(bool)
    mask = "".join("0" if value else "1" for value in known.ravel())
    frames, last = done(fill, images, FILL | {"image": url(images, image), "mask": mask})
    filled, original = pixels(last["sheet"])[..., 0], pixels(sheet(image, images.data).message())[0, ..., 0]
    expected = images.restore(
        image, known=known, noise=0.0, method="moment_matching", nfe=9, num_samples=3, seed=1
    )
    np.testing.assert_array_equal(filled, expected.values[0])
    assert (filled[:, known] == original[known]).all() and (filled[0, ~known] != filled[1, ~known]).any()
    deviation = pixels(last["deviation"])[0, ..., 0]
    assert (deviation[known] == 0).all() and deviation.max() == 255
    assert last["most"] == pytest.approx(expected.deviation.max())
    assert len(frames) > 3 and frames[0]["state"]["count"] == 3


@pytest.mark.parametrize("method", ["repaint", "ddrm", "twisted"])
def test_other_methods_fill_in_too(method: str, images: Run, pixels: Callable):
    image = picture(images)
    asked = FILL | {"image": url(images, image), "mask": "1" * 8 + "0" * 8, "method": method}
    _, last = done(fill, images, asked)
    original = pixels(sheet(image, images.data).message())[0]
    assert (pixels(last["sheet"])[:, 2:] == original[2:]).all()


def test_a_score_is_that_of_python_with_its_error(images: Run):
    image = picture(images)
    _, last = done(score, images, SCORE | {"image": url(images, image)})
    expected = images.log_likelihood(image, seed=2, settings={"n_draws": 3})
    assert last["bits_per_dim"] == pytest.approx(expected.bits_per_dim[0], rel=1e-9)
    assert last["log_prob"] == pytest.approx(expected.log_prob[0], rel=1e-9)
    assert last["standard_error"] == pytest.approx(expected.standard_error[0], rel=1e-6)
    assert done(score, images, SCORE | {"image": url(images, image), "draws": 1})[1]["standard_error"] is None


@pytest.mark.parametrize("work", [draw, fill, score])
def test_all_work_can_be_stopped(work: Callable, images: Run):
    asked = {"image": url(images, picture(images)), "mask": "1" * 8 + "0" * 8}
    asked |= {draw: DRAW, fill: FILL, score: SCORE}[work]
    turn = Turn("page")
    turn.stopped.set()
    with pytest.raises(Stopped):
        work(images, asked, turn)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sampler": "none"}, "sampling.sampler"),
        ({"nfe": 1, "sampler": "heun"}, "raise nfe"),
        ({"guidance": "cfg"}, "trained with conditions"),
        ({"label": "7"}, "needs a network with classes"),
        ({"prompt": "a seven"}, "trained with captions"),
    ],
)
def test_what_the_run_cannot_do_is_refused_in_a_sentence(asked: dict, message: str, images: Run):
    with pytest.raises((UserError, InputError), match=message):
        done(draw, images, DRAW | asked)


def test_a_mask_must_leave_something_known_and_something_missing(images: Run):
    for mask, message in (("0" * 16, "no pixel missing"), ("1" * 16, "no pixel known")):
        with pytest.raises(UserError, match=message):
            done(fill, images, FILL | {"image": url(images, picture(images)), "mask": mask})
