"""Settings in .json and .yaml files: some keys, or a run's config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion.run.config import flatten, load_config, read_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main

SOME = {"sde": {"name": "vesde", "sigma_max": 20}, "training": {"steps": 7, "extra_ema_decays": [0.9]}}


def test_some_settings_and_the_defaults(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(SOME))
    config, defaults = load_config(str(tmp_path / "a.json")), load_config("vesde")
    assert config.sde.name == "vesde" and config.sde.sigma_max == 20.0
    assert config.training.steps == 7 and config.training.extra_ema_decays == (0.9,)
    assert config.sampling == defaults.sampling and config.sde.sigma_min == defaults.sde.sigma_min


def test_yaml(tmp_path: Path):
    pytest.importorskip("yaml")
    text = "sde: {name: vesde, sigma_max: 20}\ntraining:\n  steps: 7\n  extra_ema_decays: [0.9]\n"
    for name in ("a.yaml", "b.yml"):
        (tmp_path / name).write_text(text)
        (tmp_path / "a.json").write_text(json.dumps(SOME))
        assert load_config(str(tmp_path / name)) == load_config(str(tmp_path / "a.json"))


def test_a_runs_own_file_trains_it_again(finished_run: Path, tmp_path: Path, capsys):
    source = finished_run / "config.json"
    assert flatten(load_config(str(source))) == flatten(read_config(finished_run))
    arguments = ["--mode", "train", "--config", str(source), "--workdir", str(tmp_path / "again")]
    assert main(arguments) == 0
    weights = "checkpoints/00000008/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (finished_run / weights).read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.json", '{"training": {"step": 7}}', "a.json: unknown configuration key 'training.step': did you"),
        ("a.json", '{"training": {"steps": 0.5}}', "a.json: .*training.steps' must be an integer"),
        ("a.json", '{"model": {"name": "unets"}}', "a.json: .*such as unet, got 'unets'"),
        ("a.json", "[1]", "a.json is damaged .*: give a file with sections"),
        ("a.yaml", "- 1", "a.yaml cannot be used .it holds a list.: give a file with sections"),
        ("a.yaml", "a: &x [1]\nb: *x", "it has aliases"),
        ("a.yaml", "a: !!python/object/apply:os.system [true]", "a.yaml cannot be used"),
        ("a.yaml", "a: [", "a.yaml cannot be used"),
        (
            "a.json",
            '{"data": {"path": "f.py:load"}}',
            "names the Python function f.py:load, and a file",
        ),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str, sentence: str, tmp_path: Path):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_config(str(tmp_path / name))


@pytest.mark.parametrize("name", ["no.json", "no.yaml"])
def test_a_missing_file(name: str, tmp_path: Path):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_config(str(tmp_path / name))


def test_quiet(trained: Path, cli: Callable, capsys, refused: Callable):
    assert cli("sample", trained, "--quiet") == 0
    assert capsys.readouterr() == ("", "") and (trained / "samples/eabm.npz").exists()
    assert "must be one of" in refused(cli("sample", trained, "--quiet", "--sampler=nothing"))
    assert cli("sample", trained) == 0
    assert "Samples by eabm" in capsys.readouterr().out
