"""A checkpoint's contents are checked before anything is loaded from them, although its digests fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from score_diffusion.run.checkpoints.contents import check_optimizer, check_training_file, renumber_parameters
from score_diffusion.run.errors import UserError

KEYS = (
    "step",
    "optimizer",
    "seconds",
    "ema_updates",
    "times",
    "objective",
    "scaler",
    "running",
    "held_out_loss",
)


def content(**changes: object) -> dict:
    optimizer = {"state": {}, "param_groups": [{}]}
    rest = dict(times={}, objective={}, scaler={}, running={"loss": torch.zeros(2)}, held_out_loss=0.5)
    return dict(format=1, step=4, optimizer=optimizer, seconds=1.5, ema_updates=4, **rest) | changes


def test_what_training_writes_passes():
    check_training_file(content(), KEYS)
    check_training_file(content(held_out_loss=None, seconds=0), KEYS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(format=2), "format 2, this version reads format 1"),
        (dict(format=None), "format None"),
        (dict(step=-5), "its step is -5"),
        (dict(step=4.0), "its step is 4.0"),
        (dict(step=True), "its step is True"),
        (dict(ema_updates=None), "its ema_updates is None"),
        (dict(seconds=float("nan")), "its seconds are nan"),
        (dict(seconds="1"), "its seconds are '1'"),
        (dict(held_out_loss="low"), "its held_out_loss is 'low'"),
        (dict(times=[1]), "its times is not a dictionary of tensors"),
        (dict(running={"loss": 1.0}), "its running is not a dictionary of tensors"),
        (dict(scaler=None), "its scaler is not a dictionary"),
        (dict(optimizer={}), "its optimizer is not the state of one"),
        (dict(optimizer={"state": {"a": {}}, "param_groups": []}), "its optimizer's state is not"),
        (dict(optimizer={"state": {0: {"step": 1}}, "param_groups": []}), "its optimizer's state is not"),
        (dict(optimizer={"state": {}, "param_groups": {}}), "param_groups are not a list"),
    ],
)
def test_impossible_values_are_named(changes: dict, match: str):
    with pytest.raises(ValueError, match=match):
        check_training_file(content(**changes), KEYS)


def test_a_missing_key_is_named():
    incomplete = content()
    del incomplete["seconds"]
    with pytest.raises(ValueError, match="lacks seconds"):
        check_training_file(incomplete, KEYS)
    with pytest.raises(ValueError, match="holds a list"):
        check_training_file([1], KEYS)


@pytest.fixture
def optimizer() -> torch.optim.Adam:
    """Fused Adam after a step; with moments of another shape it writes outside its memory."""
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, fused=True)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


def test_its_own_state_fits_an_optimizer(optimizer: torch.optim.Adam):
    check_optimizer(optimizer.state_dict(), optimizer, Path("run"))
    fresh = torch.optim.Adam(optimizer.param_groups[0]["params"], lr=2e-3, fused=True)
    check_optimizer(fresh.state_dict(), optimizer, Path("run"))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("exp_avg", torch.zeros(1), r"exp_avg has shape \(1,\)"),
        ("exp_avg_sq", torch.zeros(300, 200), r"exp_avg_sq has shape \(300, 200\)"),
        ("exp_avg", torch.zeros(3, 2).double(), "dtype torch.float64"),
        ("exp_avg", torch.full((3, 2), torch.nan), "exp_avg holds NaN"),
        ("exp_avg", torch.zeros(1).expand(3, 2), "exp_avg repeats its numbers"),
        ("step", torch.tensor(-1.0), "step is"),
        ("step", torch.zeros(2), "step is"),
        ("more", torch.zeros(()), "holds step, exp_avg, exp_avg_sq, more"),
    ],
)
def test_moments_that_do_not_fit_are_refused(
    name: str, value: torch.Tensor, match: str, optimizer: torch.optim.Adam
):
    state = optimizer.state_dict()
    state["state"][0] = {**state["state"][0], name: value}
    with pytest.raises(UserError, match=match):
        check_optimizer(state, optimizer, Path("run"))


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        (dict(weight_decay=1.0), "weight_decay=1.0, training has 0"),
        (dict(maximize=True), "maximize=True, training has False"),
        (dict(betas=(0.9, 2.0)), "betas"),
        (dict(params=[0]), r"params=\[0\], training has \[0, 1\]"),
    ],
)
def test_settings_that_training_does_not_have_are_refused(
    setting: dict, match: str, optimizer: torch.optim.Adam
):
    state = optimizer.state_dict()
    state["param_groups"][0] |= setting
    with pytest.raises(UserError, match=match):
        check_optimizer(state, optimizer, Path("run"))


def adam_after_a_step(net: torch.nn.Module) -> torch.optim.Adam:
    optimizer = torch.optim.Adam([*net.named_parameters()], lr=1e-3)
    sum((i + 1.0) * weights.sum() for i, weights in enumerate(net.parameters())).backward()
    optimizer.step()
    return optimizer


def test_moments_follow_the_names_of_parameters_where_a_network_defines_its_layers_in_another_order():
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    before = adam_after_a_step(torch.nn.ModuleDict({"a": first, "b": second}))
    now = torch.nn.ModuleDict({"b": torch.nn.Linear(3, 3), "a": torch.nn.Linear(3, 3)})
    optimizer = torch.optim.Adam([*now.named_parameters()], lr=1e-3)
    state = renumber_parameters(before.state_dict(), optimizer)
    check_optimizer(state, optimizer, Path("run"))
    optimizer.load_state_dict(state)
    for mine, theirs in ((now["a"], first), (now["b"], second)):
        for name in ("weight", "bias"):
            moment = optimizer.state[getattr(mine, name)]["exp_avg"]
            assert torch.equal(moment, before.state[getattr(theirs, name)]["exp_avg"])


def test_a_state_without_names_or_with_other_names_keeps_its_order(optimizer: torch.optim.Adam):
    state = optimizer.state_dict()
    named = torch.optim.Adam([*torch.nn.Linear(2, 3).named_parameters()])
    assert renumber_parameters(state, named) == state
    other = torch.optim.Adam(
        [("x", torch.nn.Parameter(torch.zeros(3, 2))), ("y", torch.nn.Parameter(torch.zeros(3)))]
    )
    assert renumber_parameters(other.state_dict(), named) == other.state_dict()


def test_a_state_of_other_parameters_is_refused_by_the_name_of_one():
    saved, layer = torch.nn.Linear(2, 3), torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3)})
    optimizer = torch.optim.Adam([*layer.named_parameters()], lr=1e-3)
    with pytest.raises(UserError, match="not for the model's parameters: only one has a.bias$"):
        check_optimizer(adam_after_a_step(saved).state_dict(), optimizer, Path("run"))


def test_a_state_for_more_parameters_is_refused(optimizer: torch.optim.Adam):
    state = optimizer.state_dict()
    state["state"][7] = state["state"][0]
    with pytest.raises(UserError, match="for more than the model's 2 parameters"):
        check_optimizer(state, optimizer, Path("run"))
    state = optimizer.state_dict()
    state["param_groups"] *= 2
    with pytest.raises(UserError, match="has 2 groups"):
        check_optimizer(state, optimizer, Path("run"))


def test_training_does_not_resume_from_moments_of_another_shape(trained: Path, cli, refused):
    """Through the command line, with digests that fit: it used to end in SIGSEGV."""
    newest = sorted((trained / "checkpoints").iterdir())[-1]
    training = torch.load(newest / "training.pt")
    training["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(training, newest / "training.pt")
    digests = json.loads((newest / "sha256.json").read_text())
    digests["training.pt"] = hashlib.sha256((newest / "training.pt").read_bytes()).hexdigest()
    (newest / "sha256.json").write_text(json.dumps(digests))
    sentence = refused(cli("train", trained, "--config.training.steps=9"))
    assert "exp_avg has shape (1,)" in sentence
