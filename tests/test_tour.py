"""The tour: each page's Python runs from top to bottom, its pictures are drawn by the command below them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from docs.tour.figures.drawing import names_of, python_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs/tour").glob("[0-9]*.md"))
PICTURES = sorted(path.stem for path in (ROOT / "docs/images/tour").glob("*.png"))
SMALL = 16  # whatever the picture counts: samples, points

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.mark.slow
@each_page
def test_the_python_of_a_page_runs_from_top_to_bottom(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert names_of(page.stem)  # where a picture of the page was drawn before, it has run
    assert "nan" not in capsys.readouterr().out


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


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    pytest.importorskip("jupytext", reason="needs the package jupytext, of the extra [docs]")
    folder = tmp_path_factory.mktemp("notebooks")
    importlib.import_module("docs.tour.notebooks").main(folder)
    return folder


@each_page
def test_a_page_becomes_a_notebook_that_is_complete(page, notebooks):
    cells = json.loads((notebooks / f"{page.stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.split() == python_of(page).split()
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    kept = {name for cell in cells for name in cell.get("attachments", {})}
    assert set(re.findall(r"attachment:(\w+\.png)", text)) == kept != set()
    for link in re.findall(r"\]\(([^):]+)\)", text):
        assert (notebooks / link).exists(), link


@pytest.mark.slow
def test_a_notebook_runs(notebooks, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the package nbclient, of the extra [docs]")
    pytest.importorskip("ipykernel", reason="needs the package ipykernel, of the extra [docs]")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = importlib.import_module("nbformat").read(notebooks / "14_fast_sampling.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any("eabm" in str(cell.get("outputs")) for cell in notebook.cells)
