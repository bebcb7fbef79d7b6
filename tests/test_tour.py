"""The tour: each page's Python runs from top to bottom, its pictures are drawn by the command below them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from docs.tour.figures.drawing import python_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs/tour").glob("[0-9]*.md"))
PICTURES = sorted(path.stem for path in (ROOT / "docs/images/tour").glob("*.png"))
SMALL = 16  # whatever the picture counts: samples, points

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.mark.slow
@each_page
def test_the_python_of_a_page_runs_from_top_to_bottom(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page), str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert printed and "nan" not in printed


@each_page
def test_a_page_proves_what_it_says_and_ends_with_things_to_try(page):
    text = page.read_text(encoding="utf-8")
    assert "assert" in python_of(page)
    tasks = re.search(r"^## Try this\n\n((?:.|\n)+)\Z", text, re.M)
    assert tasks and 2 <= len(re.findall(r"^\d\. ", tasks[1], re.M)) <= 3


@each_page
def test_each_picture_of_a_page_has_its_command_below(page):
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(\.\./images/tour/(\w+)\.png\)", text)
    assert pictures
    for name in pictures:
        assert f"```\npython -m docs.tour.figures.{name}\n```" in text
        assert name in PICTURES


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn(name):
    assert isinstance(importlib.import_module(f"docs.tour.figures.{name}").draw(SMALL), Figure)
    assert (ROOT / f"docs/images/tour/{name}.png").stat().st_size < 100_000


def test_the_index_lists_the_chapters_in_their_order():
    index = (ROOT / "docs/tour/index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. \[[^]]+\]\((\w+\.md)\)", index, re.M)
    assert listed == [page.name for page in PAGES]
