from __future__ import annotations

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

from score_diffusion.run.training.log import LOG_FILE, Recorder, finite_values, read_log
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
        recorder.save_loss_curve()
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
