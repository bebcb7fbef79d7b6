"""--help_config, and the page of all configuration keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from score_diffusion.run.commands.help_config import groups, page
from score_diffusion.run.keys import KEYS
from score_diffusion.run.main import main

PAGE = Path(__file__).resolve().parents[3] / "docs/configuration.md"


def test_the_page_is_the_code():
    assert PAGE.read_text() == page(), (
        "write it again: python -m score_diffusion.run.commands.help_config docs/configuration.md"
    )


def test_the_page_has_every_key_once():
    names = [name for keys in groups().values() for name in keys]
    assert set(KEYS) <= set(names)
    assert "sde.sigma_max" in names and "model.heads" in names


@pytest.mark.parametrize(
    ("arguments", "shown", "hidden"),
    [
        ([], ["--config.seed=0", "--config.sampling.seed=0", "model.name=dit"], []),
        (["training"], ["--config.training.steps=2600", "an integer of at least 1; may"], ["--config.seed"]),
        (["training."], ["--config.training.schedule=cosine"], ["--config.sampling.seed"]),
        (["training.steps"], ["training steps at most"], ["training.images"]),
        (["sde"], ["sde.name=vesde", "--config.sde.sigma_max=50.0"], ["model"]),
    ],
)
def test_keys_are_explained_by_section(arguments: list[str], shown: list[str], hidden: list[str], capsys):
    assert main(["--help_config", *arguments]) == 0
    output = capsys.readouterr().out
    assert all(text in output for text in shown) and not any(text in output for text in hidden)


def test_an_unknown_section_is_refused(refused):
    assert "names, such as training; --help_config lists all" in refused(main(["--help_config", "trainig"]))
