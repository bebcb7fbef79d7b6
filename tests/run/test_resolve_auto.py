"""What "auto" in a configuration becomes when training starts."""

from __future__ import annotations

import pytest
import torch
from ml_collections import ConfigDict

from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.resolve_auto import resolve, resolve_levels, resolve_precision, take_resolved

CPU = torch.device("cpu")


def config(name: str = "ncsnv2", **keys: str) -> ConfigDict:
    return apply_overrides(load_config(name), [(key.replace("__", "."), text) for key, text in keys.items()])


def test_sigma_max_is_the_largest_distance_of_training_samples():
    digits = load_digits()
    resolved = resolve_levels(config(sde__sigma_max="auto", sde__N="20"), digits)
    inputs = digits.scaling.stored_to_model(digits.train).flatten(1).double()
    assert resolved.sde.sigma_max == pytest.approx(torch.pdist(inputs).max().item(), rel=1e-5)
    assert resolved.sde.N == 20 and resolved.is_locked


def test_values_that_are_set_stay():
    before = config(sde__sigma_max="30", sde__N="11", training__precision="fp16")
    after = resolve(before, load_digits(), CPU)
    assert after.to_dict() == before.to_dict()


def test_the_precision_follows_from_the_device(monkeypatch: pytest.MonkeyPatch):
    able = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    for shape, expected in (((3, 32, 32), "bf16"), ((1, 8, 8), "float32")):
        assert resolve_precision(config("vpsde"), CPU, shape).training.precision == expected


def test_a_resumed_run_keeps_what_was_found():
    saved = resolve(config(sde__sigma_max="auto", sde__N="auto"), load_digits(), CPU)
    resumed = take_resolved(config(sde__sigma_max="auto", sde__N="auto"), saved)
    assert resumed.sde.to_dict() == saved.sde.to_dict()
    assert resumed.training.precision == saved.training.precision != "auto"


def test_the_sizes_of_conditions_follow_from_the_data_and_stay():
    conditional = config("vpsde_cfg")
    resolved = resolve(conditional, load_digits(), CPU)
    assert resolved.model.num_classes == 10 and conditional.model.num_classes == 0
    assert take_resolved(conditional, resolved).model.num_classes == 10
    assert resolve(config("vpsde"), load_digits(), CPU).model.num_classes == 0
    assert resolve(config("vpsde_cfg", model__num_classes="12"), load_digits(), CPU).model.num_classes == 12


def test_a_network_without_such_conditions_is_refused():
    with pytest.raises(
        UserError, match="'ncsnv2' cannot be conditioned on the label .* choose unet or dit, or"
    ):
        resolve(config("ncsnv2", training__conditional="true"), load_digits(), CPU)


def test_an_sde_without_such_levels_is_refused():
    vp = load_config("vpsde")
    with vp.unlocked(), vp.ignore_type():
        vp.sde.N = "auto"
    with pytest.raises(UserError, match="sde.N='auto' .* 'vpsde' does not have: set a number"):
        resolve_levels(vp, load_digits())
