"""What TensorBoard and Weights & Biases show, read back from their files."""

from __future__ import annotations

import importlib.util
import json
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from score_diffusion.run.errors import UserError
from score_diffusion.run.training.log import level_names, read_log
from score_diffusion.run.training.log_targets import LogSettings, opened_targets


def test_tensorboard_shows_the_settings_and_names_noise_levels(finished_run: Path):
    events = EventAccumulator(str(finished_run / "tensorboard")).Reload()
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| `training.steps` | `8` |" in text and "| `sde.beta_max` | `20.0` |" in text
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["training.steps"].number_value == 8 and shown["sde.name"].string_value == "vpsde"
    assert "sampling.seed" not in shown  # which decides no training
    rows = read_log(finished_run)
    for k, name in enumerate(level_names("level_loss", rows[0]["level_edges"])):
        expected = {row["step"]: row["level_losses"][k] for row in rows if row["level_losses"][k] is not None}
        found = {event.step: event.value for event in events.Scalars(name)} if expected else {}
        assert found == pytest.approx(expected)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"pip install score-diffusion\[wandb\]"):
        LogSettings({}, "digits")


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format after a header of 7 bytes, as wandb writes them."""
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:
            position += 2**15 - position % 2**15
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.slow
def test_weights_and_biases_has_the_log_offline(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A resumed training continues the run there."""
    pytest.importorskip("wandb", reason="needs the extra wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    arguments = ("--config.training.wandb=digits", "--config.training.preview_samples=2")
    assert cli("train", run, *arguments, "--config.training.steps=4") == 0
    assert cli("train", run, *arguments) == 0
    assert signal.getsignal(signal.SIGINT) is before
    found: dict[int, dict[str, float]] = {}
    names, settings, pictures = set(), {}, 0
    for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for record in map(Record.FromString, records(path)):
            if record.HasField("run"):
                names.add((record.run.project, record.run.run_id))
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "loss" in row:
                found[int(row["_step"])] = {key: json.loads(text) for key, text in row.items()}
            pictures += "samples" in row
    rows = {row["step"]: row for row in read_log(run)}
    assert found.keys() == rows.keys() == {3, 4, 6, 8} and pictures >= 1
    for step, row in rows.items():
        assert found[step]["loss"] == row["loss"]
        for name, loss in zip(
            level_names("level_loss", row["level_edges"]), row["level_losses"], strict=True
        ):
            assert found[step].get(name) == loss
    assert names == {("digits", json.loads((run / "wandb.json").read_text())["id"])}
    assert settings["training.batch_size"] == 8


def test_each_target_gets_what_is_logged(tmp_path: Path):
    with opened_targets(tmp_path, 0, LogSettings()) as targets:
        for target in targets:
            target.scalars({"loss": 0.5}, 3)
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert (event.step, event.value) == (3, np.float32(0.5))
