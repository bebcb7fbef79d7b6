"""Guidance from the command line: what is drawn, what is counted, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.builders.guidance import GUIDES, load_guided
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.constructor_keys import guidance_keys
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main
from score_diffusion.samplers.guidance import GUIDANCE
from tests.run.conftest import TINY

CPU = torch.device("cpu")
CFG = ("--guidance", "cfg")


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network with classes, whose weights do not leave its output 0."""
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    overrides = ["--config.training.conditional=True", "--config.training.condition_dropout=0.5"]
    overrides += ["--config.training.learning_rate=0.05", "--config.training.ema_decay=0.1"]
    assert main(["--mode", "train", "--config", TINY, "--workdir", str(workdir), *overrides]) == 0
    return workdir


@pytest.fixture
def conditional(conditional_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(conditional_run, tmp_path / "conditional"))


def drawn(workdir: Path) -> np.lib.npyio.NpzFile:
    """The newest sample file."""
    return np.load(max((workdir / "samples").glob("eabm*.npz"), key=lambda path: (len(path.name), path.name)))


def guided(workdir: Path, *overrides: tuple[str, str]):
    config = apply_overrides(read_config(workdir), overrides, "sample")
    return load_guided(workdir, config, CPU)


def test_every_method_can_be_chosen_and_its_options_are_keys():
    assert GUIDES.keys() == GUIDANCE.keys()
    for name in GUIDANCE:
        keys = {
            key: declared for key, declared in guidance_keys().items() if key.startswith(f"sampling.{name}.")
        }
        assert f"sampling.{name}.scale" in keys
        for key, declared in keys.items():
            declared.check(key, declared.default)
            assert 5 < len(declared.explanation) < 200 and set(declared.modes) >= {"sample", "evaluate"}


def test_classifier_free_guidance_is_the_extrapolated_score(conditional: Path):
    trained = guided(conditional, ("sampling.guidance", "cfg"), ("sampling.cfg.scale", "3"))
    x, t, label = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5), torch.arange(4)
    score = trained.score
    expected = 3 * score(x, t, {"label": label}) - 2 * score(x, t)
    torch.testing.assert_close(
        trained.sampling_score()(x, t, {"label": label}), expected, rtol=1e-4, atol=1e-4
    )
    negative = guided(conditional, ("sampling.guidance", "cfg"), ("sampling.cfg.negative", "9"))
    away = {"label": torch.full((4,), 9)}
    expected = 2 * score(x, t, {"label": label}) - score(x, t, away)
    torch.testing.assert_close(
        negative.sampling_score()(x, t, {"label": label}), expected, rtol=1e-4, atol=1e-4
    )


def test_the_command_draws_guided_classes(cli: Callable[..., int], conditional: Path, capsys):
    assert cli("sample", conditional, "--label", "7,3") == 0
    plain = drawn(conditional)
    assert cli("sample", conditional, "--label", "7,3", *CFG, "--scale", "2.5") == 0
    shown, file = capsys.readouterr().out, drawn(conditional)
    assert "guidance" in shown and "cfg, scale 2.5, rescale 0.0" in shown
    assert file["label"].tolist() == [7, 3, 7, 3, 7] and file["nfe"] == 2 * plain["nfe"]
    assert not np.array_equal(file["samples"], plain["samples"])
    assert cli("sample", conditional, "--label", "7,3", *CFG, "--scale", "1") == 0
    np.testing.assert_array_equal(drawn(conditional)["samples"], plain["samples"])
    assert drawn(conditional)["nfe"] == plain["nfe"]


def test_batches_decide_no_guided_sample(cli: Callable[..., int], conditional: Path):
    interval = ["--config.sampling.cfg.interval=0.1,3", "--config.sampling.cfg.rescale=0.5"]
    samples = []
    for size in (2, 5):
        assert cli("sample", conditional, *CFG, *interval, f"--config.sampling.batch_size={size}") == 0
        samples.append(drawn(conditional)["samples"])
    assert np.array_equal(*samples)


def test_an_earlier_checkpoint_guides_its_own_run(cli: Callable[..., int], conditional: Path):
    worse = ("sampling.autoguidance.checkpoint", "4")
    trained = guided(conditional, ("sampling.guidance", "autoguidance"), worse)
    early = guided(conditional, ("sampling.checkpoint", "4"))
    x, t, cond = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5), {"label": torch.arange(4)}
    expected = 2 * trained.score(x, t, cond) - early.score(x, t, cond)
    torch.testing.assert_close(trained.sampling_score()(x, t, cond), expected, rtol=1e-4, atol=1e-4)
    assert "after 4 training steps" in trained.guided_by


def test_autoguidance_needs_no_classes(cli: Callable[..., int], trained: Path, tmp_path: Path):
    """By another run of the same SDE; `evaluate` tells guided samples from others."""
    other = shutil.copytree(trained, tmp_path / "worse")
    command = ("--guidance", "autoguidance", f"--config.sampling.autoguidance.run={other}")
    for expected in (1, 2, 2):  # the third finds the second's samples
        assert cli("evaluate", trained, *(command if expected == 2 else ())) == 0
        assert len(list((trained / "samples").glob("*.npz"))) == expected


def test_likelihoods_are_not_guided(cli: Callable[..., int], conditional: Path, refused):
    message = refused(cli("likelihood", conditional, *CFG))
    assert "--config.sampling.guidance is not used by --mode likelihood" in message


REFUSED = {
    "no class": ((*CFG, "--label=-1"), "guides from no class to a class"),
    "unknown class": ((*CFG, "--label", "12"), "sampling.label must be classes that"),
    "unknown negative": (
        (*CFG, "--config.sampling.cfg.negative=x"),
        "sampling.cfg.negative must be classes that",
    ),
    "two negatives": ((*CFG, "--config.sampling.cfg.negative=1,2"), "must be one class, got '1,2'"),
    "negative scale": ((*CFG, "--scale", "-1"), "scale must be a number of at least 0"),
    "interval": (
        (*CFG, "--scale=1", "--config.sampling.cfg.interval=3,1"),
        "interval must be two increasing noise levels",
    ),
    "no guidance": (("--scale", "2"), "--scale is the scale of a guidance: add --guidance cfg"),
    "another's option": (
        (*CFG, "--config.sampling.autoguidance.scale=2"),
        "is an option of guidance 'autoguidance', and the guidance is 'cfg'",
    ),
    "unknown guidance": (("--guidance", "magic"), "'sampling.guidance' must be one of"),
    "the same model": (("--guidance", "autoguidance"), "needs a worse model than this one: name its run by"),
    "no run": (
        ("--guidance", "autoguidance", "--config.sampling.autoguidance.run=nowhere"),
        "nowhere holds no run",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_guidance_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, cli: Callable[..., int], conditional: Path, refused, snapshot
):
    before = snapshot(conditional)
    assert message in refused(cli("sample", conditional, *arguments))
    assert snapshot(conditional) == before


def change(run: Path, section: str, key: str, value: float) -> None:
    """Changes a number in a run's configuration."""
    record = json.loads((run / "config.json").read_text())
    record[section][key] = value
    (run / "config.json").write_text(json.dumps(record))


def test_a_network_trained_without_dropout_is_refused(cli: Callable[..., int], conditional: Path, refused):
    change(conditional, "training", "condition_dropout", 0.0)
    message = refused(cli("sample", conditional, *CFG))
    assert "the score without a condition, which this model was not trained for" in message
    assert not (conditional / "samples" / "eabm.npz").exists()
    assert cli("sample", conditional, *CFG, "--scale", "1") == 0
    assert cli("sample", conditional, *CFG, "--config.sampling.cfg.negative=3") == 0


def test_an_unconditional_network_is_refused(cli: Callable[..., int], trained: Path, refused):
    message = refused(cli("sample", trained, *CFG))
    assert "needs a network that was trained with conditions, and this one was not" in message


def test_models_that_do_not_match_do_not_guide(conditional: Path, trained: Path):
    guide = ("sampling.guidance", "autoguidance")
    with pytest.raises(UserError, match="must take the same conditions"):
        guided(conditional, guide, ("sampling.autoguidance.run", str(trained)))
    change(trained, "sde", "beta_max", 15.0)
    with pytest.raises(UserError, match=r"was trained under another SDE than this run \(sde.beta_max\)"):
        guided(conditional, guide, ("sampling.autoguidance.run", str(trained)))
