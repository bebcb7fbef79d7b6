"""The documents: their snippets run as printed, their links lead somewhere, their prose is wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from score_diffusion.run.keys import MODES
from tests.test_imports import ROOMS

ROOT = Path(__file__).resolve().parents[1]
TOUR = sorted((ROOT / "docs/tour").glob("*.md"))  # its snippets run in test_tour.py, page by page
HOW_TO = sorted((ROOT / "docs/how_to").glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *TOUR, *HOW_TO]
SNIPPETS = [
    pytest.param(code, id=f"{path.name}-{i}")
    for path in DOCUMENTS
    if path not in TOUR
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M))
]
WIDTH = 100
NOT_WRAPPED = {  # to be wrapped: this list only shrinks
    *("data.md", "networks.md"),
}


def prose(text: str) -> Iterator[str]:
    """The lines outside of tables, code and pictures."""
    in_code = False
    for line in text.splitlines():
        in_code ^= line.lstrip().startswith("```")
        if not in_code and not line.lstrip().startswith(("|", "```", "![")):
            yield line


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # they write files
    exec(compile(code, "snippet", "exec"), {})
    assert "nan" not in capsys.readouterr().out


def test_readme_shows_the_library():
    assert any("PCSampler" in snippet.values[0] for snippet in SNIPPETS)


def test_readme_lists_every_mode_and_every_document():
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| [a-z]", readme.split("| config |")[0], re.M) == list(MODES)
    for path in set(DOCUMENTS) - set(TOUR) | {ROOT / "docs/tour/index.md"}:
        assert path.name == "README.md" or f"({path.relative_to(ROOT).as_posix()})" in readme, path.name


def test_the_home_page_lists_every_how_to():
    home = (ROOT / "docs/index.md").read_text()
    for path in HOW_TO:
        assert f"(how_to/{path.name})" in home, path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    folders = "sde_lib|models|samplers|run|score_diffusion|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./]+)`", path.read_text()):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{path.name} names {name}, which does not exist"


def test_the_architecture_lists_the_rooms_in_the_order_of_their_imports():
    text = (ROOT / "docs/architecture.md").read_text()
    listed = [Path(name).stem for name in re.findall(r"^\| `run/([\w.]+?)/?` \|", text, re.M)]
    assert sorted(listed) == sorted(ROOMS)
    for i, room in enumerate(listed):
        assert ROOMS[room] <= set(listed[i + 1 :]), f"{room} imports {ROOMS[room] - set(listed[i + 1 :])}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_said_to_be_in_a_file_is_there(path):
    for name, file in re.findall(r"`([\w.]+)`\s+in\s+`([\w/]+\.py)`", path.read_text()):
        for part in name.split("."):
            defined = re.search(rf"^ *(def|class) {part}\b|^{part}\b", (ROOT / file).read_text(), re.M)
            assert defined, f"{path.name} says that {part} is in {file}"


def test_each_recipe_names_as_many_files_as_it_says():
    text = (ROOT / "docs/extending.md").read_text()
    recipes = re.findall(r"^## A new ([\w ]+): (\d) files\n(.*?)(?=^## )", text, re.M | re.S)
    files = {what: re.findall(r"^\d\. `([\w./]+)`", steps, re.M) for what, _, steps in recipes}
    assert {what: len(names) for what, names in files.items()} == {what: int(n) for what, n, _ in recipes}
    most = {"SDE": 3, "sampler": 3, "guidance method": 3, "network": 3, "metric": 3, "checkpoint format": 2}
    assert {what: int(n) for what, n, _ in recipes} == most
    for name in (name for names in files.values() for name in names):
        assert (ROOT / name).exists() or "NAME" in name and (ROOT / name).parent.is_dir(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_prose_is_wrapped(path):
    long = [line for line in prose(path.read_text()) if len(line) > WIDTH and path.name not in NOT_WRAPPED]
    assert not long, f"{path.name} has lines of more than {WIDTH} characters: {long}"
