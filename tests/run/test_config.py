from __future__ import annotations

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from score_diffusion.run.config import (
    apply_overrides,
    changed_keys,
    changed_text,
    config_text,
    differing_keys,
    flatten,
    load_config,
    read_config,
    save_config,
)
from score_diffusion.run.config_files import config_names
from score_diffusion.run.errors import UserError


@pytest.mark.slow
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
        ("training.stepz", "7", "did you mean training.steps.* --help_config training. lists"),
        ("nowhere.at.all", "7", "unknown configuration key"),
        ("training", "7", "unknown configuration key"),
        ("num_samples", "4", "did you mean sampling.num_samples or"),
        ("batch_size", "4", "did you mean training.batch_size or sampling.batch_size or interpolate"),
        ("training.steps", "0", "an integer of at least 1, got 0"),
        ("training.learning_rate", "nan", "a number above 0, got nan"),
        ("training.learning_rate", "0", "a number above 0, got 0.0"),
        ("training.warmup_steps", "-1", "an integer of at least 0"),
        ("training.ema_decay", "1", "a number of at least 0 and below 1"),
        ("training.ema_sigma_rels", "0.1,0.3", "numbers above 0 and below 0.28, separated by commas"),
        ("sde.N", "auto", "'sde.N' must be an integer, got 'auto'"),
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
        ("def get_config(): return {}['key']", "does not run: KeyError: 'key'"),
        ("get_config = dict", "ConfigDict"),
        ("from ml_collections import ConfigDict as get_config", "lacks data, sde, model, training"),
    ],
)
def test_bad_configuration_files_are_refused(source: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


def test_a_file_that_ends_python_is_refused(tmp_path: Path):
    for source in ("raise SystemExit('bye')", "def get_config(): raise SystemExit('bye')"):
        (tmp_path / "mine.py").write_text(source)
        with pytest.raises(UserError, match="mine.py does not run: SystemExit: bye"):
            load_config(str(tmp_path / "mine.py"))


def test_unknown_names_and_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="one of .* such as vpsde, .*--help lists all"):
        load_config("vpsd")
    with pytest.raises(UserError, match="does not exist"):
        load_config(str(tmp_path / "none.py"))


def test_arguments_that_are_left_out_have_their_defaults(tmp_path: Path):
    config = load_config("vpsde").to_dict()
    del config["model"]["norm_eps"], config["sde"]["N"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not differing_keys(read_config(tmp_path), load_config("vpsde"))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training", "steps", 0, "'training.steps' must be an integer of at least 1, got 0"),
        ("training", "steps", "7", "'training.steps' must be an integer of at least 1, got '7'"),
        ("training", "stepz", 7, "did you mean training.steps"),
        ("sde", "sigma_min", 0.1, "sde 'vpsde' has no sde.sigma_min: choose one of beta_min, beta_max, N"),
        ("model", "depth", 3, "model 'unet' has no model.depth: choose one of .* names, such as "),
        ("model", "name", "resnet", "'model.name' must be one of .* such as unet, got 'resnet'"),
    ],
)
def test_a_file_with_wrong_keys_is_refused(
    section: str, key: str, value: object, message: str, tmp_path: Path
):
    config = load_config("vpsde").to_dict()
    config[section][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_what_differs_from_the_defaults_is_what_an_experiment_sets():
    assert changed_keys(load_config("vpsde")).keys() == {"model.channels", "model.embedding"}
    changed = apply_overrides(load_config("vpsde"), [("training.steps", "7")])
    assert changed_keys(changed)["training.steps"] == (7, 2600)
    assert "training.steps = 7" in changed_text(changed).splitlines()
    assert len(config_text(changed).splitlines()) == len(flatten(changed))


def test_a_run_does_not_decide_where_results_are_written(tmp_path: Path):
    config = load_config("vpsde").to_dict()
    config["sampling"]["output"] = "/somewhere/else"
    config["training"]["wandb"] = "theirs"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).sampling.output == read_config(tmp_path).training.wandb == ""


@pytest.mark.parametrize(
    ("section", "value"), [("evaluation", [1]), ("restore", 3), ("sampling.eabm", 3), ("sampling.pc", None)]
)
def test_sections_are_sections(section: str, value: object, tmp_path: Path):
    config = load_config("vpsde").to_dict()
    *outer, last = section.split(".")
    (config[outer[0]] if outer else config)[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json is damaged .{section} must be an object, got"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_config_file_is_refused(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path)


def test_keys_newer_than_a_run_get_their_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = load_config("vpsde").to_dict()
    del config["training"]["condition_dropout"], config["sampling"]["grid"], config["sampling"]["pc"]
    del config["evaluation"], config["restore"]
    config["sampling"]["label"] = -1
    (tmp_path / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        assert read_config(tmp_path) == apply_overrides(load_config("vpsde"), [("sampling.label", "-1")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "training.condition_dropout=0.1" in said and "grid" not in said


def test_a_relative_data_path_is_made_absolute():
    config = apply_overrides(load_config("vpsde"), [("data.path", "mine.npz")])
    assert Path(config.data.path) == Path("mine.npz").resolve()
    assert isinstance(config, ConfigDict)


def test_options_of_a_sampler_are_keys_of_its_own():
    config = apply_overrides(
        load_config("vpsde"),
        [("sampling.pc.snr", "0.2"), ("sampling.sampler", "pc"), ("sampling.steps", "9")],
    )
    assert config.sampling.pc.snr == 0.2 and config.sampling.pc.predictor == "reverse_diffusion"
    with pytest.raises(
        UserError, match="option of sampler 'pc', and the sampler is 'heun': add --sampler pc"
    ):
        apply_overrides(config, [("sampling.pc.snr", "0.3"), ("sampling.sampler", "heun")])
    with pytest.raises(UserError, match="did you mean sampling.pc.snr"):
        apply_overrides(config, [("sampling.snr", "0.3")])


def test_a_grid_belongs_to_the_sampler_it_was_chosen_for():
    ncsn = load_config("ncsn")
    assert (ncsn.sampling.sampler, ncsn.sampling.grid) == ("ald", "chain")
    assert apply_overrides(ncsn, [("sampling.sampler", "ald")]).sampling.grid == "chain"
    assert apply_overrides(ncsn, [("sampling.sampler", "pc")]).sampling.grid == "auto"
    both = [("sampling.grid", "karras"), ("sampling.sampler", "pc")]
    assert apply_overrides(ncsn, both).sampling.grid == "karras"


def test_stochastic_chooses_a_sampler_and_follows_the_sampler():
    config = load_config("vpsde")
    assert (config.sampling.sampler, config.sampling.stochastic) == ("eabm", False)
    chosen = apply_overrides(config, [("sampling.grid", "karras"), ("sampling.stochastic", "True")]).sampling
    assert (chosen.sampler, chosen.stochastic, chosen.grid) == ("eab_sde", True, "karras")
    named = apply_overrides(config, [("sampling.sampler", "pc"), ("sampling.stochastic", "True")])
    assert (named.sampling.sampler, named.sampling.stochastic) == ("pc", True)
    assert apply_overrides(named, [("sampling.stochastic", "False")]).sampling.sampler == "eabm"
    assert not apply_overrides(named, [("sampling.sampler", "heun")]).sampling.stochastic
    with pytest.raises(UserError, match="stochastic=True does not fit the sampler heun: leave"):
        apply_overrides(config, [("sampling.sampler", "heun"), ("sampling.stochastic", "True")])
