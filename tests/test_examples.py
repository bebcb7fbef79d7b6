"""Every example runs, with tiny settings, and says what it promises."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.run.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
SMALLEST = {  # arguments, and what is printed
    "own_loop": ("--steps 20", "standard deviations of the samples: ["),
    "own_data": ("--steps 1 --samples 2 --workdir runs/own", "samples: (2, 8, 8) uint8"),
    "diffusers_unet": ("--steps 1 --channels 8 --nfe 2", "samples: (36, 8, 8) from 2 evaluations each"),
    "exact_likelihood": ("--points 20", "VESDE"),
    "guidance": ("--samples 100", "on its own side"),
    "run_from_python": (f"--steps 1 --nfe 4 --config {TINY}", "pixels that come back: 1.0"),
}


def run(name: str, arguments: str) -> None:
    importlib.import_module(f"examples.{name}").main(arguments.split())


def test_all_are_listed():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs(name: str, tmp_path: Path, capsys, monkeypatch):
    if name == "diffusers_unet":
        pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    arguments, printed = SMALLEST[name]
    run(name, arguments)
    assert printed in capsys.readouterr().out


def test_likelihoods_are_exact(capsys):
    run("exact_likelihood", "--points 20")
    errors = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(errors) == 3 and max(errors) < 2e-3


def test_a_larger_scale_mistakes_fewer_samples_for_the_other_class(capsys):
    run("guidance", "--samples 400")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    shares = [float(share.rstrip("%")) for _, share, *_ in rows]
    deviations = [float(deviation) for _, _, deviation, _ in rows]
    assert abs(shares[0] - 50) < 8 and abs(shares[1] - 83.9) < 6  # Φ(0.7/√0.5)
    assert shares == sorted(shares) and shares[-1] > 99 and deviations[-1] < deviations[1]


def test_the_page_lists_them():
    listed = re.findall(r"\(\.\./examples/(\w+)\.py\)", (ROOT / "docs/python.md").read_text())
    assert listed == list(SMALLEST)
