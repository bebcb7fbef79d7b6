from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from score_diffusion.run import plots
from score_diffusion.run.reporting import results, training
from score_diffusion.run.reporting.files import PNG_SIGNATURE
from score_diffusion.run.web_theme import SCRIPT

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a page holds; a tag that is not closed where it should be is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words, self.links, self.images, self.captions = "", [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attributes)["src"])
            self.captions.append(dict(attributes)["alt"])
        if tag == "svg":
            self.captions.append(dict(attributes)["aria-label"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(workdir: Path) -> Page:
    text = (workdir / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1 and f"<script>{SCRIPT}</script>" in text
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    )
    assert "link" not in page.tags and text.count("url(") == text.count("url(#")
    assert all(link.startswith(("data:image/png;", "#")) for link in page.links)
    outside = "".join(part for part in text.split("'") if not part.startswith("data:image/"))
    assert outside.count("http") == outside.count("http-equiv") == 1
    for source in page.images:
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        Image.open(io.BytesIO(content)).verify()
    return page


@pytest.mark.slow
def test_a_whole_run_is_on_the_page(cli: Callable, trained: Path, capsys):
    for mode in ("sample", "likelihood", "evaluate", "evaluate"):
        assert cli(mode, trained) == 0
    assert cli("report", trained) == 0
    assert str(trained / "report.html") in capsys.readouterr().out
    page = read(trained)
    for file in trained.rglob("*"):
        if file.is_file() and file.name != "report.html" and not file.name.startswith("."):
            assert file.relative_to(trained).as_posix() in page.words
    record = json.loads((trained / "likelihood.json").read_text())
    evaluation = json.loads((trained / "evaluation.json").read_text())
    for number in (record["bits_per_dim"], evaluation["samples"]["frechet_distance"]):
        assert f"{number:.6g}" in page.words
    for key, value in (("training.steps", "8"), ("training.steps", "2600"), ("data.name", "digits")):
        assert key in page.words and value in page.words
    curves = {"loss", "norm of the gradient", "learning rate", "steps per second"}
    curves.add("loss by noise level, means over parts of the training")
    copies = {
        f"evaluation{number}-copies.png: the samples nearest to training data, each left of its neighbour"
        for number in ("", "-2")
    }
    likelihood = {
        "by the probability flow, in the unit of the mean",
        "likelihood-extremes.png: held-out images",
    }
    next_to_each_other = {"real: held-out data", "drawn: samples/eabm.png"}
    drawn = {"step 8", "eabm.png", *next_to_each_other}
    assert {*curves, *copies, *likelihood, *drawn} == set(page.captions)
    for part, key in ((record, "bits_per_dim"), (evaluation["samples"], "frechet_distance")):
        error = record["standard_error"] if part is record else evaluation["samples_standard_error"][key]
        assert str(results.Figure(part[key], error)) in page.words
    assert cli("report", trained) == 0  # in the place of the old one, which is no file of the run


def test_changed_keys_come_first(cli: Callable, trained: Path):
    assert cli("report", trained) == 0
    words = read(trained).words
    assert (
        words.index("training.batch_size") < words.index("keys at their defaults") < words.index("data.name")
    )


def test_losses_by_noise_level_are_a_curve(cli: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch):
    """Means of what the log has; a level without any is left out. Older logs have none."""
    drawn = {}

    def record(lines: dict, xlabel: str, ylabel: str, **options: object) -> Figure:
        drawn[xlabel, ylabel] = lines
        return plots_curves(lines, xlabel, ylabel, **options)

    plots_curves = plots.curves
    monkeypatch.setattr(plots, "curves", record)
    rows = [
        {
            "step": step,
            "loss": 1.0,
            "held_out_loss": 2.0,
            "level_edges": [-1.0, 1.0, 3.0],
            "level_losses": losses,
        }
        for step, losses in ((1, [4.0, 2.0, None, 1.0]), (2, [2.0, None, None, 3.0]))
    ]
    monkeypatch.setattr(training, "WINDOWS", 1)
    (trained / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli("report", trained) == 0
    ((x, y),) = drawn["noise level log(σ/α)", "loss"].values()
    assert x.tolist() == [-2, 0, 4] and y.tolist() == [3, 2, 2]
    assert drawn["step", "loss"]["held out"] == ([1, 2], [2.0, 2.0])
    assert any("by noise level" in caption for caption in read(trained).captions)


def test_a_run_that_has_only_its_configuration(cli: Callable, finished_run: Path, tmp_path: Path):
    (tmp_path / "new").mkdir()
    shutil.copy(finished_run / "config.json", tmp_path / "new")
    assert cli("report", tmp_path / "new") == 0
    page = read(tmp_path / "new")
    assert (
        not page.images and "No training is logged, of 8 steps" in page.words and "config.json" in page.words
    )


def test_whatever_a_run_holds_is_text(cli: Callable, trained: Path):
    evil = "<script>alert('x')</script>\"&amp;"
    config = json.loads((trained / "config.json").read_text())
    config["data"]["path"] = evil
    (trained / "config.json").write_text(json.dumps(config))
    (trained / "likelihood-2.json").write_text(json.dumps({evil: evil, "parts": {"a": {evil: evil}}}))
    shutil.copy(trained / "samples/step_00000008.png", trained / "samples/step_<script>.png")
    (trained / "<b>.txt").write_text("")
    assert cli("report", trained) == 0
    page = read(trained)
    assert page.words.count(evil) >= 2 and "<b>.txt" in page.words
    assert "step_<script>.png" in page.words


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"bits_per_dim": NaN}'])
def test_damaged_files_are_named_and_the_rest_is_shown(content: str, cli: Callable, trained: Path):
    (trained / "likelihood.json").write_text(content)
    (trained / "evaluation.json").write_text(content)
    (trained / "samples/pc.npz").write_text(content)
    with open(trained / "log.jsonl", "a") as log:
        log.write('{"step": 9, "loss": NaN, "seconds": 1.0}\n{"step": 10, "lo')
    assert cli("report", trained) == 0
    page = read(trained)
    assert "likelihood.json" in page.words and page.words.count("cannot be read") >= 1
    assert "step 8" in page.captions


def test_what_a_link_leads_to_is_not_copied(cli: Callable, trained: Path, tmp_path: Path):
    """Whoever made a run may have put links to files of its reader's into it."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "key.png").write_bytes(PNG_SIGNATURE + b"SECRET")
    (private / "key.json").write_text('{"SECRET": 1}')
    np.savez(private / "key.npz", sampler="SECRET", nfe=1, seed=0, training_steps=1, settings="{}")
    for name, target in {
        "samples/step_00000009.png": "key.png", "likelihood.json": "key.json", "likelihood.png": "key.png",
        "samples/eabm.npz": "key.npz", "samples/eabm.png": "key.png", "data.png": "key.png",
    }.items():  # fmt: skip
        (trained / name).symlink_to(private / target)
    (trained / "likelihood-bound.png").write_bytes(b"SECRET, and no picture")
    (trained / "evaluation.json").symlink_to(trained / "data.json")  # not out of the run
    assert cli("report", trained) == 0
    text = (trained / "report.html").read_text()
    assert "SECRET" not in text and base64.b64encode(PNG_SIGNATURE + b"SECRET").decode() not in text
    assert text.count("is a link out of the run directory") == 7 and "is no picture" in text
    assert "num train" in text


@pytest.mark.parametrize(
    "line",
    [
        {"step": 2**62, "loss": 1e308, "seconds": 1e308, "grad_norm": -1e308},
        {"step": 9, "loss": "x", "seconds": "x", "level_losses": 3, "level_edges": {}},
        {"step": 9, "level_losses": [1.0], "level_edges": []},
        {"step": 9, "level_losses": [1.0, "x", 2.0], "level_edges": [1, 2]},
        {"step": 9, "loss": 10**400, "learning_rate": [1]},
    ],
)
def test_odd_values_of_the_log_are_left_out(line: dict, cli: Callable, trained: Path):
    with open(trained / "log.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")
    assert cli("report", trained) == 0
    assert "step 8" in read(trained).captions


def test_names_that_are_no_text(cli: Callable, trained: Path):
    (trained / "samples").joinpath(os.fsdecode(b"step_\xff.png")).write_bytes(PNG_SIGNATURE)
    (trained / "likelihood.json").write_text('{"\\ud800": 1}')
    assert cli("report", trained) == 0
    assert "step_?.png" in (trained / "report.html").read_text()


def test_no_run_no_page(cli: Callable, tmp_path: Path, refused: Callable):
    assert "holds no run" in refused(cli("report", tmp_path / "none"))


def test_every_number_of_a_result_is_shown(cli: Callable, trained: Path):
    bound = {"bits_per_dim": 4.25, "terms": {"L_0": {"bits_per_dim": 0.75}}, "steps": [0.5, 0.125]}
    record = {"bits_per_dim": 3.5, "bound": bound, "settings": {"n_probes": 17}}
    (trained / "likelihood.json").write_text(json.dumps(record))
    parts = {"file": "pc.npz", "samples": {"a": 1.5, "b": 2.5}, "real": {"a": 3.25}}
    (trained / "evaluation.json").write_text(json.dumps(parts))
    assert cli("report", trained) == 0
    words = read(trained).words
    for cells in (
        "bits per dim3.5",
        "bound: bits per dim4.25",
        "bound: terms: L_0: bits per dim0.75",
        "b2.5",
    ):
        assert cells in words.replace("L 0", "L_0")
    assert "0.125" in words and "17" in words and "a1.53.25" in words  # one row of two columns


def test_many_pictures_are_thinned_out(cli: Callable, trained: Path):
    for step in range(9, 48):
        shutil.copy(trained / "samples/step_00000008.png", trained / f"samples/step_{step:08d}.png")
    assert cli("report", trained) == 0
    page = read(trained)
    steps = [int(caption.split()[1]) for caption in page.captions if caption.startswith("step ")]
    assert len(steps) == 12 and steps[0] == 8 and steps[-1] == 47 and "28 more in samples/" in page.words


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (1.92749, 0.0531, "1.927 ± 0.053"), (-0.005082, 0.029, "-0.005 ± 0.029"), (2.5, 0.5, "2.50 ± 0.50"),
        (1234.5, 98.7, "1234 ± 99"), (3.14159, None, "3.142"), (2.0, 0.0, "2 ± 0"), (2.0, 1e-9, "2 ± 1e-09"),
    ],
)  # fmt: skip
def test_a_figure_has_the_digits_that_its_error_allows(value: float, error: float | None, words: str):
    assert str(results.Figure(value, error)) == words
