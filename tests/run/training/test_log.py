from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from score_diffusion.run.training.log import LOG_FILE, Recorder, read_log


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
    """Steps done again replace those that were lost, and a torn line costs itself alone."""
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


def test_a_start_from_scratch_forgets_the_log(tmp_path: Path):
    for step in (0, 3):
        (tmp_path / LOG_FILE).write_text('{"step": 2, "loss": 1.0}\n')
        with Recorder(tmp_path, step, 9):
            assert len(read_log(tmp_path)) == (step > 0)
