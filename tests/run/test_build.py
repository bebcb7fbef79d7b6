"""From sections of a configuration to objects."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from score_diffusion.run.build import build_model, build_sampler, build_sde, data_options, grid_times
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError
from score_diffusion.run.keys import DATA
from score_diffusion.samplers import SAMPLERS, make_sampler
from score_diffusion.sde_lib import VPSDE


def test_the_options_of_the_data_are_the_keys_of_their_section():
    of_other_runs = {f"data.{key}" for key in ("autoencoder", "encoder", "embeddings", "text_encoder")}
    assert {f"data.{field.name}" for field in fields(DataOptions)} == DATA.keys() - of_other_runs
    assert data_options(load_config("vpsde").data) == DataOptions()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_of_the_configuration_is_that_of_the_library(name: str):
    """With the defaults of all keys, on the sampler's own grid."""
    section, sde = load_config("vpsde").sampling, build_sde(load_config("vpsde").sde)
    section.sampler = name
    built, made = build_sampler(section, sde), make_sampler(name, sde, denoise=section.denoise)
    assert type(built) is type(made) and torch.equal(built.times, made.times)
    ours, theirs = (
        {key: value for key, value in vars(sampler).items() if isinstance(value, bool | int | float | str)}
        for sampler in (built, made)
    )
    assert ours == theirs and ours


def test_steps_grid_and_nfe_of_a_section():
    sde = build_sde(load_config("vpsde").sde)

    def times(**keys: object) -> torch.Tensor:
        section = load_config("vpsde").sampling
        section.update(keys)
        return grid_times(section, sde)

    assert len(times()) == 50 and len(times(steps=7)) == 8
    assert len(times(nfe=10)) == 10 and len(times(nfe=10, denoise=False)) == 11
    assert len(times(nfe=10, steps=7)) == 10  # nfe decides
    assert len(times(sampler="pc", nfe=21)) == 11
    assert torch.equal(times(grid="fitted", steps=5), times(grid="spread", steps=5))
    assert not torch.equal(times(grid="karras", steps=5), times(grid="spread", steps=5))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.heads", "3", "heads"),
        ("model.embedding", "magic", "embedding"),
        ("model.channels", "7", "channels"),
    ],
)
def test_arguments_that_a_network_refuses_are_the_users(key: str, value: str, message: str):
    config = apply_overrides(load_config("vpsde"), [(key, value)])
    with pytest.raises(UserError, match=message):
        build_model(config.model, build_sde(config.sde), (1, 8, 8))


def test_a_size_that_a_network_refuses_is_refused_when_it_is_built():
    config = apply_overrides(load_config("vpsde"), [("model.multipliers", "1,1,1,1,1")])
    with pytest.raises(UserError, match="divisible by 16"):
        build_model(config.model, build_sde(config.sde), (1, 8, 8))
    with pytest.raises(UserError, match=r"does not take data of shape \(3,\)"):
        build_model(config.model, build_sde(config.sde), (3,))


def test_fourier_inputs_need_the_noise_level_that_damps_them():
    section = load_config("vpsde_likelihood").model
    build_model(section, VPSDE(), (1, 8, 8))
    section.noise_input = "position"
    with pytest.raises(UserError, match="model.fourier_inputs needs a network that is given scaled images"):
        build_model(section, VPSDE(), (1, 8, 8))
