"""`load_run`: the samples of the command line, and likelihoods and codes with closed forms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from scipy import stats

from score_diffusion import load_run, train
from score_diffusion.run.config import load_config
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.scoring import seed_of_draw
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.python.run import Run
from score_diffusion.sde_lib import VPSDE, Gaussian

ROOT = Path(__file__).resolve().parents[3]
SHIFT, SCALE = (10.0, -3.0), (2.0, 0.5)
VARIANCE = 0.25  # of the standardized data, so that the flow is not the identity


@pytest.fixture(scope="module")
def exact() -> Run:
    return exact_run(load_config("toy2d"))


def exact_run(config: ConfigDict) -> Run:
    """A run whose score is exact: data N(shift, VARIANCE scale²)."""
    sde = VPSDE()
    score = Gaussian(torch.zeros(2), torch.tensor(VARIANCE)).score(sde)
    data = DataInfo("own", (2,), Scaling(None, SHIFT, SCALE, "float64"), 100, 10)
    return Run(config, lambda _: TrainedModel(score, sde, data, 7, 1e-5), Path("nowhere"))


def saved(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def test_samples_are_those_of_the_command_bit_for_bit(trained: Path, cli: Callable):
    arguments = ("--sampler=pc", "--nfe=9", "--config.sampling.seed=3", "--config.sampling.pc.snr=0.2")
    assert cli("sample", trained, *arguments) == 0
    expected = saved(trained / "samples/pc.npz")
    run = load_run(trained)
    samples = run.sample(5, sampler="pc", nfe=9, seed=3, settings={"pc.snr": 0.2}, batch_size=2)
    assert np.array_equal(samples.samples, expected["samples"]) and samples.nfe == expected["nfe"]
    assert samples.values.dtype == np.uint8 and samples.values.shape == (5, 8, 8)
    assert np.array_equal(samples.values, ((expected["samples"][:, 0] + 1) * 8).round())
    assert np.array_equal(np.asarray(samples), samples.values) and len(samples) == 5
    assert samples.labels is None and run.sample().samples.shape == (5, 1, 8, 8)


def test_a_grid_holds_for_a_sampler_that_is_a_setting(trained: Path):
    run = load_run(trained)
    settings = {"sampler": "heun"}
    samples = run.sample(2, grid="uniform", nfe=5, settings=settings)
    assert np.array_equal(samples.samples, run.sample(2, sampler="heun", grid="uniform", nfe=5).samples)
    assert not np.array_equal(samples.samples, run.sample(2, sampler="heun", nfe=5).samples)


def test_a_run_says_what_it_is(trained: Path):
    run = load_run(str(trained))
    assert isinstance(run.sde, VPSDE) and run.data.shape == (1, 8, 8) and run.data.levels == 17
    assert run.step == 8 and "8 training steps" in repr(run)
    x = torch.zeros(2, 1, 8, 8)
    assert run.score(x, torch.full((2,), 0.5)).shape == x.shape


def test_weights_are_read_once(trained: Path):
    run = load_run(trained)
    run.sample(1)
    for file in (trained / "checkpoints").rglob("*.safetensors"):
        file.unlink()
    run.sample(1)
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        run.sample(1, settings={"checkpoint": 8, "ema": 0.999})


@pytest.mark.slow
def test_classes_by_name_and_index(tiny: str, tmp_path: Path, cli: Callable):
    run = train(tiny, tmp_path / "run", {"training": {"conditional": True, "steps": 2}})
    assert cli("sample", tmp_path / "run", "--label=3,5") == 0
    expected = saved(tmp_path / "run/samples/eabm.npz")
    for label in ([3, 5], ["3", "5"], "3,5"):
        samples = run.sample(label=label)
        assert np.array_equal(samples.samples, expected["samples"])
        assert samples.labels is not None and samples.labels.tolist() == [3, 5, 3, 5, 3]
        assert samples.names == ["3", "5", "3", "5", "3"]
    assert cli("sample", tmp_path / "run", "--label=3", "--guidance=cfg", "--scale=4") == 0
    expected = saved(tmp_path / "run/samples/eabm-2.npz")
    guided = run.sample(label=3, guidance="cfg", scale=4)
    assert np.array_equal(guided.samples, expected["samples"]) and guided.nfe == expected["nfe"]
    samples = run.sample(label=[3, 5])
    assert samples.labels is not None
    codes = run.encode(samples, label=samples.labels.tolist(), rtol=1e-3, atol=1e-3)
    again = run.decode(codes, label=samples.labels.tolist(), rtol=1e-3, atol=1e-3)
    assert np.array_equal(again.values, samples.values)
    unconditional = run.encode(samples, rtol=1e-3, atol=1e-3)
    assert not np.array_equal(codes, unconditional)
    with pytest.raises(UserError, match="got 'cat'"):
        run.sample(label="cat")


def test_the_likelihood_of_numbers_is_that_of_their_law(exact: Run):
    x = np.array([[10.0, -3.0], [11.0, -3.2], [8.5, -2.9]])
    law = stats.multivariate_normal(SHIFT, np.diag(VARIANCE * np.square(SCALE)))
    for label in (None, -1):
        result = exact.log_likelihood(x, label=label, settings={"divergence": "exact"})
        np.testing.assert_allclose(result.log_prob, law.logpdf(x), atol=2e-3)
    np.testing.assert_allclose(result.bits_per_dim, -law.logpdf(x) / (2 * np.log(2)), atol=2e-3)
    assert result.mean == pytest.approx(law.logpdf(x).mean(), abs=2e-3) and result.nfe > 10


def test_the_bound_of_the_reverse_sde_is_the_likelihood_for_an_exact_score(exact: Run):
    x = np.repeat([[10.0, -3.0], [8.5, -2.9]], 100, axis=0)
    law = stats.multivariate_normal(SHIFT, np.diag(VARIANCE * np.square(SCALE)))
    settings = {"reverse_times": 16}
    found = exact.log_likelihood(x, method="reverse_sde", settings=settings)
    difference = found.log_prob - law.logpdf(x)
    error = difference.std() / np.sqrt(len(x))
    assert abs(difference.mean()) < 4 * error < 0.6 and found.nfe == 32


def test_codes_are_those_of_the_flow_in_closed_form(exact: Run):
    """The flow of a Gaussian scales deviations by the ratio of standard deviations."""
    x = np.array([[10.0, -3.0], [11.0, -3.2], [8.5, -2.9]])
    ends = torch.tensor([exact.sde.sampling_eps, exact.sde.T], dtype=torch.float64)
    alpha, sigma = exact.sde.alpha(ends), exact.sde.sigma(ends)
    first, last = (VARIANCE * alpha.square() + sigma.square()).sqrt().tolist()
    expected = (x - SHIFT) / np.array(SCALE) * last / first
    codes = exact.encode(x)
    np.testing.assert_allclose(codes, expected, atol=1e-4)
    decoded = exact.decode(codes)
    np.testing.assert_allclose(decoded.values, x, atol=1e-3)
    assert decoded.values.dtype == np.float64 and decoded.nfe > 5


def test_a_path_leads_from_one_sample_to_the_other_on_the_sphere(exact: Run):
    a, b = np.array([11.0, -3.0]), np.array([10.0, -2.75])  # at right angles, of equal length
    path = exact.interpolate(a, b, 5).values
    angle = np.linspace(0, np.pi / 2, 5)
    expected = SHIFT + 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1) * SCALE
    np.testing.assert_allclose(path, expected, atol=1e-3)
    with pytest.raises(UserError, match="at least 2"):
        exact.interpolate(a, b, 1)
    with pytest.raises(UserError, match="one sample each, got 2 and 1"):
        exact.interpolate(np.stack([a, b]), b)


def test_the_error_of_a_likelihood_is_that_of_its_draws(trained: Path):
    """Each draw is scored by itself, too, with the noise that it had."""
    run, images = load_run(trained), load_digits().test[:2, 0].numpy()
    each = [run.log_likelihood(images, seed=seed_of_draw(3, draw)) for draw in range(4)]
    assert each[0].standard_error is None
    bits = np.stack([result.bits_per_dim for result in each])
    result = run.log_likelihood(images, seed=3, settings={"n_draws": 4})
    np.testing.assert_allclose(result.bits_per_dim, bits.mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.standard_error, bits.std(0, ddof=1) / 2, rtol=1e-9)


def test_a_watched_run_draws_the_same_and_shows_every_evaluation(exact: Run):
    seen: list[tuple] = []
    drawn = exact.watched(lambda *evaluation: seen.append(evaluation)).sample(3, nfe=9, label=-1)
    np.testing.assert_array_equal(drawn.samples, exact.sample(3, nfe=9, label=-1).samples)
    assert len(seen) == drawn.nfe <= 9
    for x, t, score in seen:
        assert x.shape == (3, 2) and torch.equal(score, exact.score(x, t.expand(3)))
    times = [t.max().item() for _, t, _ in seen]
    assert times == sorted(times, reverse=True) and times[0] == 1.0


@pytest.mark.parametrize("work", ["sample", "restore", "log_likelihood"])
def test_what_a_watch_raises_ends_the_work(work: str, trained: Path):
    def stop(*evaluation: torch.Tensor) -> None:
        raise InterruptedError

    run = load_run(trained).watched(stop)
    images = run.data.scaling.stored_to_model(load_digits().test[:1])
    with pytest.raises(InterruptedError):
        getattr(run, work)(*(() if work == "sample" else (images,)))


def test_an_image_has_the_likelihood_of_the_command(trained: Path, cli: Callable):
    assert cli("likelihood", trained, "--config.likelihood.num_images=3") == 0
    recorded = json.loads((trained / "likelihood.json").read_text())["bits_per_dim"]
    images = load_digits().test[:3, 0].numpy()
    result = load_run(trained).log_likelihood(images)
    assert result.bits_per_dim.mean() == pytest.approx(recorded, rel=1e-12)
    np.testing.assert_allclose(result.log_prob, -result.bits_per_dim * 64 * np.log(2))


@pytest.mark.parametrize("task", ["inpaint", "superres"])
def test_restored_images_are_those_of_the_command(task: str, trained: Path, cli: Callable):
    numbers = {"num_samples": 3, "noise": 0.1, "nfe": 6, "seed": 2}
    arguments = [f"--config.restore.{key}={value}" for key, value in numbers.items()]
    assert (
        cli("restore", trained, f"--config.restore.task={task}", "--config.restore.num_inputs=2", *arguments)
        == 0
    )
    expected = saved(next((trained / "restored").glob("*.npz")))
    images = load_digits().test[:2, 0].numpy()
    restored = load_run(trained).restore(images, task, **numbers)  # type: ignore[arg-type]
    assert np.array_equal(restored.samples, expected["samples"]) and restored.nfe == expected["nfe"]
    assert restored.values.shape == (2, 3, 8, 8) and restored.values.dtype == np.uint8
    assert restored.quality is not None and len(restored.quality.psnr) == 2


def test_restored_numbers_have_the_posterior_of_their_law(exact: Run):
    """One of two independent coordinates is measured: the other one keeps its law."""
    x = np.array([[11.0, np.nan]])
    options = {"known": [True, False], "measured": True, "noise": 0.3, "nfe": 40, "num_samples": 400}
    restored = exact.restore(x, **options)  # type: ignore[arg-type]
    precision = 1 / VARIANCE + 1 / 0.3**2  # of the standardized coordinate
    mean = SHIFT[0] + SCALE[0] * ((11.0 - SHIFT[0]) / SCALE[0]) / 0.3**2 / precision
    np.testing.assert_allclose(
        restored.mean[0], [mean, SHIFT[1]], atol=4 * SCALE[0] / np.sqrt(400 * precision)
    )
    expected = [SCALE[0] / np.sqrt(precision), SCALE[1] * np.sqrt(VARIANCE)]
    np.testing.assert_allclose(restored.deviation[0], expected, rtol=0.15)
    assert restored.quality is None and restored.values.shape == (1, 400, 2)


def test_what_cannot_be_restored_is_refused(exact: Run):
    x = np.zeros((1, 2))
    with pytest.raises(UserError, match="for task inpaint, not for denoise"):
        exact.restore(x, "denoise", known=[True, False])
    with pytest.raises(UserError, match="known must be booleans of shape"):
        exact.restore(x, known=[True, False, True])
    with pytest.raises(UserError, match="known leaves no pixel missing"):
        exact.restore(x, known=[True, True])
    with pytest.raises(UserError, match=r"measurements must be .* shape \(n, 2\)"):
        exact.restore(np.zeros((1, 3)), known=[True, False], measured=True)


def test_mistakes_are_explained(trained: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path)
    run = load_run(trained)
    with pytest.raises(UserError, match="unknown configuration key 'sampling.snr': did you mean"):
        run.sample(2, settings={"snr": 0.2})
    with pytest.raises(UserError, match="sampling.num_samples.* at least 1"):
        run.sample(0)
    with pytest.raises(UserError, match="needs a network with classes"):
        run.sample(2, label=3)
    with pytest.raises(UserError, match="method must be ode, reverse_sde or bound"):
        run.log_likelihood(np.zeros((1, 8, 8), int), method="exact")
    with pytest.raises(UserError, match=r"codes must have the shape \(n, 1, 8, 8\)"):
        run.decode(np.zeros((2, 8, 8)))


def test_a_likelihood_that_was_never_trained_is_refused():
    config = load_config("toy2d")
    with config.unlocked():
        config.training.update(conditional=True, condition_dropout=0.0)
    with pytest.raises(UserError, match="knows no p\\(x\\) without a condition"):
        exact_run(config).log_likelihood(np.zeros((1, 2)))


def test_pictures(trained: Path, tmp_path: Path):
    samples = load_run(trained).sample(4)
    path = samples.save(tmp_path / "four.png")
    assert path.read_bytes() == samples._repr_png_() and path.read_bytes().startswith(b"\x89PNG")


def test_importing_the_package_does_not_wait_for_torch():
    code = (
        "import sys, score_diffusion; assert 'load_run' in dir(score_diffusion);"
        "assert 'torch' not in sys.modules; from score_diffusion import load_run, train;"
        "assert load_run.__module__ == 'score_diffusion.run.python.run'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_names_of_the_package_are_no_attributes():
    import score_diffusion

    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        score_diffusion.load_runs  # noqa: B018
    assert set(score_diffusion.__all__) <= set(dir(score_diffusion))
