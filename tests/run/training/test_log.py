from __future__ import annotations

import csv
import errno
import io
import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from score_diffusion.run.training.log import (
    CSV_FILE,
    LOG_FILE,
    Recorder,
    finite_values,
    level_names,
    read_log,
)
from score_diffusion.run.training.statistics import StatisticsSummary


def test_tensorboard_shows_what_the_files_hold(finished_run: Path):
    events = EventAccumulator(str(finished_run / "tensorboard")).Reload()
    rows = read_log(finished_run)
    for key in rows[0].keys() - {"step"}:
        if isinstance(rows[0][key], float):
            shown = {event.step: event.value for event in events.Scalars(key)}
            assert shown.keys() == {row["step"] for row in rows}
            np.testing.assert_allclose(
                [shown[row["step"]] for row in rows], [row[key] for row in rows], rtol=1e-6
            )
    (picture,) = events.Images("samples")
    with Image.open(io.BytesIO(picture.encoded_image_string)) as shown:
        with Image.open(finished_run / "samples/step_00000008.png") as file:
            assert picture.step == 8 and np.array_equal(np.asarray(shown), np.asarray(file))


def test_the_log_survives_a_crash(tmp_path: Path):
    """Steps done again replace those that were lost, and a torn line costs only itself."""
    rows = [{"step": step, "loss": loss} for step, loss in ((2, 1.0), (4, 2.0), (6, 3.0), (4, 5.0))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / LOG_FILE).write_text(text.replace('"loss": 3.0}', '"lo'))
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(2, 1.0), (4, 5.0)]
    assert read_log(tmp_path / "none") == []


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path):
    (tmp_path / LOG_FILE).write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "lo')
    with Recorder(tmp_path, 2, 9):
        with open(tmp_path / LOG_FILE, "a") as file:
            file.write('{"step": 4, "loss": 3.0}\n')
    assert [row["loss"] for row in read_log(tmp_path)] == [1.0, 3.0]


ODD_LINES = [
    *(b"{}", b"[1]", b"7", b"null", b'"text"', b"\xff\xfe", b"", b"[" * 100_000, b'{"step": "4"}'),
    *(b'{"step": null, "loss": 1}', b'{"step": true, "loss": 1}', b'{"step": 4.5}', b'{"loss": 1}', b"\x00"),
]


@pytest.mark.slow
@pytest.mark.parametrize("line", ODD_LINES)
def test_odd_lines_are_passed_over(line: bytes, tmp_path: Path):
    rows = [b'{"step": 2, "loss": 1.0}', line, b'{"step": 4, "loss": 3.0}']
    (tmp_path / LOG_FILE).write_bytes(b"\n".join(rows) + b"\n")
    assert [row["step"] for row in read_log(tmp_path)] == [2, 4]
    with Recorder(tmp_path, 4, 9) as recorder:
        recorder.save_summary()
    assert (tmp_path / "loss_curve.png").exists()


def test_values_that_are_no_finite_numbers_are_left_out():
    values = [1.0, None, math.nan, "2", [3], True, math.inf, 4]
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)] + [{"step": 8}]
    assert finite_values(rows, "loss") == ([0, 7], [1.0, 4])


def test_a_full_disk_raises_an_error_and_tensorboard_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    summary = StatisticsSummary(1.0, 1.0, [], [], 0, 0)
    hook = threading.excepthook
    with pytest.raises(OSError, match="No space left"):
        with Recorder(tmp_path, 0, 9) as recorder:
            monkeypatch.setattr(RecordWriter, "write", full)
            for step in range(1, 9):
                recorder.log(step, summary, 0.1, 1.0, None)
                time.sleep(0.05)
    assert "Traceback" not in capsys.readouterr().err and threading.excepthook is hook


def test_the_table_holds_the_log(finished_run: Path):
    with open(finished_run / CSV_FILE, newline="") as file:
        table = list(csv.DictReader(file))
    rows = read_log(finished_run)
    assert [int(line["step"]) for line in table] == [row["step"] for row in rows]
    for line, row in zip(table, rows, strict=True):
        names = level_names("level_loss", row["level_edges"])
        numbers = {key: value for key, value in row.items() if not key.startswith("level_")}
        for name, value in (numbers | dict(zip(names, row["level_losses"], strict=True))).items():
            assert (None if line[name] == "" else float(line[name])) == value, name
        assert line.keys() == numbers.keys() | set(names)


def test_a_table_has_a_place_for_what_only_some_rows_have(tmp_path: Path):
    """Steps done again replace those that were lost, and odd values are left out."""
    edges = [-1.0, 0.0]
    rows = [
        {"step": 2, "loss": 9.0},
        {"step": 4, "loss": None, "other": "=1+1"},
        {"step": 2, "loss": 1.5, "level_edges": edges, "level_losses": [1.0, None, 3.0]},
        {"step": 6, "level_edges": edges, "level_accuracies": [0.25, 0.5, 1.0], "loss": "=1+1"},
    ]
    (tmp_path / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Recorder(tmp_path, 6, 9) as recorder:
        recorder.save_summary()
    header, *lines = (tmp_path / CSV_FILE).read_text().splitlines()
    kinds = ("below 0.368", "0.368 to 1", "above 1")
    names = [
        f"level_{q}/{k} sigma over alpha {kind}" for q in ("loss", "accuracy") for k, kind in enumerate(kinds)
    ]
    assert header.split(",") == ["step", "loss", *names]
    assert lines == ["2,1.5,1.0,,3.0,,,", "4,,,,,,,", "6,,,,,0.25,0.5,1.0"]
