from __future__ import annotations

from pathlib import Path

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.systems.configuration import load_system, names_system

SYSTEM = str(Path(__file__).parents[1] / "tiny_system.py")


def test_a_system_is_told_from_a_run(tiny: str):
    assert names_system("cascade_mnist") and names_system(SYSTEM)
    assert not any(map(names_system, ("vpsde", tiny, "settings.json", "no_such_name")))


def test_overrides_of_one_stage_and_of_all(tmp_path: Path):
    overrides = [("training.steps", "3"), ("x8.training.steps", "5"), ("x8.model.channels", "16")]
    system, configs = load_system(SYSTEM, tmp_path, overrides)
    assert system.stages == ("base", "x8") and system.stage("x8") == tmp_path / "x8"
    assert [config.training.steps for config in configs.values()] == [3, 5]
    assert [config.model.channels for config in configs.values()] == [8, 16]


def test_an_unknown_key_or_stage_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown configuration key 'training.stepz'.*training.steps"):
        load_system(SYSTEM, tmp_path, [("training.stepz", "3")])
    with pytest.raises(UserError, match=r"unknown configuration key 'x16.training.steps'"):
        load_system(SYSTEM, tmp_path, [("x16.training.steps", "3")])
    with pytest.raises(UserError, match=r"unknown configuration key 'training.stepz'"):
        load_system(SYSTEM, tmp_path, [("x8.training.stepz", "3")])


def test_files_that_define_no_system(tmp_path: Path):
    file, head = tmp_path / "mine.py", "from score_diffusion.run.configs import vpsde\nKIND = 'cascade'\n"
    for body, sentence in (
        ("def get_stages(): return {}", "must give the configuration of each stage"),
        ("def get_stages(): return {'data': vpsde.get_config()}", "a stage cannot be called 'data'"),
        ("def get_stages(): return {'a': 3}", "stage a of .* must give an ml_collections.ConfigDict"),
        ("def get_stages(): return 1 / 0", "ZeroDivisionError"),
    ):
        file.write_text(head + body)
        with pytest.raises(UserError, match=sentence):
            load_system(str(file), tmp_path / "system")


def test_the_directory_of_another_stage(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from score_diffusion.run.configs import vpsde\n"
        "KIND = 'cascade'\n"
        "def get_stages():\n"
        "    second = vpsde.get_config()\n"
        "    second.sampling.autoguidance.run = '../first'\n"
        "    return {'first': vpsde.get_config(), 'second': second}\n"
    )
    _, configs = load_system(str(file), tmp_path / "system")
    assert configs["second"].sampling.autoguidance.run == str((tmp_path / "system/first").resolve())
