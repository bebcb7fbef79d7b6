"""What messages suggest in place of a name that there is not: five at most, those spelled alike first."""

from __future__ import annotations

import pytest

from score_diffusion.run.commands.help_config import groups
from score_diffusion.run.config import find_key, load_config
from score_diffusion.run.config_files import config_names
from score_diffusion.run.errors import MOST_SUGGESTED, UserError, some_of
from score_diffusion.sde_lib import InputError
from score_diffusion.sde_lib.errors import check_name

KEYS = {name: key for group in groups().values() for name, key in group.items()}
MANY = [name for name, key in KEYS.items() if len(key.names) > MOST_SUGGESTED]


def test_few_names_are_all_listed_and_many_by_their_spelling():
    letters = "abcdefgh"
    assert some_of("x", letters[:5]) == "a, b, c, d, e"
    assert some_of("x", letters) == "8 names, such as a, b, c, d, e"
    assert some_of("hean", ["rk4", "euler", "midpoint", "heun", "ode", "pc"]) == "6 names, such as heun"


@pytest.mark.parametrize("name", MANY)
def test_a_wrong_value_shows_five_names_and_where_all_are(name):
    with pytest.raises(UserError) as refusal:
        KEYS[name].parse(name, "nonsense")
    shown = str(refusal.value).split(" names, such as ")[1].split(", got")[0].split(", or ")[0]
    assert 1 <= len(shown.split(", ")) <= MOST_SUGGESTED and set(shown.split(", ")) <= set(KEYS[name].names)
    assert f"--help_config {name} lists all" in str(refusal.value)


def test_keys_with_many_names_are_found():
    assert {"sampling.sampler", "sampling.grid", "restore.task", "model.name"} <= set(MANY)


@pytest.mark.parametrize(
    "name", ["training.stepz", "sampling", "model.", "batch_size", "a.b.c", "trainig.steps"]
)
def test_an_unknown_key_shows_five_at_most(name):
    with pytest.raises(UserError) as refusal:
        find_key(name, KEYS)
    named = [key for key in KEYS if f" {key} " in str(refusal.value).replace("?", " ")]
    assert len(named) <= MOST_SUGGESTED and "--help_config" in str(refusal.value)


def test_an_unknown_experiment_shows_five_at_most():
    with pytest.raises(UserError) as refusal:
        load_config("score_sde:vp_ddp")
    shown = str(refusal.value).split("such as ")[1].split(" (--help")[0].split(", ")
    assert shown[0] == "score_sde:vp_ddpm" and len(shown) <= 5 and set(shown) <= set(config_names())


def test_the_library_does_the_same():
    check_name("grid", "clock", ["clock"])
    with pytest.raises(InputError, match="^grid must be one of 7 names, such as clock, got 'clokc'$"):
        check_name("grid", "clokc", ["early", "uniform", "karras", "chain", "log_snr", "quadratic", "clock"])
    with pytest.raises(InputError, match="^variance must be one of small, large, got 'tiny'$"):
        check_name("variance", "tiny", ["small", "large"])
