"""Odd JSON files of a run and odd flags: exit code 0 or 2, never a traceback, and the run stays as it was.

Seeded. FUZZ_COMMANDS=5000 pytest tests/run/test_fuzz.py tries more, and FUZZ_SEED=1 others. Images, archives
and checkpoints have their own: data/test_fuzz.py and checkpoints/test_fuzz.py.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import load_config, read_config
from score_diffusion.run.constructor_keys import declared_keys
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main
from score_diffusion.run.training.log import finite_values, read_log
from tests.run.conftest import TINY

COMMANDS, SEED = int(os.environ.get("FUZZ_COMMANDS", "30")), int(os.environ.get("FUZZ_SEED", "0"))
READS_EACH = 8  # files that are only read, for each command: they cost little
MEMORY = 2**30  # bytes that all commands on this small run may come to take
SECONDS = 120  # that one command may take
MODES = {  # the last flags count: they keep numbers small that are not refused
    "sample": ("--config.sampling.num_samples=2", "--nfe=2", "--sampler=eabm", "--grid=auto"),
    "likelihood": (
        *("--config.likelihood.num_images=2", "--config.likelihood.rtol=0.1", "--config.likelihood.atol=0.1"),
        *("--config.likelihood.method=ode", "--config.likelihood.n_probes=1"),
    ),
    "report": (),
    "train": ("--dry_run",),
}
ODD = (
    *(
        None,
        True,
        False,
        "",
        "x",
        "auto",
        "None",
        "\ud800",
        "a" * 10_000,
        "../x",
        "-1",
        "nan",
        0.5,
        -0.5,
        1e-320,
    ),
    *(-1, 0, 1, 3, 10**9, 2**31, 2**63, 10**30, -(10**9), 1e308, float("nan"), float("inf"), [], [0], [1, 2]),
    *([1.5, "x"], [[1]], [10**9], {}, {"a": 1}, {"name": None}, [None]),
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "-",
        "=",
        "None",
        "true",
        "auto",
        "nan",
        "inf",
        "1e400",
        "-1",
        "0",
        "1",
        "0.5",
        "1,2",
        "[[",
    ),
    *(
        "1000000000",
        "9" * 30,
        "9" * 5000,
        "(" * 300,
        "[]",
        "()",
        "{[]: 1}",
        "\ud800",
        "a\0b",
        "~nosuch/x",
        "\n",
    ),
    *("../../x", "'", '"', "é", "0x10", "1_000", " 7 ", "lambda: 0", "__import__('os')", "%s", "{}"),
)
FLAGS = (
    "--sampler",
    "--grid",
    "--nfe",
    "--mode",
    "--device",
    "--config",
    "--from",
    "--to",
    "--dry_run",
    "--x",
)


def places(value: object) -> Iterator[tuple[dict | list, str | int]]:
    """Each place in a JSON value, as its container and the key or index there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def edited(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with values replaced or removed, or with damaged bytes."""
    kind, place = draw.choice(("edit",) * 6 + ("cut", "flip", "deep", "insert")), draw.randrange(len(content))
    if kind == "edit":
        value = json.loads(content)
        for _ in range(draw.choice((1, 1, 2))):
            container, key = draw.choice(list(places(value)) or [({}, "none")])
            if draw.random() < 0.15 and isinstance(container, dict):
                del container[key]
            else:
                container[key] = draw.choice(ODD)
        return json.dumps(value).encode()
    return {
        "cut": content[:place],
        "flip": content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
        "deep": content[:place] + b'{"a":[' * 50_000 + content[place:],
        "insert": content[:place] + draw.randbytes(5) + content[place:],
    }[kind]


@pytest.fixture
def run(trained: Path) -> Path:
    """A run with a JSON file of each kind."""
    for mode in ("sample", "likelihood"):
        assert main(["--mode", mode, "--workdir", str(trained), *MODES[mode]]) == 0
    return trained


@pytest.fixture
def command(snapshot: Callable, run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Runs a command; checks how it ends, and that it changes no file that is there."""

    def check(*arguments: str) -> int:
        before = snapshot(run)
        capsys.readouterr()
        signal.alarm(SECONDS)
        code = main(list(arguments))
        signal.alarm(0)
        said, after = capsys.readouterr().err, snapshot(run)
        assert code in (0, 2) and "Traceback" not in said, f"{arguments} ended with {code}:\n{said}"
        assert code == 0 or any(line.startswith("error: ") for line in said.splitlines()), arguments
        assert {name: after.get(name) for name in before} == before, f"{arguments} changed a file"
        for name in after.keys() - before.keys():
            (run / name).unlink()
        return code

    return check


def memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_commands_on_odd_files(run: Path, command: Callable):
    draw, before, codes = random.Random(SEED), memory(), []
    files = [path for path in sorted(run.rglob("*.json")) if path.name != "sha256.json"]
    files += [run / "config.json"] * len(files)  # most of what can be wrong
    for _ in range(COMMANDS):
        path, mode = draw.choice(files), draw.choice(list(MODES))
        content = path.read_bytes()
        path.write_bytes(edited(content, draw))
        codes.append(command("--mode", mode, "--workdir", str(run), *MODES[mode]))
        path.write_bytes(content)
    assert {0, 2} == set(codes)  # the oddities are neither all fatal nor all without effect
    assert memory() - before < MEMORY


@pytest.mark.slow
def test_commands_with_odd_flags(run: Path, command: Callable):
    draw, before, codes = random.Random(SEED), memory(), []
    keys = [f"--config.{name}" for name in declared_keys(load_config(TINY))]
    for _ in range(COMMANDS):
        mode = draw.choice(list(MODES))
        flags = [f"{draw.choice(keys)}={draw.choice(TEXTS)}"]
        if draw.random() < 0.2:
            flags.append(draw.choice((f"{draw.choice(FLAGS)}={draw.choice(TEXTS)}", draw.choice(TEXTS))))
        codes.append(command("--mode", mode, "--workdir", str(run), *flags, *MODES[mode]))
    assert 2 in codes
    assert memory() - before < MEMORY


READERS = {
    "config.json": read_config,
    "data.json": read_data_info,
    "checkpoints/00000008/summary.json": checkpoint.best,
    "checkpoints/00000008/sha256.json": checkpoint.best,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_readers_of_odd_files(name: str, run: Path):
    draw, content, outcomes = random.Random(SEED), (run / name).read_bytes(), set()
    for _ in range(READS_EACH * COMMANDS // 4):
        (run / name).write_bytes(edited(content, draw))
        try:
            READERS[name](run)
        except UserError as error:
            assert len(str(error)) < 3000
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert "read" in outcomes


def test_any_line_may_be_in_the_log(run: Path):
    draw, content = random.Random(SEED), (run / "log.jsonl").read_bytes()
    lines = content.splitlines()
    for _ in range(READS_EACH * COMMANDS):
        odd = [edited(draw.choice(lines), draw) for _ in range(3)]
        (run / "log.jsonl").write_bytes(b"\n".join([*lines, *odd, b""]))
        rows = read_log(run)
        assert len(rows) >= len(lines)
        for key in rows[0]:
            finite_values(rows, key)
