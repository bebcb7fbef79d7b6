"""Texts from the data to the samples: what a prompt, a file of prompts and a negative prompt do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion import load_run, train
from score_diffusion.run.builders.guidance import load_guided
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.prompts import read_prompts
from score_diffusion.run.main import main
from tests.run.conftest import TINY

SEVEN, EIGHT = "a thick seven slanting left", "an eight"


def train_on_captions(workdir: Path, *more: str) -> Path:
    """The run of a network with a text encoder, whose weights do not leave its output 0."""
    overrides = ["--config.data.name=captioned_digits", "--config.training.conditional=True"]
    overrides += ["--config.training.learning_rate=0.05", "--config.training.ema_decay=0.1"]
    overrides += [
        "--config.model.encoder_width=8",
        "--config.model.encoder_depth=1",
        "--config.model.encoder_heads=2",
    ]
    overrides += ["--config.model.attention_levels=0,", *more]
    assert main(["--mode", "train", "--config", TINY, "--workdir", str(workdir), *overrides]) == 0
    return workdir


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_captions(tmp_path_factory.mktemp("text") / "run")


@pytest.fixture
def run(text_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_run, tmp_path / "text"))


def drawn(workdir: Path) -> dict[str, np.ndarray]:
    """The newest sample file."""
    return dict(
        np.load(max((workdir / "samples").glob("eabm*.npz"), key=lambda path: (len(path.name), path.name)))
    )


def sample(workdir: Path, *arguments: str) -> dict[str, np.ndarray]:
    assert main(["--mode", "sample", "--workdir", str(workdir), *arguments]) == 0
    return drawn(workdir)


def test_a_shared_run_draws_under_the_same_captions(run: Path, tmp_path: Path):
    load_run(run).save_pretrained(tmp_path / "shared", samples=0)
    own, received = sample(run), sample(tmp_path / "shared")
    assert [*own["captions"]] == [*received["captions"]]
    assert np.array_equal(own["samples"], received["samples"])


def ids_of(*captions: str) -> torch.Tensor:
    vocabulary = load_dataset(DataOptions(name="captioned_digits")).vocabulary
    return vocabulary.encode(captions)


def test_the_run_holds_what_sampling_needs(run: Path):
    """The sizes of the encoder, the words, and held-out captions; nothing else is read to draw samples."""
    data = load_dataset(DataOptions(name="captioned_digits"))
    assert json.loads((run / "config.json").read_text())["model"]["encoder_words"] == data.vocabulary.size
    assert tuple(json.loads((run / "data.json").read_text())["words"]) == data.vocabulary.words
    captions = read_prompts(run / "captions.txt")
    decoded = [data.vocabulary.decode(ids) for ids in data.test_conditions["text"]]
    assert captions == decoded[: len(captions)]
    assert [*sample(run)["captions"]] == captions[:5]


def test_samples_are_drawn_under_the_prompts(run: Path, capsys: pytest.CaptureFixture[str]):
    """Sample k under line k of the file; a prompt that all share; the score sees these ids."""
    (run.parent / "prompts.txt").write_text(f"\ufeff{SEVEN}\n\n  {EIGHT} \n", encoding="utf-8")
    several = sample(run, "--prompts", str(run.parent / "prompts.txt"))
    assert several["captions"].tolist() == [SEVEN, EIGHT, SEVEN, EIGHT, SEVEN]
    assert (several["cond_text"] == ids_of(*several["captions"]).numpy()).all()
    one = sample(run, "--prompt", SEVEN.upper())
    assert f"text     {SEVEN.upper()}" in capsys.readouterr().out
    assert (one["samples"][::2] == several["samples"][::2]).all()
    assert (one["samples"][1::2] != several["samples"][1::2]).any()
    without = sample(run, "--label=-1")
    assert (without["cond_text"] == 0).all() and (without["samples"] != one["samples"]).any()
    with Image.open(max((run / "samples").glob("eabm*.png"))) as picture:
        assert picture.width > 100


def test_prompts_in_python_are_those_of_the_command(run: Path):
    """One text, several in turn and a negative one, to draw and to restore."""
    kind = "a small seven"
    expected = sample(run, "--prompt", f"{kind}\n{EIGHT}", "--guidance=cfg", "--scale=3")
    assert expected["captions"].tolist() == [kind, EIGHT, kind, EIGHT, kind]
    loaded = load_run(run)
    samples = loaded.sample(5, prompt=[f" {kind}\n", EIGHT], guidance="cfg", scale=3)
    assert np.array_equal(samples.samples, expected["samples"]) and samples.names == [*expected["captions"]]
    away = sample(run, "--prompt", SEVEN, "--guidance=cfg", f"--config.sampling.cfg.negative={EIGHT}")
    found = loaded.sample(5, prompt=SEVEN, guidance="cfg", negative=EIGHT).samples
    assert np.array_equal(found, away["samples"])
    assert not np.array_equal(found, loaded.sample(5, prompt=SEVEN, guidance="cfg").samples)
    images, few = np.zeros((1, 8, 8), np.uint8), dict(nfe=4, num_samples=2)
    restored = [loaded.restore(images, prompt=prompt, **few).samples for prompt in (SEVEN, EIGHT, None)]
    assert (restored[0] != restored[1]).any() and (restored[0] != restored[2]).any()
    with pytest.raises(UserError, match="takes one class or text, got sampling.prompt"):
        loaded.restore(images, prompt=[SEVEN, EIGHT])
    for wrong in ("", " ", [], ["a seven", ""]):
        with pytest.raises(UserError, match="prompt must be a text or several, none of them empty, got"):
            loaded.sample(1, prompt=wrong)


def test_samples_are_scored_and_encoded_under_their_texts(run: Path):
    """Sample k under text k, as if all had that text; decoding under the same texts inverts it."""
    loaded, texts, rough = load_run(run), [SEVEN, EIGHT], dict(rtol=0.1, atol=0.1)
    images = (255 * load_dataset(DataOptions(name="captioned_digits")).test[:2] / 16).round().to(torch.uint8)
    images = images[:, 0].numpy()

    def scores(prompt: str | list[str] | None) -> np.ndarray:
        settings = {"reverse_times": 4}
        return loaded.log_likelihood(images, prompt=prompt, method="reverse_sde", settings=settings).log_prob

    def codes(prompt: str | list[str] | None) -> np.ndarray:
        return loaded.encode(images, prompt=prompt, **rough)

    for values in (scores, codes):
        each, none = values(texts), values(None)
        for k, text in enumerate(texts):
            assert np.array_equal(each[k], values(text)[k]) and not np.array_equal(each[k], none[k])
    path = loaded.interpolate(images[0], images[1], 3, prompt=SEVEN, **rough).samples
    ends = loaded.decode(codes(SEVEN), prompt=SEVEN, **rough).samples
    assert np.allclose(path[[0, -1]], ends, atol=1e-3)
    with pytest.raises(UserError, match="prompt must be a text or several"):
        loaded.encode(images, prompt="")


def test_guidance_from_a_negative_prompt(run: Path):
    overrides = [("sampling.guidance", "cfg"), ("sampling.cfg.scale", "3"), ("sampling.prompt", SEVEN)]
    x, t, seven, eight = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5), ids_of(SEVEN), ids_of(EIGHT)

    def guided(*more: tuple[str, str]):
        config = apply_overrides(read_config(run), [*overrides, *more], "sample")
        return load_guided(run, config, torch.device("cpu"))

    trained = guided()
    given = trained.score(x, t, {"text": seven.expand(4, -1)})
    null, away = trained.score(x, t), trained.score(x, t, {"text": eight.expand(4, -1)})
    assert (given - away).abs().max() > 1e-4 < (given - null).abs().max()
    for model, other in ((trained, null), (guided(("sampling.cfg.negative", EIGHT)), away)):
        assert torch.equal(model.conditions.of(range(3))["text"], seven.expand(3, -1))
        score = model.sampling_score()(x, t, model.conditions.of(range(4)))
        torch.testing.assert_close(score, other + 3 * (given - other), rtol=1e-4, atol=1e-4)
    bounded = guided(("sampling.threshold", "0.9"))
    assert "dynamic thresholding at 0.9" in bounded.guided_by and "cfg, scale 3" in bounded.guided_by
    x_0 = (x + 5 * torch.randn_like(x)) * 10
    assert not torch.equal(
        bounded.sampling_score()(x_0, t, bounded.conditions.of(range(4))),
        trained.sampling_score()(x_0, t, trained.conditions.of(range(4))),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a purple seven"], "has 'purple', which no training caption had; those had 20 names"),
        (["--prompt", ""], "--prompt is empty"),
        (["--config.sampling.prompt", " - "], "which no training caption had"),
        (["--prompt", "a " * 100], "has 100 words, and the model reads at most 7"),
        (["--prompt", "a seven", "--prompts", "x.txt"], "set one of sampling.prompt and sampling.prompts"),
        (["--prompts", "x.txt"], "the file of prompts x.txt does not exist"),
        (["--label", "7"], "sampling.label=7 needs a network with classes"),
        (["--guidance=cfg", "--config.sampling.cfg.negative=dog"], "cfg.negative='dog' has 'dog'"),
    ],
)  # fmt: skip
def test_prompts_that_are_refused(arguments: list[str], message: str, text_run: Path, refused: Callable):
    assert message in refused(main(["--mode", "sample", "--workdir", str(text_run), *arguments]))


def test_files_of_prompts_that_are_refused(text_run: Path, tmp_path: Path, refused: Callable):
    path = tmp_path / "prompts.txt"
    for content, message in (
        (b"a seven\n\xff", "is not UTF-8"),
        (b"\n \n", "has no text"),
        (b"x" * (2**24 + 1), "has more than"),
        (b"a seven\na cat\n", "has 'cat'"),
    ):
        path.write_bytes(content)
        assert message in refused(
            main(["--mode", "sample", "--workdir", str(text_run), "--prompts", str(path)])
        )


def test_any_text_is_a_prompt_of_bytes(tmp_path: Path, refused: Callable):
    """The run keeps how captions are read; each letter of a prompt that no caption had is read."""
    run = train_on_captions(tmp_path / "run", "--config.data.tokenizer=bytes")
    assert json.loads((run / "config.json").read_text())["model"]["encoder_words"] == 257
    assert [*sample(run)["captions"]] == read_prompts(run / "captions.txt")[:5]
    zebra = sample(run, "--prompt", "Zèbre 🦓")
    assert set(zebra["captions"]) == {"Zèbre 🦓"}
    assert (zebra["samples"] != sample(run, "--prompt", "Zebre 🦓")["samples"]).any()
    command = ["--mode", "sample", "--workdir", str(run), "--prompt", 150 * "é"]
    assert "has 300 bytes, and the model reads at most" in refused(main(command))


def test_a_prompt_for_a_model_without_text(trained: Path, cli: Callable, refused: Callable):
    message = refused(cli("sample", trained, "--prompt", "a seven"))
    assert "sampling.prompt=a seven needs a model that was trained with captions" in message


def test_networks_that_take_no_text(tmp_path: Path, cli: Callable, refused: Callable):
    overrides = ["--config.data.name=captioned_digits", "--config.training.conditional=True"]
    message = refused(cli("train", tmp_path / "run", *overrides, "--config.model.name=ncsnv2"))
    assert "model 'ncsnv2' cannot be conditioned on the text of the data: choose unet or dit" in message


def test_a_transformer_reads_prompts(tmp_path: Path):
    """DiT, in which a text changes every sample."""
    model = dict(name="dit", patch=4, width=16, depth=1, heads=2)
    model |= dict(encoder_width=8, encoder_depth=1, encoder_heads=2)
    training = dict(conditional=True, learning_rate=0.05, ema_decay=0.1)
    settings = {"data.name": "captioned_digits", "model": model, "training": training}
    run = train(TINY, tmp_path / "run", settings)
    drawn = [run.sample(3, prompt=prompt).samples for prompt in (SEVEN, EIGHT)]
    assert np.abs(drawn[0] - drawn[1]).max((1, 2, 3)).min() > 1e-3


def test_lost_words_and_captions(run: Path, refused: Callable):
    (run / "captions.txt").unlink()
    assert "captions.txt does not exist" in refused(main(["--mode", "sample", "--workdir", str(run)]))
    record = json.loads((run / "data.json").read_text())
    del record["words"], record["text_length"]
    (run / "data.json").write_text(json.dumps(record))
    command = ["--mode", "sample", "--workdir", str(run), "--prompt", SEVEN]
    assert "has lost the vocabulary of the captions" in refused(main(command))


@pytest.mark.slow
def test_other_modes_condition_on_texts(run: Path):
    """Likelihoods of held-out images under their own captions, metrics, and filling in under a prompt."""
    assert main(["--mode", "likelihood", "--workdir", str(run)]) == 0
    record = json.loads(next(run.glob("likelihood*.json")).read_text())
    assert record["conditioned_on"] == ["text"] and "unconditional" in record
    assert main(["--mode", "evaluate", "--workdir", str(run)]) == 0
    restore = ["--mode", "restore", "--workdir", str(run), "--task=inpaint", "--nfe=4"]
    for arguments in (["--prompt", SEVEN], []):
        assert (
            main([*restore, "--config.restore.num_samples=2", "--config.restore.num_inputs=1", *arguments])
            == 0
        )
