"""The documentation site builds without a warning, and every name, key, mode and flag has its place in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from filelock import FileLock

from score_diffusion.run.command_line import define_flags
from score_diffusion.run.commands.help_config import groups
from score_diffusion.run.config_files import config_names, system_names
from score_diffusion.run.keys import MODES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("score_diffusion", *("score_diffusion." + name for name in ("sde_lib", "models", "samplers")))
PACKAGES += ("score_diffusion.samplers.guidance", "score_diffusion.samplers.inverse")
NEEDED = ("mkdocs", "material", "mkdocstrings", "ziamath")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_mkdocs = pytest.mark.skipif(bool(missing), reason=f"the extra [docs] is not installed: no {missing}")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def hook(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built once: by the first process of pytest-xdist that needs it."""
    common = tmp_path_factory.getbasetemp()
    folder = (common.parent if "PYTEST_XDIST_WORKER" in os.environ else common) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists():
            command = ["make", "docs", f"BIN={Path(sys.executable).parent}", f"SITE={folder}"]
            made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert made.returncode == 0, made.stdout + made.stderr
    return folder


pytestmark = [pytest.mark.slow, needs_mkdocs, needs_make]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_its_place(site, package):
    page = (site / "reference" / f"{package.partition('.')[2] or package}.html").read_text()
    shown = set(re.findall(r'<h3 id="score_diffusion\.(?:\w+\.)*(\w+)"', page))
    assert set(importlib.import_module(package).__all__) <= shown


def test_every_key_has_its_place(site):
    page = unescape((site / "configuration.html").read_text())
    anchors = re.findall(r'<tr id="([^"]+)"', page)
    keys = [f"{title}.{name.rpartition('.')[2]}" for title, keys in groups().items() for name in keys]
    assert len(keys) > 250 and anchors == keys


def test_every_mode_flag_and_experiment_has_its_place(site):
    page = unescape((site / "reference/command_line.html").read_text())
    first_cells = set(re.findall(r"<td><code>([^<]*)</code></td>", page))
    flags = define_flags()
    assert {f"--{flag}" for flag in flags if flags[flag].name == flag} <= first_cells
    assert {f"--mode {mode}" for mode in MODES} <= first_cells
    for name in [*config_names(), *system_names()]:
        assert f"--config {name.partition(':')[0]}" in " ".join(first_cells)


def test_pages_fetch_nothing(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not fetched, f"{page.name} fetches {fetched}"


def test_formulas_are_rendered(site):
    pages = [page.read_text() for page in (site / "tour").glob("*.html")]
    assert sum(page.count("<math") for page in pages) > 20
    assert not any("arithmatex" in page for page in pages)
    assert (site / "assets/stix_two_math.ttf").stat().st_size > 500_000


def test_a_formula_that_is_not_known_is_refused():
    match = hook("formulas").FORMULA.match(r'<span class="arithmatex">\(\nonsense{x}\)</span>')
    with pytest.raises(ValueError, match=r"page.md: \\nonsense of the formula"):
        hook("formulas")._drawn(match, "page.md")


def test_docstrings_are_shown_as_they_are_written():
    docstrings = hook("docstrings")
    assert (
        docstrings.escaped("(B, *shape), <n>, `a*b`\n\n    a * b")
        == "(B, \\*shape), \\<n>, `a*b`\n\n    a * b"
    )
    together = "Args:\n    a, b: Two,\n        as before.\n    c: One."
    apart = "Args:\n    a: Two,\n        as before.\n    b: Two,\n        as before.\n    c: One."
    assert docstrings.separated(together) == apart
    references = "References:\n    One (A, 2020),\n        URL.\n    Two (B, 2021).\n\nMore."
    listed = "References:\n    - One (A, 2020),\n        URL.\n    - Two (B, 2021).\n\nMore."
    assert docstrings.listed(references) == listed
