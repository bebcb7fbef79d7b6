"""A headless Chromium for tests of pages, and what a page must not do in it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CONTRAST = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = text => {  // by the browser itself, whatever notation it has
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
    if (!node.checkVisibility()) continue;
    const style = getComputedStyle(node), inSvg = node instanceof SVGElement;
    const front = luminance(parse(inSvg ? style.fill : style.color).slice(0, 3));
    const back = luminance(behind(node).slice(0, 3));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.push([ratio, text]);
  }
  return found;
}
"""
"""The contrast of all text that is seen, by the formula of WCAG 2.2, with the text."""


def chromium() -> str | None:
    """The program; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


needs_browser = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or chromium() is None,
    reason="needs the package playwright and a Chromium on PATH",
)


@contextmanager
def started_browser() -> Iterator[Any]:
    """The browser, without its sandbox, which containers do not allow."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(running: Any, path: Path, size: str, theme: str, scripts: bool = True) -> Iterator[Any]:  # noqa: ANN401
    """A page in a window of a size of `SIZES`; it may ask for no other file and complain of nothing."""
    width, height = SIZES[size]
    context = running.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, java_script_enabled=scripts
    )
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert not complaints
    assert {url.partition("#")[0] for url in requests if not url.startswith("data:")} == {path.as_uri()}
    context.close()


def assert_fits(page: Any) -> None:  # noqa: ANN401
    """Nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(node => node.checkVisibility() &&
             !node.closest('.scroll') && node.getBoundingClientRect().right > innerWidth + 1
           ).map(node => node.tagName + ': ' + node.textContent.slice(0, 40))"""
    )
    assert not wide


def assert_can_be_read(page: Any, least: float = 4.5) -> int:  # noqa: ANN401
    """All text has enough contrast to its background; returns how many pieces of text there are."""
    found = page.evaluate(CONTRAST)
    faint = [(round(ratio, 2), text) for ratio, text in found if ratio < least]
    assert not faint
    return len(found)
