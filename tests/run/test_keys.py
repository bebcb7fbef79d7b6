"""The declarations of the configuration keys, and that each is the only place for what it says."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest

from score_diffusion.run.builders.encoders import NETWORKS_OF
from score_diffusion.run.builders.training import OBJECTIVES, TIMES
from score_diffusion.run.commands.likelihood import FIGURES
from score_diffusion.run.config import flatten
from score_diffusion.run.configs import base
from score_diffusion.run.constructor_keys import refuse_unused
from score_diffusion.run.data.decoding import MODES as CHANNELS
from score_diffusion.run.data.options import CROPS
from score_diffusion.run.distributed.model import PARALLEL
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.trained_model import CHECKPOINTS
from score_diffusion.run.keys import KEYS, MODES
from score_diffusion.run.training.learning_rate import SCHEDULES
from score_diffusion.run.training.precision import PRECISIONS
from score_diffusion.samplers import GRIDS
from score_diffusion.sde_lib import VARIANCES, WEIGHTINGS
from score_diffusion.sde_lib.score import NOISE_INPUTS, PREDICTIONS


@pytest.mark.parametrize("name", KEYS)
def test_every_key_is_explained_has_modes_and_a_valid_default(name: str):
    key = KEYS[name]
    key.check(name, key.default)
    assert 5 < len(key.explanation) < 200 and not key.explanation.endswith(".")
    assert key.modes and {mode.split()[0] for mode in key.modes} <= set(MODES)
    assert key.may_change is not None


def test_an_experiment_starts_from_the_declared_defaults():
    flat = flatten(base.get_config())
    assert KEYS.keys() <= flat.keys()
    assert {name: flat[name] for name in KEYS} == {name: key.default for name, key in KEYS.items()}


@pytest.mark.parametrize(
    ("name", "table", "more"),
    [
        ("data.crop", CROPS, ()),
        ("model.prediction", PREDICTIONS, ()),
        ("model.noise_input", NOISE_INPUTS, ("auto",)),
        ("training.schedule", SCHEDULES, ()),
        ("training.precision", PRECISIONS, ("auto",)),
        ("training.parallel", PARALLEL, ()),
        ("training.weighting", WEIGHTINGS, ("min_snr", "edm")),
        ("training.times", TIMES, ()),
        ("training.objective", OBJECTIVES, tuple(NETWORKS_OF)),
        ("sampling.checkpoint", CHECKPOINTS, ()),
        ("sampling.grid", GRIDS, ("fitted", "auto")),
        ("likelihood.method", FIGURES, ()),
        ("likelihood.variance", VARIANCES, ()),
    ],
)
def test_the_names_that_a_key_takes_are_those_of_its_table(name: str, table: dict, more: tuple[str, ...]):
    kind = KEYS[name].type
    names = next((member for member in get_args(kind) if get_origin(member) is Literal), kind)
    assert set(get_args(names)) == {*table, *more}


def test_the_channels_that_images_can_have():
    for count in CHANNELS:
        KEYS["data.channels"].check("data.channels", count)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        (
            "training.steps",
            "sample",
            "cannot change after training and is not used by --mode sample",
        ),
        ("likelihood.method", "sample", "is not used by --mode sample, which takes keys of data, sampling"),
        ("sampling.sampler", "likelihood", "sampling.checkpoint, sampling.ema"),
        ("training.steps", "report", "which takes no keys"),
        ("sampling.num_samples", "convert --to", "takes sampling.checkpoint, sampling.ema, sampling.ema_sig"),
    ],
)
def test_a_mode_refuses_the_keys_that_it_does_not_use(name: str, mode: str, message: str):
    with pytest.raises(UserError) as refusal:
        refuse_unused(name, mode, KEYS)
    assert f"--config.{name}" in str(refusal.value) and message in str(refusal.value)


def test_declarations_do_not_wait_for_torch():
    code = "import sys, score_diffusion.run.keys; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
