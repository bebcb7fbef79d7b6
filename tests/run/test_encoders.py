"""Classifiers and encoders from the command line: trained under a run's own SDE and data, then guiding it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion import load_run
from score_diffusion.models import caption_bytes
from score_diffusion.run.build import data_options
from score_diffusion.run.builders.encoders import load_encoder
from score_diffusion.run.builders.evaluation import build_extractor
from score_diffusion.run.builders.guidance import load_guided
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.data.info import load_data, read_data_info
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main

CPU = torch.device("cpu")
SMALL = (
    *("--config.training.steps=4", "--config.training.batch_size=8", "--config.model.channels=8"),
    *("--config.model.multipliers=1,", "--config.model.blocks_per_level=1", "--config.model.heads=2"),
    *("--config.model.attention_levels=()", "--config.training.checkpoint_every=2"),
)


def train_encoder(config: str, workdir: Path, *arguments: str) -> int:
    return main(["--mode", "train", "--config", config, "--workdir", str(workdir), *SMALL, *arguments])


@pytest.fixture(scope="module")
def encoders(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier and a contrastive pair for the finished run."""
    folder = tmp_path_factory.mktemp("encoders")
    follows = f"--config.training.run={finished_run}"
    assert train_encoder("classifier", folder / "classifier", follows) == 0
    assert train_encoder("clip_digits", folder / "clip", follows) == 0
    return {name: folder / name for name in ("classifier", "clip")}


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def sample(workdir: Path, *arguments: str) -> int:
    return main(["--mode", "sample", "--workdir", str(workdir), *arguments])


def test_a_classifier_has_the_data_and_the_sde_of_its_run(encoders: dict[str, Path], finished_run: Path):
    own, run = read_config(encoders["classifier"]), read_config(finished_run)
    assert own.sde == run.sde and own.data == run.data and own.model.num_classes == 10
    assert Path(own.training.run) == finished_run.resolve()


@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_the_accuracy_on_held_out_data_is_logged_for_each_noise_level(name: str, encoders: dict[str, Path]):
    saved = [row for row in rows(encoders[name]) if "held_out_accuracy" in row]
    assert [row["step"] for row in saved] == [2, 4]
    for row in saved:
        levels = [accuracy for accuracy in row["level_accuracies"] if accuracy is not None]
        assert len(row["level_accuracies"]) == len(row["level_edges"]) + 1
        assert 0 <= min(levels) <= row["held_out_accuracy"] <= max(levels) <= 1


def test_training_resumes_bit_for_bit(encoders: dict[str, Path], finished_run: Path, tmp_path: Path, same):
    follows = f"--config.training.run={finished_run}"
    arguments = [argument.replace("steps=4", "steps=2") for argument in SMALL]
    workdir = tmp_path / "stopped"
    start = ["--mode", "train", "--config", "classifier", "--workdir", str(workdir), follows, *arguments]
    assert main([*start, "--config.training.schedule=constant"]) == 0
    whole = tmp_path / "whole"
    assert train_encoder("classifier", whole, follows, "--config.training.schedule=constant") == 0
    assert main(["--mode", "train", "--workdir", str(workdir), "--config.training.steps=4"]) == 0
    a, b = ((run / "checkpoints/00000004/model.safetensors").read_bytes() for run in (whole, workdir))
    assert a == b


def guided(run: Path, *overrides: tuple[str, str]):
    return load_guided(run, apply_overrides(read_config(run), overrides, "sample"), CPU)


def test_a_classifier_guides_an_unconditional_model(encoders: dict[str, Path], trained: Path):
    guide = ("sampling.guidance", "classifier"), ("sampling.classifier.run", str(encoders["classifier"]))
    plain = guided(trained)
    model = guided(trained, *guide, ("sampling.classifier.scale", "2"), ("sampling.label", "7,3"))
    assert model.conditions.labels(3).tolist() == [7, 3, 7] and model.conditions.names(2) == ["7", "3"]
    x, t, cond = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9]), model.conditions.of(range(3))
    found = model.sampling_score()(x, t, cond) - plain.score(x, t)
    classifier = model.guide(model.score).gradient._log_prob.classifier
    z = x.clone().requires_grad_()
    log_probs = classifier(z, t).log_softmax(1)[torch.arange(3), torch.tensor([7, 3, 7])]
    (expected,) = torch.autograd.grad(2 * log_probs.sum(), z)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_guides_a_conditional_model_too(
    cli: Callable[..., int], encoders: dict[str, Path], tmp_path: Path
):
    run = tmp_path / "conditional"
    assert cli("train", run, "--config.training.conditional=True") == 0
    command = ("--guidance", "classifier", "--classifier", str(encoders["classifier"]), "--label", "4")
    assert sample(run, *command) == 0
    with np.load(run / "samples" / "eabm.npz") as file:
        assert file["label"].tolist() == [4] * 5


def test_a_caption_guides(encoders: dict[str, Path], trained: Path, capsys):
    caption = "a handwritten seven"
    command = ("--guidance", "clip", f"--config.sampling.clip.run={encoders['clip']}", "--prompt", caption)
    assert sample(trained, *command, "--scale", "2") == 0
    assert "clip, scale 2.0, by 'a handwritten seven' and" in capsys.readouterr().out
    guide = ("sampling.guidance", "clip"), ("sampling.clip.run", str(encoders["clip"]))
    model, plain = guided(trained, *guide, ("sampling.clip.prompt", caption)), guided(trained)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9])
    clip = model.guide(model.score).gradient._log_prob.image_encoder.score
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(clip(z, t, caption_bytes([caption])).sum(), z)
    found = model.sampling_score()(x, t) - plain.score(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_batches_decide_no_guided_sample(encoders: dict[str, Path], trained: Path):
    for size in (2, 5):
        command = ("--guidance", "classifier", "--classifier", str(encoders["classifier"]))
        assert sample(trained, *command, f"--config.sampling.batch_size={size}") == 0
    with np.load(trained / "samples/eabm.npz") as a, np.load(trained / "samples/eabm-2.npz") as b:
        assert np.array_equal(a["samples"], b["samples"])


REFUSED_SAMPLES = {
    "no run": (
        ("--guidance", "classifier", "--classifier", "nowhere"),
        "nowhere holds no run: train one",
    ),
    "no class": (
        ("--guidance", "classifier", "--label=-1"),
        "guides to a class, and sampling.label=-1",
    ),
    "unknown class": (
        ("--guidance", "classifier", "--classifier", "{classifier}", "--label", "12"),
        "sampling.label must be classes that the model knows, 10 names",
    ),
    "a score model": (("--guidance", "classifier", "--classifier", "{run}"), "holds a unet, and --guidance"),
    "the wrong encoder": (
        ("--guidance", "clip", "--prompt", "x", "--config.sampling.clip.run={classifier}"),
        "holds a classifier, and --guidance clip needs the run of a clip",
    ),
    "no prompt": (("--guidance", "clip", "--config.sampling.clip.run={clip}"), "needs a caption: --prompt"),
    "a prompt without text": (
        ("--prompt", "a seven"),
        "needs a model that was trained with captions, and this one was not",
    ),
    "a long prompt": (
        ("--guidance", "clip", "--config.sampling.clip.run={clip}", "--prompt", "x" * 200),
        "a caption must have 1 to 128 bytes, got 200",
    ),
    "negative scale": (
        ("--guidance", "classifier", "--classifier", "{classifier}", "--scale=-2"),
        "scale must be a number of at least 0",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED_SAMPLES.values(), ids=REFUSED_SAMPLES.keys())
def test_bad_guidance_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, encoders: dict[str, Path], trained: Path, refused, snapshot
):
    before = snapshot(trained)
    filled = [argument.format(run=trained, **encoders) for argument in arguments]
    assert message in refused(sample(trained, *filled))
    assert snapshot(trained) == before


def test_an_encoder_draws_no_samples(encoders: dict[str, Path], refused):
    message = refused(sample(encoders["classifier"]))
    assert "model 'classifier' has no score and draws no samples" in message
    with pytest.raises(UserError, match="has no score and draws no samples"):
        load_run(encoders["classifier"]).sample(1)


def test_python_guides_by_encoders_too(encoders: dict[str, Path], trained: Path):
    settings = {"classifier.run": str(encoders["classifier"])}
    drawn = load_run(trained).sample(4, label=[3, 5], guidance="classifier", scale=2, settings=settings)
    assert drawn.labels.tolist() == [3, 5, 3, 5]
    command = ("--guidance", "classifier", "--classifier", settings["classifier.run"], "--label", "3,5")
    assert sample(trained, *command, "--scale", "2", "--config.sampling.num_samples=4") == 0
    with np.load(trained / "samples/eabm.npz") as file:
        assert np.array_equal(file["samples"], drawn.samples)


def test_another_sde_does_not_guide(encoders: dict[str, Path], trained: Path, refused):
    record = json.loads((trained / "config.json").read_text())
    record["sde"]["beta_max"] = 15.0
    (trained / "config.json").write_text(json.dumps(record))
    command = ("--guidance", "classifier", "--classifier", str(encoders["classifier"]))
    assert "was trained under another SDE than this run (sde.beta_max)" in refused(sample(trained, *command))


REFUSED_TRAINING = {
    "another SDE": (
        ("--config.sde.beta_max=15",),
        "--config.sde.beta_max cannot be set: data and SDE",
    ),
    "other data": (
        ("--config.data.flip=True",),
        "--config.data.flip cannot be set: data and SDE",
    ),
    "no such run": (("--config.training.run=nowhere",), "nowhere holds no run"),
    "another network": (
        ("--config.model.name=unet",),
        "training.objective=classification does not train model 'unet': set model.name=classifier",
    ),
    "another objective": (
        ("--config.training.objective=contrastive",),
        "training.objective=contrastive does not train model 'classifier': set it to classification",
    ),
    "pictures": (("--config.training.preview_samples=4",), "model 'classifier' draws no samples: set"),
    "classes": (("--config.model.num_classes=7",), "the data have 10 classes, and the classifier 7"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED_TRAINING.values(), ids=REFUSED_TRAINING.keys())
def test_bad_training_is_refused(
    arguments: tuple[str, ...], message: str, finished_run: Path, tmp_path: Path, refused
):
    follows = f"--config.training.run={finished_run}"
    small = [a for a in SMALL if "model" not in a]
    start = ["--mode", "train", "--config", "classifier", "--workdir", str(tmp_path / "new"), follows, *small]
    assert message in refused(main([*start, *arguments]))
    assert not (tmp_path / "new" / "config.json").exists()


def test_changed_data_are_noticed(finished_run: Path, tmp_path: Path, refused):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(record | {"num_train": record["num_train"] - 1}))
    code = train_encoder("classifier", tmp_path / "new", f"--config.training.run={run}")
    assert "the data have changed since the run was trained" in refused(code)


SHAPES = ("--config.data.num_images=40", "--config.training.held_out=16")


def test_encoders_learn_from_the_captions_of_the_data(tmp_path: Path, capsys, refused):
    run = tmp_path / "clip"
    assert train_encoder("clip_shapes", run, *SHAPES) == 0
    assert "find their caption among the best 5 of a batch" in capsys.readouterr().out
    words = read_data_info(run).vocabulary
    assert words is not None and read_config(run).model.encoder_words == words.size
    assert [row["step"] for row in rows(run) if "held_out_accuracy" in row] == [2, 4]
    model, _ = load_encoder(run, read_config(run), CPU)
    assert model.net.encode_text(words.encode(["a red circle"])).shape == (1, 64)
    divided = ("--config.training.accumulate=2",)
    message = refused(train_encoder("clip_shapes", tmp_path / "other", *SHAPES, *divided))
    assert "training.accumulate divides a batch, and a contrastive pair compares each image with" in message
    wrong = ("--config.model.encoder_words=5",)
    message = refused(train_encoder("clip_shapes", tmp_path / "other", *SHAPES, *wrong))
    assert (
        f"the captions of the data have {words.size} different words, and model.encoder_words is 5" in message
    )


def test_the_dry_run_knows_encoders(tmp_path: Path, capsys):
    for config in ("classifier", "clip_digits", "clip_shapes"):
        assert train_encoder(config, tmp_path / config, "--dry_run") == 0
        assert "parameters" in capsys.readouterr().out and not (tmp_path / config).exists()


def test_samples_are_measured_on_the_features_of_a_classifier(
    trained: Path, encoders: dict[str, Path], tmp_path: Path, refused: Callable
):
    run = tmp_path / "features"
    assert train_encoder("classifier_features", run) == 0
    saved = [row for row in rows(run) if "held_out_accuracy" in row]
    assert [row["step"] for row in saved] == [2, 4] and 0 <= saved[-1]["held_out_accuracy"] <= 1
    measure = ["--mode", "evaluate", "--workdir", str(trained), "--config.sampling.num_samples=6"]
    assert main([*measure, f"--config.evaluation.features={run}"]) == 0
    record = json.loads((trained / "evaluation.json").read_text())
    assert record["measured_on"] == f"features of the classifier {run}, after 4 training steps"
    assert 1 <= record["samples"]["classifier_score"] <= 10
    assert list(record["copies"]) == ["raw pixels", record["measured_on"]]
    message = refused(main([*measure, f"--config.evaluation.features={encoders['classifier']}"]))
    assert "no classifier of data without noise" in message
    guide = ("--guidance", "classifier", f"--config.sampling.classifier.run={run}")
    assert "was trained on data without noise, and guides no samples" in refused(sample(trained, *guide))


def test_the_features_of_a_classifier_are_what_its_last_layer_gets(finished_run: Path, tmp_path: Path):
    run = tmp_path / "features"
    assert train_encoder("classifier_features", run) == 0
    dataset = load_data(data_options(read_config(finished_run).data))
    extractor = build_extractor(str(run), dataset, CPU)
    samples = dataset.scaling.stored_to_user(dataset.test[:70]).numpy()
    features, probabilities = extractor(samples)
    model, _ = load_encoder(run, read_config(run), CPU)
    with torch.no_grad():
        logits = model(torch.from_numpy(samples), torch.full((70,), model.sde.sampling_eps))
        again = model.net.pool.project(torch.from_numpy(features))
    np.testing.assert_allclose(probabilities, logits.softmax(1), rtol=1e-4)
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)
