"""--mode restore from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.tasks import RESTORERS, TASKS, method_of
from score_diffusion.samplers import SAMPLERS

FEW = ("--nfe=4", "--config.restore.num_inputs=2", "--config.restore.num_samples=3")


def load(workdir: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(workdir / f"restored/{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def restore(cli: Callable, trained: Path) -> Callable[..., int]:
    return lambda *arguments: cli("restore", trained, *FEW, *arguments)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "colorize"])
def test_every_task(task: str, restore: Callable, trained: Path, capsys):
    """Grey digits have no colours: the test of a colour model is below."""
    assert restore("--task", task, *(("--noise=0",) if task == "jpeg" else ())) == 0
    method = method_of(task, "auto")
    output, arrays = capsys.readouterr().out, load(trained, f"{task}-{method}")
    assert arrays["samples"].shape == (2, 3, 1, 8, 8) and arrays["samples"].dtype == np.float32
    np.testing.assert_allclose(arrays["mean"], arrays["samples"].mean(1), atol=1e-6)
    np.testing.assert_allclose(arrays["deviation"], arrays["samples"].std(1, ddof=1), atol=1e-6)
    assert (str(arrays["task"]), str(arrays["method"]), arrays["seed"]) == (task, method, 0)
    assert "2 of 899 of held_out" in output
    with Image.open(trained / f"restored/{task}-{method}.png") as picture:
        assert picture.width > 400 and len(picture.getcolors(1_000_000)) > 50
    assert ("PSNR" in output) == ("truth" in arrays) == (task != "edit")
    assert str(trained / f"restored/{task}-{method}.npz") in output


@pytest.mark.parametrize("method", [name for name in RESTORERS if name != "model"])
def test_every_method_and_known_pixels_are_exact_without_noise(method: str, restore: Callable, trained: Path):
    small = ("--config.restore.twisted.particles=4", "--config.restore.twisted.draws=2")
    options = small if method == "twisted" else ()
    assert restore("--noise=0", "--mask=left", "--method", method, *options) == 0
    arrays = load(trained, f"inpaint-{method}")
    known = arrays["known"]
    assert known[..., 4:].all() and not known[..., :4].any()
    for sample in arrays["samples"].swapaxes(0, 1):
        np.testing.assert_array_equal(sample[:, known], arrays["truth"][:, known])
    assert np.array_equal(np.isnan(arrays["measurement"]), np.broadcast_to(~known, (2, 1, 8, 8)))
    assert arrays["samples"][..., :4].std(1).max() > 0
    assert not arrays["deviation"][:, known].any()


def test_a_sample_depends_on_seed_input_and_index_only(restore: Callable, trained: Path):
    """Neither on the batch size, nor on how many samples or inputs there are; files are never overwritten."""
    assert restore() == 0
    assert restore("--config.restore.batch_size=2") == 0
    assert restore("--config.restore.num_samples=5", "--config.restore.num_inputs=3") == 0
    assert restore("--config.restore.seed=1") == 0
    first, second, third, other = (
        load(trained, f"inpaint-moment_matching{suffix}")["samples"] for suffix in ("", "-2", "-3", "-4")
    )
    assert np.array_equal(first, second) and np.array_equal(first, third[:2, :3])
    assert np.mean(first != other) > 0.1 and np.mean(first[0] != first[1]) > 0.1
    assert np.mean(first[:, 0] != first[:, 1]) > 0.1
    pictures = {path.stem for path in (trained / "restored").glob("*.png")}
    assert pictures == {path.stem for path in (trained / "restored").glob("*.npz")} and len(pictures) == 4


def test_files_as_input_with_a_mask_file(restore: Callable, trained: Path, tmp_path: Path, capsys):
    """A colour image of another size is brought to the run's data, an 8x8 mask is taken as it is."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert restore(f"--input={tmp_path}/[ab].png", f"--mask={tmp_path}/mask.png", "--noise=0") == 0
    warned = capsys.readouterr().err
    assert "1 of the inputs are brought to 8x8" in warned and "b.png is 24x16" in warned
    arrays = load(trained, "inpaint-moment_matching")
    assert arrays["names"].tolist() == ["a.png", "b.png"]
    assert arrays["known"][0, :3].all() and not arrays["known"][0, 3:].any()
    with Image.open(tmp_path / "a.png") as image:
        expected = 2 * np.asarray(image, np.float64) / 255 - 1
    np.testing.assert_allclose(arrays["truth"][0, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(arrays["samples"][0, :, 0, :3], np.repeat(arrays["truth"][0, :, :3], 3, 0))


@pytest.mark.parametrize("task", ["inpaint", "superres", "mri"])
def test_its_own_file_as_measurement(task: str, restore: Callable, trained: Path, capsys):
    """The same measurement gives the same samples, made or read; without truth there are no figures."""
    assert restore("--task", task, "--mask=random:0.5") == (0 if task == "inpaint" else 2)
    if task != "inpaint":
        assert "option of task 'inpaint'" in capsys.readouterr().err
        assert restore("--task", task) == 0
    mask = ("--mask=random:0.5",) if task == "inpaint" else ()
    file = trained / f"restored/{task}-moment_matching.npz"
    capsys.readouterr()
    assert restore("--task", task, f"--input={file}", "--config.restore.measured=true", *mask) == 0
    made, read = (load(trained, f"{task}-moment_matching{suffix}") for suffix in ("", "-2"))
    np.testing.assert_array_equal(made["measurement"], read["measurement"])
    np.testing.assert_allclose(made["samples"], read["samples"], atol=0.13)  # one grey level
    assert np.mean(made["samples"] != read["samples"]) < 0.01
    assert "truth" not in read and "PSNR" not in capsys.readouterr().out


def test_a_guide_is_not_what_comes_out(restore: Callable, trained: Path):
    assert restore("--task=edit", "--noise=0") == 0
    arrays = load(trained, "edit-sdedit")
    assert np.mean(arrays["samples"] != arrays["measurement"][:, None]) > 0.3 and arrays["deviation"].any()


def test_settings_are_those_that_decide_the_samples(restore: Callable, trained: Path):
    assert restore("--sampler=heun", "--nfe=5", "--method=pigdm", "--config.restore.data_std=0.7") == 0
    arrays = load(trained, "inpaint-pigdm")
    settings = json.loads(str(arrays["settings"]))
    assert settings["sampler"] == "heun" and settings["inpaint"] == {"mask": "center"}
    assert not {"batch_size", "twisted", "mri"} & settings.keys()
    assert arrays["nfe"] == 5 and arrays["noise"] == 0.05


@pytest.mark.slow
def test_colours_and_numbers(cli: Callable, tmp_path: Path, capsys):
    """A colour model colours a grey file, and one of numbers takes and gives the user's units."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "colours.npz", x_train=rng.integers(0, 256, (20, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "numbers.npz", x_train=rng.normal(300, 20, (20, 1, 8, 8)))
    for name in ("colours", "numbers"):
        assert cli("train", tmp_path / name, f"--config.data.path={tmp_path}/{name}.npz") == 0
    grey = rng.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    given = (*FEW, f"--input={tmp_path}/grey.png", "--config.restore.measured=true", "--task=colorize")
    assert cli("restore", tmp_path / "colours", *given) == 0
    arrays = load(tmp_path / "colours", "colorize-moment_matching")
    np.testing.assert_allclose(arrays["measurement"][0, 0], grey / 127.5 - 1, atol=1e-6)
    assert arrays["samples"].shape == (1, 3, 3, 8, 8) and "truth" not in arrays
    assert cli("restore", tmp_path / "numbers", *FEW, "--noise=0", "--mask=left", "--method=replacement") == 0
    arrays = load(tmp_path / "numbers", "inpaint-replacement")
    known = arrays["known"]
    assert 250 < arrays["truth"].mean() < 350 and arrays["samples"].dtype == np.float64
    np.testing.assert_array_equal(arrays["samples"][:, 0, known], arrays["measurement"][:, known])
    np.testing.assert_allclose(arrays["measurement"][:, known], arrays["truth"][:, known], rtol=1e-5)


@pytest.mark.slow
def test_a_class_as_prior(cli: Callable, tmp_path: Path, refused: Callable):
    """Without a label the prior is that of all classes, not a class for each sample."""
    assert cli("train", tmp_path, "--config.training.conditional=true") == 0
    few = (*FEW, "--config.restore.batch_size=1")
    for label in ((), ("--label=-1",), ("--label=7",)):
        assert cli("restore", tmp_path, *few, *label) == 0
    bare, null, seven = (
        load(tmp_path, f"inpaint-moment_matching{suffix}")["samples"] for suffix in ("", "-2", "-3")
    )
    assert np.array_equal(bare, null) and not np.array_equal(bare, seven)
    message = refused(cli("restore", tmp_path, *few, "--label=1,2"))
    assert "takes one class or text, got sampling.label='1,2'" in message
    always = (
        tmp_path / "always",
        "--config.training.conditional=true",
        "--config.training.condition_dropout=0",
    )
    assert cli("train", *always) == 0
    assert "knows no samples without a condition" in refused(cli("restore", always[0], *few))
    assert cli("restore", always[0], *few, "--label=3") == 0


def white(path: Path, size: tuple[int, int] = (8, 8), level: int = 255) -> Path:
    Image.new("L", size[::-1], level).save(path)
    return path


BAD = [
    (("--task=inpainting",), "names, such as inpaint, got 'inpainting'"),
    (("--method=magic",), "names, such as auto, dps"),
    (("--noise=-0.1",), "restore.noise' must be a number of at least 0, got -0.1"),
    (("--mask=random:1.5",), "the mask must be center, left, random:SHARE"),
    (("--mask=nowhere.png",), "or an image file that exists, got 'nowhere.png'"),
    (("--mask=" + "x" * 300,), "or an image file that exists"),
    (("--mask=~no_such_user/mask.png",), "no such home directory"),
    (("--mask=random:0.999",), "leaves no pixel known"),
    (("--mask=random:0.001",), "leaves no pixel missing"),
    (("--mask={black}",), "black.png leaves no pixel known"),
    (("--mask={large}",), "large.png is 9x8 .height x width., and the model's images are 8x8"),
    (("--mask={text}",), "text.png cannot be read"),
    (("--task=superres", "--config.restore.superres.factor=3"), "factor must be .* that divides"),
    (("--task=deblur", "--config.restore.deblur.std=0"), "restore.deblur.std must be above 0"),
    (("--task=colorize",), "task colorize needs a model of colour images"),
    (("--task=mri", "--config.restore.mri.acceleration=20"), "lower the acceleration"),
    (("--task=ct", "--config.restore.ct.angles=0"), "angles and cells must be positive"),
    (("--task=jpeg",), "a non-linear operator needs sigma_y = 0, got 0.05"),
    (("--task=phase", "--method=ddrm"), "needs a linear operator, got PhaseRetrieval: use DPS"),
    (("--task=edit", "--method=dps"), "task edit has the method sdedit only"),
    (("--task=edit", "--config.restore.sdedit.start=0"), "start must lie in .0, 1."),
    (("--method=dps", "--sampler=heun"), "method dps has a sampler of its own.*pigdm"),
    (("--method=ddrm", "--config.restore.dps.zeta=2"), "option of method 'dps', and the method is 'ddrm'"),
    (("--config.restore.mri.acceleration=4",), "option of task 'mri', and the task is 'inpaint'"),
    (("--method=twisted", "--config.restore.twisted.draws=5"), "particles must be a positive multiple"),
    (("--sampler=ode",), "chooses its own steps"),
    (("--input=nowhere.png",), "input 'nowhere.png' does not exist"),
    (("--input={text}",), "text.png cannot be read"),
    (
        ("--input={black}", "--config.restore.measured=true", "--task=superres"),
        "black.png is 8x8, and measure",
    ),
    (("--input={black}", "--config.restore.measured=true", "--task=mri"), "are arrays of shape .1, 2, 32."),
    (("--config.restore.measured=true",), "held-out data are no measurements"),
    (("--input={far}",), "brightness from -1 to 1, got 0 to 16"),
    (("--input={long}",), "the model's samples have shape .n, 1, 8, 8., got .2, 9, 9."),
    (("--input={nan}",), "holds NaN or infinite values"),
    (("--input={nan}", "--config.restore.measured=true"), "NaN or infinite values where they are said to be"),
    (("--input={levels}",), "must hold the run's grey levels, 0 to 16"),
    (("--input={several}",), "a single array or one named truth or samples or x_test, it holds a, b"),
    (("--grid=karras",), "sampling.grid is not used by --mode restore"),
    (("--nfe=1",), "restore.nfe' must be an integer of at least 2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(
    arguments: tuple[str, ...],
    message: str,
    cli: Callable,
    finished_run: Path,
    refused: Callable,
    snapshot: Callable,
    tmp_path: Path,
):
    (tmp_path / "text.png").write_text("no image")
    white(tmp_path / "black.png", level=0)
    white(tmp_path / "large.png", (9, 8))
    np.save(tmp_path / "far.npy", np.linspace(0, 16, 64).reshape(1, 1, 8, 8))
    np.save(tmp_path / "long.npy", np.zeros((2, 9, 9)))
    np.save(tmp_path / "nan.npy", np.full((2, 8, 8), np.nan))
    np.save(tmp_path / "levels.npy", np.full((2, 8, 8), 200, np.uint8))
    np.savez(tmp_path / "several.npz", a=np.zeros(3), b=np.zeros(3))
    files = {path.stem: path for path in tmp_path.iterdir()}
    before = snapshot(finished_run)
    given = [argument.format(**files) for argument in arguments]
    sentence = refused(cli("restore", finished_run, *given))
    assert re.search(message, sentence), sentence
    assert snapshot(finished_run) == before


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name, spec in SAMPLERS.items() if spec.nfe_per_step])
def test_any_sampler_restores(sampler: str, restore: Callable, trained: Path):
    """Those with predictor and corrector, too; known pixels are exact."""
    spec = SAMPLERS[sampler]
    nfe = spec.nfe_per_step * 2 + spec.cost_with({}).extra + 1
    chosen = ("--noise=0", "--method=replacement", f"--sampler={sampler}", f"--nfe={nfe}")
    assert restore(*chosen) == 0
    arrays = load(trained, "inpaint-replacement")
    assert arrays["nfe"] <= nfe
    known = arrays["known"]
    np.testing.assert_array_equal(arrays["samples"][:, 0, known], arrays["truth"][:, known])
