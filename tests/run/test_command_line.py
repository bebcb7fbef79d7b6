from __future__ import annotations

from pathlib import Path

import pytest

from score_diffusion.run.command_line import read_command_line, split_overrides
from score_diffusion.run.errors import UserError


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


def test_short_flags_stand_for_keys():
    line = read_command_line(["--mode=sample", "--sampler", "pc", "--nfe=9", "--grid=karras"])
    assert line.overrides == [("sampling.sampler", "pc"), ("sampling.nfe", "9"), ("sampling.grid", "karras")]


def test_a_run_directory_is_named_after_the_experiment(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments, workdir in (
        ([], "runs/vpsde"),
        (["--config=score_sde:vp_ddpm"], "runs/score_sde_vp_ddpm"),
        (["--config=somewhere/mine.py"], "runs/mine"),
        (["--workdir=~/x"], tmp_path / "x"),
    ):
        assert read_command_line(["--mode=train", *arguments]).workdir == Path(workdir)


def test_only_convert_takes_a_path():
    assert read_command_line(["--mode=convert", "--from=diffusers", "folder"]).path == Path("folder")
    with pytest.raises(UserError, match="unknown argument 'folder'"):
        read_command_line(["--mode=train", "folder"])


@pytest.mark.parametrize(
    ("arguments", "section"),
    [(["--help_config"], ""), (["--help_config", "training"], "training"), (["--help_config=sde."], "sde.")],
)
def test_help_on_keys_with_and_without_a_section(arguments: list[str], section: str):
    assert read_command_line(arguments).flags.help_config == section
