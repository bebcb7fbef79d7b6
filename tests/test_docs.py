"""The code that the documents show runs as printed, and the commands they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{path.name}-{i}")
    for path in DOCUMENTS
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code, capsys):
    exec(compile(code, "snippet", "exec"), {})
    assert "nan" not in capsys.readouterr().out


def test_readme_shows_the_library():
    assert any("PCSampler" in snippet.values[0] for snippet in SNIPPETS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
