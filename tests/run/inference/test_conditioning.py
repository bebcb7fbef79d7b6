"""Which classes a trained model draws, and that each sample has its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.builders.inference import load_trained
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.conditioning import chosen_conditions, parse_labels
from score_diffusion.run.inference.sample_files import draw, read_sample_file
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.main import main
from score_diffusion.samplers import make_sampler
from score_diffusion.sde_lib import VPSDE, ScoreModel

CPU = torch.device("cpu")
ANIMALS = ("cat", "dog", "a, b")


@pytest.mark.parametrize(
    ("text", "classes", "expected"),
    [
        ("7", "0123456789", [7]),
        ("3,5, 7", "0123456789", [3, 5, 7]),
        ("dog,cat,dog", ANIMALS, [1, 0, 1]),
        ("2,dog", ANIMALS, [2, 1]),
        ("a, b", ANIMALS, [2]),
        ("7", ("5", "7", "9"), [1]),  # the name counts, not the index
        ("1", (), [1]),
    ],
)
def test_classes_are_named_by_name_or_index(text: str, classes: tuple[str, ...], expected: list[int]):
    assert parse_labels(text, tuple(classes), len(classes) or 3) == expected


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("bird", ANIMALS, "classes that the model knows, 0 to 2 or cat, dog, a, b; got 'bird'"),
        ("cat,3", ANIMALS, "got '3'"),
        ("0", ("5", "7", "9"), "knows, 5, 7, 9; got '0'"),
        ("3", (), "knows, 0 to 2; got '3'"),
        ("1,", (), "got ''"),
        ("-2", (), "got '-2'"),
    ],
)
def test_other_classes_are_refused(text: str, classes: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        parse_labels(text, classes, 3)


def test_without_a_choice_every_class_has_its_turn():
    info = DataInfo.of(load_digits())
    conditions = chosen_conditions("all", {"label": 10}, info, True, dict)
    assert conditions.labels(12).tolist() == [*range(10), 0, 1]
    assert conditions.names(3) == ["0", "1", "2"]
    larger = chosen_conditions("all", {"label": 1000}, info, True, dict)  # a network for more classes
    assert larger.labels(12).tolist() == [*range(10), 0, 1]
    with pytest.raises(UserError, match="10 names, such as"):
        chosen_conditions("10", {"label": 1000}, info, True, dict)
    assert chosen_conditions("-1", {"label": 10}, info, True, dict).names(2) == ["no class"] * 2
    for sizes, conditional in (({}, True), ({"label": 10}, False)):
        for label in ("all", "-1"):
            assert chosen_conditions(label, sizes, info, conditional, dict).of(range(3)) is None
    with pytest.raises(UserError, match="needs a network with classes, and this one has none"):
        chosen_conditions("3", {}, info, True, dict)
    with pytest.raises(UserError, match="was trained without: set sampling.label=-1"):
        chosen_conditions("3", {"label": 10}, info, False, dict)


@pytest.fixture
def model() -> TrainedModel:
    """A network whose weights are not zero, so that its classes differ."""
    torch.manual_seed(0)
    net = UNet(1, 8, (1,), 1, (), 1, num_classes=10)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    score = ScoreModel(net, VPSDE(), "v").eval()
    conditions = SampleConditions.of_classes([3, 5, 7])
    return TrainedModel(score, score.sde, DataInfo.of(load_digits()), 1, 1e-3, conditions=conditions)


@pytest.mark.parametrize("sampler", ["eabm", "euler_maruyama", "ode"])
def test_a_sample_is_decided_by_seed_index_and_class(model: TrainedModel, sampler: str):
    """Bit for bit, in batches of any size, by a sampler that evaluates parts of a batch, too."""
    options = {"rtol": 0.1, "atol": 0.1} if sampler == "ode" else None
    sampler = make_sampler(sampler, model.sde, None if options else 6, denoise=True, options=options)
    ((mixed, _),) = draw(model, sampler, range(8), 1, 8)
    parts = np.concatenate([x for x, _ in draw(model, sampler, range(2, 8), 1, 4)])
    np.testing.assert_array_equal(parts, mixed[2:])
    alone = replace(model, conditions=SampleConditions.of_classes([5]))
    ((fives, _),) = draw(alone, sampler, range(8), 1, 8)
    np.testing.assert_array_equal(fives[1::3], mixed[1::3])
    assert not np.array_equal(fives[0], mixed[0])


def test_the_score_of_a_batch_has_the_conditions_of_its_samples(model: TrainedModel):
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5)
    expected = model.score(x, t, {"label": torch.tensor([5, 7, 3, 5])})
    assert torch.equal(model.score_of(range(4, 8))(x, t), expected)
    bare = replace(model, conditions=SampleConditions())
    assert torch.equal(bare.score_of(range(4, 8))(x, t), model.score(x, t))


def test_a_class_of_an_unconditional_training_is_refused(cli: Callable, refused: Callable, tmp_path: Path):
    """The network has classes, but was never shown a label."""
    assert cli("train", tmp_path, "--config.model.num_classes=10", "--config.training.steps=1") == 0
    assert "was trained without" in refused(cli("sample", tmp_path, "--label=3"))
    assert cli("sample", tmp_path) == 0


def test_files_hold_the_classes_that_were_drawn(
    cli: Callable, tmp_path: Path, refused: Callable, snapshot: Callable, capsys: pytest.CaptureFixture[str]
):
    assert cli("train", tmp_path, "--config.training.conditional=true", "--config.training.steps=2") == 0
    assert json.loads((tmp_path / "data.json").read_text())["classes"] == list("0123456789")
    for argument, labels in (("--label=7", [7] * 5), ("--label=3,5", [3, 5, 3, 5, 3]), ("--nfe=4", range(5))):
        assert cli("sample", tmp_path, argument) == 0
        newest = max((tmp_path / "samples").glob("eabm*.npz"), key=lambda path: path.stat().st_mtime_ns)
        file = read_sample_file(newest)
        assert file.labels.tolist() == list(labels)
        with np.load(newest) as arrays:
            assert arrays["classes"].tolist() == list("0123456789")
    before, said = snapshot(tmp_path), capsys.readouterr().out
    assert "0, 1, 2, 3, 4; got 'cat'" in refused(cli("sample", tmp_path, "--label=cat"))
    assert snapshot(tmp_path) == before
    assert "classes  3, 5 in turn" in said and "classes  7\n" in said
    config = apply_overrides(read_config(tmp_path), [("sampling.label", "3")], "sample")
    assert load_trained(tmp_path, config, CPU).conditions.labels(2).tolist() == [3, 3]


def test_a_model_that_was_always_conditioned_draws_nothing_else(
    cli: Callable, refused: Callable, tmp_path: Path
):
    always = ("--config.training.conditional=true", "--config.training.condition_dropout=0")
    assert cli("train", tmp_path, *always, "--config.training.steps=1") == 0
    assert "for which this model was not trained" in refused(cli("sample", tmp_path, "--label=-1"))


N = 40


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Images with conditions of every kind."""
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.integers(0, 256, (N, 8, 8), np.uint8),
        "y": np.array(["cat", "dog"] * (N // 2)),
        "cond_vector": rng.normal(size=(N, 3)),
        "cond_tokens": rng.normal(size=(N, 4, 2)),
        "cond_mask": rng.random((N, 4)) < 0.7,
        "cond_image": rng.normal(size=(N, 2, 8, 8)),
    }
    parts = {"train": slice(24), "test": slice(24, N)}
    named = {f"{name}_{part}": x[rows] for name, x in arrays.items() for part, rows in parts.items()}
    np.savez(tmp_path / "own.npz", **named)
    return tmp_path / "own.npz"


def test_conditions_of_the_users_own_reach_every_mode(
    own_data: Path, cli: Callable, refused: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, data = tmp_path / "run", f"--config.data.path={own_data}"
    assert cli("data", tmp_path / "data", data) == 0
    out = capsys.readouterr().out
    assert "3 for each sample" in out and "2 x 8 x 8 for each sample" in out and "cat 12, dog 12" in out
    assert cli("train", run, data, "--config.training.conditional=true", "--dry_run") == 0
    assert cli("train", run, data, "--config.training.conditional=true") == 0
    model = read_config(run).model
    assert (model.num_classes, model.vector_dim, model.token_dim, model.image_channels) == (2, 3, 2, 2)
    assert cli("train", run, data, "--config.training.conditional=true", "--config.training.steps=9") == 0
    assert cli("sample", run) == 0
    with np.load(own_data) as given, np.load(run / "samples/eabm.npz") as drawn:
        for kind in ("vector", "tokens", "mask", "image"):  # those of the held-out samples
            np.testing.assert_allclose(drawn[f"cond_{kind}"], given[f"cond_{kind}_test"][:5], rtol=1e-6)
        assert drawn["label"].tolist() == [0, 1, 0, 1, 0]
        other = {f"cond_{kind}": drawn[f"cond_{kind}"][2:] for kind in ("vector", "tokens", "mask", "image")}
    np.savez(tmp_path / "other.npz", **other)
    conditions = f"--config.sampling.conditions={tmp_path}/other.npz"
    assert cli("sample", run, conditions, "--label=dog") == 0
    with np.load(run / "samples/eabm-2.npz") as drawn:
        np.testing.assert_array_equal(drawn["cond_vector"], other["cond_vector"][[0, 1, 2, 0, 1]])
        assert drawn["label"].tolist() == [1] * 5
    assert cli("sample", run, "--label=-1") == 0
    other.pop("cond_image")
    np.savez(tmp_path / "other.npz", **other)
    message = "must be cond_vector of 3 entries, cond_tokens of 2 entries each, cond_image of 2 channels, as"
    assert message in refused(cli("sample", run, conditions))


def test_conditions_of_a_network_without_such_are_refused(cli: Callable, trained: Path, refused: Callable):
    assert "needs a network that was trained with cond_vector" in refused(
        cli("sample", trained, "--config.sampling.conditions=a.npz")
    )


@pytest.mark.slow
def test_a_conditional_model_learns_the_law_of_each_class(tmp_path: Path):
    """The modes of the ring, by their names; the unconditional law from the samples that were dropped."""
    keys = ["--config.data.name=8gaussians", "--config.training.conditional=true", "--workdir", str(tmp_path)]
    keys += ["--config.training.steps=300", "--config.training.batch_size=256"]
    keys += ["--config.training.condition_dropout=0.2", "--config.training.preview_samples=0"]
    assert main(["--mode", "train", "--config", "toy2d", "--config.training.learning_rate=3e-3", *keys]) == 0
    for label in ("N,W,SE", "-1"):
        draw = [f"--label={label}", "--nfe=20", "--config.sampling.num_samples=600"]
        assert main(["--mode", "sample", "--workdir", str(tmp_path), *draw]) == 0
    with np.load(tmp_path / "samples/eabm.npz") as arrays:
        samples, labels = arrays["samples"], arrays["label"]
    for mode, centre in ((2, (0.0, 1.4)), (4, (-1.4, 0.0)), (7, (0.99, -0.99))):
        of_mode = samples[labels == mode]
        assert len(of_mode) == 200
        assert np.linalg.norm(of_mode - centre, axis=1).mean() < 0.3  # 0.18 for the law itself
    with np.load(tmp_path / "samples/eabm-2.npz") as arrays:
        angles = np.arctan2(*arrays["samples"].T[::-1]) / (np.pi / 4)
    assert np.bincount(angles.round().astype(int) % 8, minlength=8).min() > 30  # all eight, of 75 each


def test_data_without_labels_train_nothing_conditional(refused: Callable, tmp_path: Path):
    keys = ["--config", "toy2d", "--config.training.conditional=true", "--workdir", str(tmp_path / "run")]
    assert "the data 'swiss_roll' have none of them" in refused(main(["--mode", "train", *keys]))
    assert not (tmp_path / "run").exists()
