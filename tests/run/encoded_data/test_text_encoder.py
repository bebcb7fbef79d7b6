"""Frozen text encoders against transformers itself, and through training, sampling and a changed folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from score_diffusion import load_run, train
from score_diffusion.run import machine
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.encoded_data.text_encoder import (
    FrozenTextEncoder,
    TextEncoderFolder,
    with_text_encoder,
)
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main
from tests.run.conftest import TINY

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

WORDS = ["<pad>", "<unk>", "<s>", "</s>", *"a an zero one two three four five six seven eight nine".split()]
WORDS += "thick thin small large slanting left right handwritten".split()
SEVEN, EIGHT = "a thick seven slanting left", "an eight"
LENGTHS = {"clip": 12, "t5": 256}


def write_folder(path: Path, kind: str) -> Path:
    """A tiny model with random weights, and a tokenizer of words that adds a start and an end."""
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    special = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(path)
    torch.manual_seed(0)
    if kind == "clip":
        sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        ids = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0)
        config = transformers.CLIPTextConfig(
            vocab_size=len(WORDS), max_position_embeddings=LENGTHS["clip"], **sizes, **ids
        )
        transformers.CLIPTextModel(config).save_pretrained(path)
    else:
        config = transformers.T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
        )
        transformers.T5EncoderModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_folder(root / kind, kind) for kind in LENGTHS}


@pytest.mark.parametrize("kind", LENGTHS)
def test_encodings_are_those_of_transformers(kind: str, folders: dict[str, Path]):
    """Each text by itself, not padded, through transformers' own model; an empty text is 0 and masked."""
    folder = TextEncoderFolder(folders[kind])
    texts = [SEVEN, EIGHT, "a zero", SEVEN]
    vocabulary = FrozenTextEncoder.of_captions(folder, texts, "the data")
    assert (vocabulary.length, vocabulary.size) == (7, len(WORDS) + 1)
    assert vocabulary.condition_sizes == {"tokens": 16, "vector": 16}
    ids = torch.cat([vocabulary.encode(texts), torch.zeros(1, 7, dtype=torch.int64)])
    assert [vocabulary.decode(row) for row in ids] == [*texts, ""]
    found = vocabulary.conditions(ids)
    name = {"clip": "CLIPTextModel", "t5": "T5EncoderModel"}[kind]
    model = getattr(transformers, name).from_pretrained(folders[kind]).eval()
    for k, text in enumerate(texts):
        given = folder.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model(given)
        length, states = given.shape[1], out.last_hidden_state[0]
        whole = states[-1] if kind == "clip" else states.mean(0)
        torch.testing.assert_close(found["tokens"][k, :length], states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["vector"][k], F.layer_norm(whole, (16,)), rtol=1e-3, atol=1e-4)
        assert found["mask"][k].tolist() == [n < length for n in range(7)]
        assert (found["tokens"][k, length:] == 0).all()
    assert not found["mask"][4].any() and (found["tokens"][4] == 0).all() and (found["vector"][4] == 0).all()
    single = vocabulary.conditions(ids[:1])
    assert all(torch.equal(single[kind], found[kind][:1]) for kind in found)


def test_encodings_beyond_memory_are_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    vocabulary = FrozenTextEncoder(TextEncoderFolder(folders["t5"]), 7)
    monkeypatch.setattr(machine, "machine_memory", lambda device: (2 * 2 * 7 * 16 * 4 - 1, "machine"))
    vocabulary.conditions(vocabulary.encode([SEVEN]))
    with pytest.raises(UserError, match="the encodings of 2 texts"):
        vocabulary.conditions(vocabulary.encode([SEVEN, EIGHT]))


def test_long_texts_are_cut_and_end_with_the_end(folders: dict[str, Path], capsys):
    vocabulary = FrozenTextEncoder.of_captions(TextEncoderFolder(folders["clip"]), ["a " * 20], "the data")
    assert "captions of up to 22 tokens: only the first 12 are read" in capsys.readouterr().err
    assert vocabulary.encode(["a " * 20])[0].tolist() == [3, *[5] * 10, 4]
    assert vocabulary.problem("a " * 20) == "has 22 tokens, and the model reads at most 12"
    assert vocabulary.problem(" ") == "is empty" and vocabulary.problem("a xylophone") is None


def test_a_data_set_keeps_its_captions(folders: dict[str, Path]):
    data = load_dataset(DataOptions(name="captioned_digits", tokenizer="bytes"))
    encoded = with_text_encoder(data, TextEncoderFolder(folders["t5"]))
    for before, after in (
        (data.conditions, encoded.conditions),
        (data.test_conditions, encoded.test_conditions),
    ):
        texts = [data.vocabulary.decode(row) for row in before["text"][:50]]
        assert [encoded.vocabulary.decode(row) for row in after["text"][:50]] == texts
    assert encoded.condition_sizes == {"tokens": 16, "vector": 16}
    with pytest.raises(UserError, match="data.text_encoder encodes captions, and 'digits' has none"):
        with_text_encoder(load_dataset(DataOptions(name="digits")), TextEncoderFolder(folders["t5"]))


def settings(folder: Path, name: str = "unet") -> dict[str, object]:
    model: dict[str, object] = {"attention_levels": (0,)}
    if name == "dit":
        model = dict(name="dit", patch=4, width=16, depth=1, heads=2)
    training = dict(conditional=True, learning_rate=0.05, ema_decay=0.1, preview_samples=2, sample_every=4)
    return {
        "data": {"name": "captioned_digits", "text_encoder": str(folder)},
        "model": model,
        "training": training,
        "sampling": dict(num_samples=3, guidance="cfg"),
    }


@pytest.fixture(scope="module")
def text_run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("frozen") / "run"
    train(TINY, workdir, settings(folders["clip"]))
    return workdir


def test_a_run_is_conditioned_on_frozen_encodings(text_run: Path, folders: dict[str, Path]):
    """The network sees what the encoder says of the prompts; its weights are those of the network only."""
    record = json.loads((text_run / "data.json").read_text())
    folder = TextEncoderFolder(folders["clip"])
    assert (record["tokenizer"], record["encoders"]) == ("frozen", {"text_encoder": folder.digest})
    model = json.loads((text_run / "config.json").read_text())["model"]
    assert (model["token_dim"], model["vector_dim"], model["encoder_words"]) == (16, 16, 0)
    for path in text_run.glob("checkpoints/*/*.safetensors"):
        assert b"position_embedding" not in path.read_bytes()
    run = load_run(text_run)
    samples = run.sample(4, prompt=[SEVEN, EIGHT])
    assert samples.names == [SEVEN, EIGHT, SEVEN, EIGHT]
    one = run.sample(4, prompt=SEVEN)
    assert np.array_equal(samples.samples[::2], one.samples[::2])
    assert np.abs(samples.samples[1::2] - one.samples[1::2]).max((1, 2, 3)).min() > 1e-3
    away = run.sample(4, prompt=SEVEN, negative=EIGHT)
    assert (away.samples != one.samples).any() and (
        run.sample(4, label=-1, guidance="none").samples != 0
    ).any()
    assert run.sample().names == (text_run / "captions.txt").read_text().splitlines()[:3]
    x, t = torch.randn(1, 1, 8, 8), torch.full((1,), 0.5)
    vocabulary = FrozenTextEncoder(folder, record["text_length"])
    given, null = (
        run.score(x, t, cond) for cond in (vocabulary.conditions(vocabulary.encode([SEVEN])), None)
    )
    empty = run.score(x, t, vocabulary.conditions(vocabulary.encode([SEVEN]) * 0))
    assert (given - null).abs().max() > 1e-4
    torch.testing.assert_close(empty, null)


@pytest.mark.slow
def test_a_transformer_on_t5_resumes_bit_for_bit(folders: dict[str, Path], tmp_path: Path):
    """DiT, from a checkpoint in the middle on."""
    chosen = settings(folders["t5"], "dit")
    whole = train(TINY, tmp_path / "whole", chosen)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    *_, last = sorted((tmp_path / "parts/checkpoints").iterdir())
    shutil.rmtree(last)
    again = train(TINY, tmp_path / "parts", chosen)
    assert again.step == whole.step
    drawn = [run.sample(2, prompt=SEVEN).samples for run in (whole, again)]
    assert np.array_equal(*drawn) and not np.array_equal(drawn[0], whole.sample(2, prompt=EIGHT).samples)


def test_a_moved_folder_is_named_and_a_changed_one_is_refused(
    text_run: Path, folders: dict[str, Path], tmp_path: Path, refused: Callable
):
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    moved = Path(shutil.copytree(folders["clip"], tmp_path / "moved"))
    command = ["--mode", "sample", "--workdir", str(run), "--prompt", SEVEN]
    name = f"--config.data.text_encoder={moved}"
    (moved / "README.md").write_text("not a part of the model")
    assert main([*command, name]) == 0
    for other in (folders["t5"], moved):
        if other == moved:
            (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text() + " ")
        message = refused(main([*command, f"--config.data.text_encoder={other}"]))
        assert f"the files in {other} are not those that the run was trained with" in message
    assert "holds no model of transformers" in refused(main([*command, "--config.data.text_encoder=nowhere"]))
    assert "data.text_encoder names none" in refused(main([*command, "--config.data.text_encoder="]))
    message = refused(main([*command[:-1], "a " * 20, "--config.data.text_encoder=" + str(folders["clip"])]))
    assert "tokens, and the model reads at most" in message


def test_a_shared_run_is_loaded_with_the_folder_named(
    text_run: Path, folders: dict[str, Path], tmp_path: Path
):
    run = load_run(text_run)
    shared = run.save_pretrained(tmp_path / "shared", samples=0)
    with pytest.raises(UserError, match="data.text_encoder names none: name its folder with"):
        load_run(shared)
    moved = {"data.text_encoder": str(folders["clip"])}
    expected = run.sample(2, prompt=SEVEN).samples
    for received in (load_run(shared, settings=moved), type(run).from_pretrained(shared, settings=moved)):
        assert np.array_equal(received.sample(2, prompt=SEVEN).samples, expected)


def test_folders_that_are_refused(folders: dict[str, Path], tmp_path: Path):
    other = Path(shutil.copytree(folders["clip"], tmp_path / "bert"))
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a model of type 'bert': name one of type clip"):
        TextEncoderFolder(other)
    (other / "config.json").write_text("{")
    with pytest.raises(UserError, match="bert cannot be read"):
        TextEncoderFolder(other)
    short = Path(shutil.copytree(folders["t5"], tmp_path / "short"))
    (short / "model.safetensors").unlink()
    with pytest.raises(UserError, match="short cannot be read"):
        _ = TextEncoderFolder(short).model
    config = json.loads((folders["t5"] / "config.json").read_text())
    deeper = Path(shutil.copytree(folders["t5"], tmp_path / "deeper"))
    (deeper / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(UserError, match="deeper lacks the weights"):
        _ = TextEncoderFolder(deeper).model


def test_without_transformers(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'score-diffusion\[transformers\]'"):
        TextEncoderFolder(folders["clip"])
