"""The page of --mode report in a headless Chromium: desktop and phone, light and dark, without scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run.browser import assert_can_be_read, assert_fits, needs_browser, opened, started_browser

pytestmark = [needs_browser, pytest.mark.slow]
FIGURES = {"frechet_distance": 2.5, "kernel_distance": -0.01, "precision": 0.75}


@pytest.fixture(scope="module")
def report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a section of every kind: results are made up, pictures are copies."""
    from score_diffusion.run.main import main

    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("report") / ("a-long-name-" * 6)))
    assert main(["--mode", "sample", "--workdir", str(run), "--nfe=3"]) == 0
    likelihood = {"bits_per_dim": 2.75, "standard_error": 0.031, "interval": [2.69, 2.81], "num_images": 40}
    (run / "likelihood.json").write_text(json.dumps(likelihood | {"settings": {"long_name" * 9: "x" * 90}}))
    np.savez(run / "likelihood.npz", ode=np.random.default_rng(0).normal(2.75, 0.2, 40))
    errors = dict.fromkeys(FIGURES, 0.125)
    evaluation = {
        **{"digest": "0", "measured_on": "raw pixels", "reference": "held-out data", "num_samples": 64},
        **{"num_reference": 64, "sampler": "pc", "guidance": "", "nfe": 20, "seed": 0, "num_real": 64},
        **{"seconds_per_sample": 0.1, "training_steps": 8, "samples": FIGURES, "real": FIGURES},
        **{"samples_standard_error": errors, "real_standard_error": errors},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    picture = run / "samples/step_00000008.png"
    shutil.copy(picture, run / "samples/step_00000004.png")
    for name in ("likelihood-extremes.png", "restored/inpaint.png", "interpolated/paths.png", "data.png"):
        (run / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, run / name)
    assert main(["--mode", "report", "--workdir", str(run)]) == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with started_browser() as running:
        yield running


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_everything_fits_and_can_be_read(size: str, theme: str, report: Path, chrome: Any):
    with opened(chrome, report, size, theme) as page:
        assert_fits(page)
        assert assert_can_be_read(page) > 100
        for fold in page.query_selector_all("details > summary"):
            if fold.is_visible():
                fold.click()
        assert_fits(page)
        assert_can_be_read(page)


def test_the_theme_follows_the_system_and_the_button(report: Path, chrome: Any):
    paper = "getComputedStyle(document.body).backgroundColor"
    shown = {}
    for theme in ("light", "dark"):
        with opened(chrome, report, "desktop", theme) as page:
            shown[theme] = page.evaluate(paper)
    with opened(chrome, report, "desktop", "light") as page:
        button = page.get_by_role("button", name="Dark")
        button.click()
        assert page.evaluate(paper) == shown["dark"] != shown["light"]
        assert_can_be_read(page)
        page.reload()  # the choice is kept
        assert page.evaluate(paper) == shown["dark"]
        page.get_by_role("button", name="Light").click()
        assert page.evaluate(paper) == shown["light"]


def test_the_slider_shows_one_step_of_training_at_a_time(report: Path, chrome: Any):
    with opened(chrome, report, "phone", "light") as page:
        slides = page.locator(".slides")
        assert slides.locator("figure:visible figcaption").all_text_contents() == ["step 8"]
        slides.locator("input").focus()
        page.keyboard.press("ArrowLeft")
        assert slides.locator("figure:visible figcaption").all_text_contents() == ["step 4"]
        assert slides.locator("output").text_content() == "step 4"


def test_without_scripts_every_picture_is_there(report: Path, chrome: Any):
    with opened(chrome, report, "desktop", "light", scripts=False) as page:
        assert page.locator(".slides figure:visible").count() == 2
        assert page.locator("button:visible").count() == page.locator("input:visible").count() == 0


def test_contents_lead_to_the_sections(report: Path, chrome: Any):
    from playwright.sync_api import expect

    with opened(chrome, report, "desktop", "dark") as page:
        names = page.locator("nav a").all_text_contents()
        assert names[0] == "Summary" and {"Likelihood", "Restored", "Settings"} <= set(names)
        assert names == page.locator("h2").all_text_contents()
        page.get_by_role("link", name="Settings").click()
        expect(page.locator("h2#settings")).to_be_in_viewport()
        assert page.url.endswith("#settings")


def test_no_foreign_script_runs(report: Path, chrome: Any, tmp_path: Path):
    """The policy of the page lets a browser run our script only, whatever a page holds."""
    text = report.read_text().replace("<main>", "<main><script>document.title = 'foreign'</script>")
    path = tmp_path / "page.html"
    path.write_text(text.replace("<main>", "<main><img src=x onerror=\"document.title = 'foreign'\">"))
    context = chrome.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.title() != "foreign" and page.evaluate("document.documentElement.classList.contains('js')")
    context.close()
