"""Keys that follow from the signatures of SDEs and networks."""

from __future__ import annotations

from typing import Literal

import pytest

from score_diffusion.run.build import MODELS, SDES
from score_diffusion.run.config import load_config
from score_diffusion.run.constructor_keys import (
    argument_keys,
    arguments,
    declared_keys,
    explanations,
    sampler_keys,
)
from score_diffusion.run.errors import UserError
from score_diffusion.run.keys import SAMPLES
from score_diffusion.samplers import SAMPLERS


class Documented:
    """An example.

    Args:
        first: The first one.
        second: The second one, whose explanation
            takes two lines.

    Raises:
        ValueError: Never.
    """

    def __init__(self, first: int, second: float = 0.5, third: str | None = None) -> None: ...


class Commented:
    def __init__(
        self,
        size: int,  # of an image
        width: int = 3,  # channels; 0 for none
    ) -> None: ...


def test_default_type_and_explanation_of_arguments():
    keys = arguments(Documented)
    assert list(keys) == ["second", "third"]
    assert (keys["second"].default, keys["second"].type) == (0.5, float)
    assert keys["second"].explanation == "the second one, whose explanation takes two lines"
    assert keys["third"].type == str | None and keys["third"].explanation == ""
    assert explanations(Commented) == {"size": "of an image", "width": "channels; 0 for none"}


@pytest.mark.parametrize(("section", "name"), [*(("sde", n) for n in SDES), *(("model", n) for n in MODELS)])
def test_every_argument_is_explained_and_its_default_fits(section: str, name: str):
    keys = argument_keys(f"{section}.name", name)
    assert keys
    for argument, key in keys.items():
        key.check(argument, key.default)
        assert key.explanation and "train" in key.modes and key.may_change is False, argument


def test_noise_levels_may_be_left_to_a_rule():
    vesde, vpsde = argument_keys("sde.name", "vesde"), argument_keys("sde.name", "vpsde")
    assert (
        vesde["sde.N"].type == int | Literal["auto"]
        and vesde["sde.sigma_max"].type == float | Literal["auto"]
    )
    assert vesde["sde.sigma_min"].type is float and vpsde["sde.N"].type is int


def test_an_unknown_sde_or_network_is_refused():
    for section in ("sde", "model"):
        with pytest.raises(UserError, match=f"'{section}.name' must be one of .*, got 'magic'"):
            argument_keys(f"{section}.name", "magic")


def test_all_keys_of_a_configuration():
    assert {"seed", "sde.beta_min", "model.heads", "training.steps"} <= declared_keys(
        load_config("vpsde")
    ).keys()


def test_arguments_of_one_network_do_not_leak_into_another():
    both = declared_keys(load_config("vpsde")) | declared_keys(load_config("toy2d"))
    assert "model.depth" in both and "model.depth" not in declared_keys(load_config("vpsde"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_options_of_every_sampler_are_keys(name: str):
    for option in SAMPLERS[name].options.values():
        key = sampler_keys()[f"sampling.{name}.{option.name}"]
        key.check(option.name, option.default)
        assert key.default == option.default and 5 < len(key.explanation) and key.explanation[-1] != "."
        assert key.modes == SAMPLES and key.may_change
