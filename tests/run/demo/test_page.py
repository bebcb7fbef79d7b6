"""The page in a browser: samples are drawn, a painted mask is filled in, an image scored, work stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from score_diffusion import load_run
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.demo import work
from score_diffusion.run.demo.app import App
from score_diffusion.run.demo.demo import listen, make_page_server
from tests.run.browser import needs_browser, started_browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [pytest.mark.slow, needs_browser]
PIXELS = """canvas => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return Array.from(data).filter((_, k) => k % 4 == 0);
}"""


@pytest.fixture(scope="module")
def address(finished_run: Path) -> Iterator[str]:
    app = App([load_run(finished_run)], "127.0.0.1", max_upload_mib=0.01)
    server = make_page_server(app, "127.0.0.1", listen("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}/"
    app.turns.stop_all()
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with started_browser() as running:
        yield running


@pytest.fixture
def page(browser: playwright.Browser, address: str) -> Iterator[playwright.Page]:
    """The page, which must fetch nothing from elsewhere and leave no error in the console."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    yield page
    page.close()
    assert all(url.startswith((address, "data:")) for url in requests), requests
    assert not [error for error in errors if "400" not in error], errors  # of refusals, which a test asks for


def says(page: playwright.Page, selector: str, text: str) -> None:
    """Waits until a part of the page has a text."""
    playwright.expect(page.locator(selector)).to_contain_text(text)


def tiles(page: playwright.Page, selector: str) -> np.ndarray:
    """The samples that are shown, levels of red (n, 8, 8)."""
    canvases = page.query_selector_all(f"{selector} canvas")
    return np.array([canvas.evaluate(PIXELS) for canvas in canvases]).reshape(-1, 8, 8)


def test_samples_are_drawn_with_their_path(page: playwright.Page, finished_run: Path):
    page.fill("#draw [name=count]", "5")
    page.fill("#draw [name=nfe]", "7")
    page.fill("#draw [name=seed]", "3")
    page.click("#draw .go")
    page.wait_for_selector("#draw .scrub:not([hidden])")
    drawn = tiles(page, "#draw .tiles")
    expected = load_run(finished_run).sample(5, nfe=7, seed=3)
    np.testing.assert_allclose(drawn, expected.values * (255 / 16), atol=0.5)
    assert page.get_attribute("#draw .frames", "max") == "7"  # frames, and the samples
    page.evaluate("frames = document.querySelector('#draw .frames'); frames.value = 0; frames.oninput()")
    says(page, "#draw .time", "t = 1")
    noise = tiles(page, "#draw .tiles")
    page.check("#draw [value=guess]", force=True)
    page.wait_for_timeout(200)
    assert (noise != drawn).mean() > 0.5 and (tiles(page, "#draw .tiles") != noise).mean() > 0.5
    assert "--config.sampling.seed=3" in page.text_content("#draw code")


def test_a_painted_mask_is_filled_in(page: playwright.Page):
    page.click("#tab-fill")
    says(page, "#source-words", "held-out image 0")
    box = page.query_selector("#mask").bounding_box()
    page.evaluate("document.querySelector('#fill [name=brush]').value = 0.5")
    page.mouse.move(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 4.5 / 8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 5.5 / 8, box["y"] + box["height"] * 4.5 / 8)
    page.mouse.up()
    page.fill("#fill [name=count]", "3")
    page.fill("#fill [name=nfe]", "7")
    page.click("#fill .go")
    page.wait_for_selector("#fill .summary:not([hidden])")
    filled = tiles(page, "#fill .results > .tiles")
    known = np.ones((8, 8), bool)
    known[4, 2:6] = False
    original = load_digits().test[0, 0].numpy() * (255 / 16)
    assert filled.shape == (3, 8, 8)
    np.testing.assert_allclose(filled[:, known], original[known][None].repeat(3, 0), atol=0.5)
    assert len({tuple(sample) for sample in filled[:, ~known]}) > 1
    deviation = tiles(page, "#fill .deviation")[0]
    assert (deviation[known] == 0).all() and (deviation[~known] > 0).any()


def test_a_drawn_sample_is_scored(page: playwright.Page, finished_run: Path):
    page.fill("#draw [name=count]", "2")
    page.fill("#draw [name=nfe]", "7")
    page.click("#draw .go")
    page.wait_for_selector("#draw .chosen:not([hidden])")
    page.click("#draw .tile:nth-child(2)")
    page.click("#tab-score")
    page.fill("#score [name=draws]", "2")
    page.click("#score .go")
    page.wait_for_selector("#history:not([hidden])")
    run = load_run(finished_run)
    expected = run.log_likelihood(run.sample(2, nfe=7).values[1], settings={"n_draws": 2})
    found = f"{expected.bits_per_dim[0]:.3f} ± {expected.standard_error[0]:.3f}"
    assert page.text_content("#bits").replace("−", "-") == found
    assert "drawn sample 2" in page.text_content("#history tbody")


def test_work_stops(page: playwright.Page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(work, "FRAMES", 10_000)  # a message at each evaluation
    page.select_option("#draw [name=sampler]", "pc")
    page.fill("#draw [name=nfe]", "9999")
    page.click("#draw .go")
    page.wait_for_selector("#draw .view:not([hidden])")
    assert page.is_disabled("#fill .go")
    page.click("#draw .stop")
    says(page, "#draw .status", "stopped")
    page.wait_for_selector("#draw .go:not([disabled])")


def test_errors_are_sentences_on_the_page(page: playwright.Page, tmp_path: Path):
    page.select_option("#draw [name=sampler]", "heun")
    page.fill("#draw [name=nfe]", "1")
    page.click("#draw .go")
    page.wait_for_selector("#error:not([hidden])")
    assert "raise nfe" in page.text_content("#error")
    page.click("#tab-fill")
    says(page, "#source-words", "held-out image 0")
    assert page.is_hidden("#error")
    page.click("#fill .go")
    assert "Nothing is masked" in page.text_content("#error")
    for size, message in ((100, "not of a format that is read"), (20_000, "at most 0.0 MiB can be uploaded")):
        file = tmp_path / "image.png"
        file.write_bytes(b"0" * size)
        page.set_input_files("#file", file)
        says(page, "#error", message)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_can_be_read(dark: bool, browser: playwright.Browser, address: str):
    """No tab is wider than the screen, and text stands out from its ground by 4.5 to 1 (WCAG 2, AA)."""
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark" if dark else "light")
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    for tab in ("draw", "fill", "score"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab
    colours = page.evaluate(
        """() => Object.fromEntries(['ground', 'card', 'text', 'muted', 'accent', 'accent-text', 'alarm',
            'alarm-ground', 'soft'].map(name => [name,
            getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"""
    )
    pairs = [("text", "ground"), ("text", "card"), ("muted", "card"), ("muted", "ground"), ("text", "soft")]
    for text, ground in [*pairs, ("accent-text", "accent"), ("alarm", "alarm-ground")]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    page.close()


def contrast(a: str, b: str) -> float:
    """The contrast ratio of two colours #rrggbb (Web Content Accessibility Guidelines 2.2)."""
    lights = []
    for colour in (a, b):
        levels = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(lights) / min(lights)
