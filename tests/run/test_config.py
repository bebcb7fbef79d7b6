from __future__ import annotations

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from score_diffusion.run.config import (
    apply_overrides,
    config_names,
    differing_keys,
    flatten,
    load_config,
    parse_value,
    read_config,
    save_config,
    split_overrides,
)
from score_diffusion.run.errors import UserError


@pytest.mark.parametrize("name", config_names())
def test_every_experiment_loads_and_survives_json(name: str, tmp_path: Path):
    config = load_config(name)
    save_config(config, tmp_path)
    read = read_config(tmp_path)
    assert flatten(read) == flatten(config)
    assert differing_keys(read, config) == []
    with pytest.raises(AttributeError):
        read.training.stepz = 1  # locked


def test_the_experiments_that_are_promised():
    assert {"vpsde", "subvpsde", "vesde", "toy2d"} <= set(config_names())


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("12", 3, 12),
        ("1e-3", 0.5, 1e-3),
        ("2", 0.5, 2.0),
        ("true", False, True),
        ("0.5", "text", "0.5"),
        ("1,2,2", (1, 2), (1, 2, 2)),
        ("(4,)", (1, 2), (4,)),
        ("7", (1, 2), (7,)),
        ("3", None, 3),
        ("None", None, None),
    ],
)
def test_values_take_the_type_of_the_default(text: str, default: object, value: object):
    parsed = parse_value("section.key", text, default)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "default"),
    [("1.5", 3), ("x", 3), ("x", 0.5), ("yes!", True), ("1,x", (1,)), ("1.5", (1,)), ("x", None)],
)
def test_values_of_another_type_are_refused(text: str, default: object):
    with pytest.raises(UserError, match="section.key"):
        parse_value("section.key", text, default)


def test_overrides_are_taken_out_in_both_spellings():
    rest, overrides = split_overrides(
        ["--mode", "train", "--config.a.b=1=2", "--config.c", "-3", "--config", "vpsde"]
    )
    assert rest == ["--mode", "train", "--config", "vpsde"]
    assert overrides == [("a.b", "1=2"), ("c", "-3")]


@pytest.mark.parametrize("argv", [["--config.a.b"], ["--config.a.b", "--mode"]])
def test_an_override_needs_a_value(argv: list[str]):
    with pytest.raises(UserError, match="needs a value"):
        split_overrides(argv)


def test_overrides_leave_the_original_alone():
    config = load_config("vpsde")
    changed = apply_overrides(
        config, [("training.steps", "7"), ("seed", "3"), ("model.multipliers", "1,2,4")]
    )
    assert (changed.training.steps, changed.seed, changed.model.multipliers) == (7, 3, (1, 2, 4))
    assert set(differing_keys(config, changed)) == {"training.steps", "seed", "model.multipliers"}


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("training.stepz", "7", "did you mean 'training.steps'.*training.batch_size"),
        ("nowhere.at.all", "7", "unknown configuration key"),
        ("training", "7", "unknown configuration key"),
        ("training.steps", "0", "at least 1"),
        ("training.learning_rate", "nan", "finite"),
        ("training.learning_rate", "0", "above 0"),
        ("training.warmup_steps", "-1", "negative"),
        ("training.ema_decay", "1", "below 1"),
    ],
)
def test_bad_overrides_are_refused(key: str, text: str, message: str):
    with pytest.raises(UserError, match=message):
        apply_overrides(load_config("vpsde"), [(key, text)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (", "does not run: SyntaxError"),
        ("raise RuntimeError('no')", "does not run: RuntimeError: no"),
        ("x = 1", "must define get_config"),
        ("get_config = dict", "ConfigDict"),
        ("from ml_collections import ConfigDict as get_config", "lacks .*training.steps"),
    ],
)
def test_bad_configuration_files_are_refused(source: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


def test_unknown_names_and_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'vpsde'.*toy2d"):
        load_config("vpsd")
    with pytest.raises(UserError, match="does not exist"):
        load_config(str(tmp_path / "none.py"))


def test_a_run_from_before_a_key_existed_gets_its_default(tmp_path: Path):
    config = load_config("vpsde").to_dict()
    for section, key in (("training", "precision"), ("sampling", "ema"), ("model", "norm_eps")):
        del config[section][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not differing_keys(read_config(tmp_path), load_config("vpsde"))


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_config_file_is_refused(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path)


def test_a_relative_data_path_is_made_absolute():
    config = apply_overrides(load_config("vpsde"), [("data.path", "mine.npz")])
    assert Path(config.data.path) == Path("mine.npz").resolve()
    assert isinstance(config, ConfigDict)
