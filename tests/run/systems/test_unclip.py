"""unCLIP: the choice of embeddings, paths on the sphere, a decoder of known law, the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from score_diffusion.run.config import load_config
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.encoded_data.embeddings import with_unit_entries
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.main import main
from score_diffusion.run.systems.chain import ScoreStage, StageRun
from score_diffusion.run.systems.unclip import EmbeddingSource, FromPrior, Unclip, Variations, best_of
from score_diffusion.run.systems.unclip import Path as PathBetween
from score_diffusion.samplers import ODESampler, make_sampler
from score_diffusion.sde_lib import VPSDE

SDE, E, SHAPE, DEVIATION = VPSDE(), 3, (1, 2, 2), 0.3


def test_the_best_candidate_has_the_largest_dot_product_with_its_text():
    texts = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    candidates = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 0.9], [1.0, 9.0]]])
    assert best_of(candidates, texts).tolist() == [[2.0, 0.0], [3.0, 1.0], [1.0, 9.0]]
    assert torch.equal(best_of(candidates[:1], texts), candidates[0])


def test_a_path_is_a_great_circle_between_its_ends():
    ends, codes = with_unit_entries(torch.randn(2, 8).double()), torch.randn(2, 1, 2, 2).double()
    path = PathBetween(ends, codes, 6, 1.0)
    given = path.give(range(6), seed=0)
    torch.testing.assert_close(given.vectors[[0, -1]], ends)
    torch.testing.assert_close(given.codes[[0, -1]], codes)
    torch.testing.assert_close(given.vectors.square().mean(1), torch.ones(6).double())
    angles = torch.nn.functional.cosine_similarity(given.vectors[:-1], given.vectors[1:]).arccos()
    whole = torch.nn.functional.cosine_similarity(*ends[:, None]).arccos()
    torch.testing.assert_close(angles, whole.expand(5) / 5)
    torch.testing.assert_close(path.give(range(2, 4), seed=5).vectors, given.vectors[2:4])


def test_a_change_turns_an_embedding_part_of_the_way_and_keeps_the_code():
    ends, code = torch.eye(2, 4).double(), torch.randn(1, 1, 2, 2)
    given = PathBetween(ends, code.expand(2, 1, 2, 2), 3, 0.5).give(range(3), seed=0)
    half = torch.pi / 4
    expected = torch.tensor([[np.cos(a), np.sin(a), 0, 0] for a in (0, half / 2, half)])
    torch.testing.assert_close(given.vectors, expected)
    torch.testing.assert_close(given.codes, code.expand(3, 1, 2, 2))


class Decoder:
    """The exact score of p_t(x | v) for x ~ N(A v, s² I)."""

    condition_sizes = {"vector": E}
    any_dtype = True
    A = torch.linspace(-1, 1, 4 * E).sin().reshape(4, E)

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        alpha, sigma = (value[:, None].to(x) for value in (SDE.alpha(t), SDE.sigma(t)))
        mean = alpha * cond["vector"].to(x) @ self.A.T.to(x)
        score = -(x.flatten(1) - mean) / (alpha**2 * DEVIATION**2 + sigma**2)
        return score.reshape(x.shape)


class Prior:
    """The exact score of p_t(z | text) for z ~ N(v, s² I), v the embedding of the text."""

    condition_sizes = {"vector": E}
    any_dtype = True

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        alpha, sigma = (value[:, None].to(x) for value in (SDE.alpha(t), SDE.sigma(t)))
        return -(x - alpha * cond["vector"].to(x)) / (alpha**2 * DEVIATION**2 + sigma**2)


def stage(name: str, score: object, shape: tuple[int, ...], vectors: Tensor) -> ScoreStage:
    info = DataInfo("exact", shape, Scaling(), 9, 9)
    conditions = SampleConditions({"vector": vectors})
    trained = TrainedModel(score, SDE, info, 0, 1e-3, conditions=conditions)
    return ScoreStage(name, trained, make_sampler("eabm", SDE, 30, denoise=False), 4)


def chain(source: EmbeddingSource) -> Unclip:
    decoder = stage("decoder", Decoder(), SHAPE, torch.zeros(1, E))
    run = StageRun("any", Path(), load_config("vpsde"))
    flow = ODESampler(SDE, rtol=1e-6, atol=1e-6)
    return Unclip({"any": run}, source, decoder, flow, ("any", "exact"))


def test_each_sample_is_drawn_of_its_own_embedding_whatever_the_batches():
    images = torch.randn(3, E)
    model = chain(Variations(images, ("a", "b", "c")))
    drawn = model.draw(range(300), seed=1)["decoder"].samples
    expected = images[torch.arange(300) % 3] @ Decoder.A.T
    residual = drawn.reshape(300, 4) - expected.numpy()
    assert abs(residual.mean()) < 0.03 and residual.std() == pytest.approx(DEVIATION, rel=0.05)
    parts = [model.draw(range(*ends), seed=1)["decoder"].samples for ends in ((0, 5), (5, 7))]
    assert np.array_equal(np.concatenate(parts), drawn[:7])
    assert model.conditions.names(4) == ["a", "b", "c", "a"]


def test_a_path_begins_and_ends_with_its_images():
    """Encoded and decoded under its own embedding, an image comes back."""
    from score_diffusion.run.inference.latents import encode
    from score_diffusion.run.systems.unclip import _under

    images, vectors = torch.randn(2, *SHAPE), torch.randn(2, E)
    model = chain(Variations(vectors, "ab"))
    codes = encode(_under(model.decoder.trained, vectors), model.flow, images, 4)
    model.source = PathBetween(vectors, codes, 5, 1.0)
    drawn = model.draw(range(5), seed=0)["decoder"].samples
    np.testing.assert_allclose(drawn[[0, 4]], images, atol=2e-3)


def test_the_prior_draws_around_the_text_and_its_best_is_nearer():
    text = with_unit_entries(torch.tensor([[1.0, 2.0, -1.0]]))
    similarity = []
    for count in (1, 4):
        source = FromPrior(stage("prior", Prior(), (E,), text), count)
        given = source.give(range(200), seed=3)
        torch.testing.assert_close(given.vectors.square().mean(1), torch.ones(200))
        similarity.append((given.vectors * text).mean(1))
        assert torch.equal(source.give(range(3, 6), seed=3).vectors, given.vectors[3:6])
        assert given.nfe == count * 30
    assert similarity[0].mean() > 0.9 and similarity[1].mean() > similarity[0].mean() + 0.01


SMALL = (
    *("--config.training.steps=2", "--config.training.batch_size=8", "--config.data.num_images=40"),
    *("--config.training.held_out=8", "--config.towers.model.channels=8", "--config.towers.model.heads=2"),
    *("--config.towers.model.multipliers=1,", "--config.towers.model.attention_levels=()"),
    *("--config.decoder.model.channels=8", "--config.decoder.model.multipliers=1,"),
    *("--config.decoder.model.attention_levels=()", "--config.decoder.training.preview_samples=0"),
    *("--config.prior.model.width=16", "--config.prior.model.depth=1"),
)


def sample(workdir: Path, *arguments: str) -> int:
    few = ("--config.sampling.num_samples=4", "--nfe", "4")
    return main(["--mode", "sample", "--workdir", str(workdir), *few, *arguments])


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """unCLIP of three stages of two steps."""
    workdir = tmp_path_factory.mktemp("system") / "unclip"
    assert main(["--mode", "train", "--config", "unclip_shapes", "--workdir", str(workdir), *SMALL]) == 0
    return workdir


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of images: one of the right size, another one, and an array of the wrong size."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    np.save(folder / "wrong.npy", np.zeros((2, 3, 8, 8), np.float32))
    return {name: str(folder / name) for name in ("a.png", "b.png", "wrong.npy")}


@pytest.mark.slow
def test_a_system_draws_of_texts_and_images(system: Path, images: dict[str, str], tmp_path: Path, capsys):
    """Also after it has moved."""
    moved = Path(shutil.copytree(system, tmp_path / "moved"))
    for name in ("towers", "prior", "decoder"):
        (system / name).rename(system / f"{name}-away")
    try:
        pair = f"{images['a.png']},{images['b.png']}"
        change = "--config.sampling.unclip.change=a red square -> a blue square"
        for arguments in (
            ("--prompt", "a small red square"),
            ("--prompt", "a small red square", "--config.sampling.unclip.prior=False"),
            ("--variations", pair),
            ("--variations", "held_out"),
            ("--variations", pair, "--config.sampling.unclip.path=True"),
            ("--variations", images["a.png"], change),
        ):
            assert sample(moved, *arguments) == 0
    finally:
        for name in ("towers", "prior", "decoder"):
            (system / f"{name}-away").rename(system / name)
    files = sorted((moved / "samples").glob("*.npz"))
    assert len(files) == 6 and "the best of 2" in capsys.readouterr().out
    for file in files:
        with np.load(file) as arrays:
            assert arrays["samples"].shape == (4, 3, 16, 16) and arrays["after_embeddings"].shape == (4, 64)


REFUSED = {
    "an unknown word": (("--prompt", "a red giraffe"), "has 'giraffe', which no training caption had"),
    "an empty prompt": (("--prompt", ""), "--prompt is empty"),
    "two sources": (("--prompt", "a red square", "--variations", "{a.png}"), "not both"),
    "a wrong size": (("--variations", "{wrong.npy}"), "have shape (n, 3, 16, 16), got (2, 3, 8, 8)"),
    "no image": (("--config.sampling.unclip.path=True",), "start from images: name them by --variations"),
    "one image": (
        ("--variations", "{a.png}", "--config.sampling.unclip.path=True"),
        "sampling.unclip.path needs 2 images, and",
    ),
    "one text": (
        ("--variations", "{a.png}", "--config.sampling.unclip.change=a red square"),
        "must be two different texts with -> between them",
    ),
    "a path and a change": (
        (
            "--variations",
            "{a.png}",
            "--config.sampling.unclip.change=a -> b",
            "--config.sampling.unclip.path=True",
        ),
        "set one of sampling.unclip.path and sampling.unclip.change",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_drawn_is_refused_in_one_sentence(
    arguments: tuple[str, ...], message: str, system: Path, images: dict[str, str], refused: Callable
):
    filled = [images.get(argument.strip("{}"), argument) for argument in arguments]
    assert message in refused(sample(system, *filled))


def test_foreign_stages_are_refused_in_one_sentence(
    system: Path, images: dict[str, str], tmp_path: Path, refused: Callable
):
    message = refused(sample(system / "decoder", "--variations", images["a.png"]))
    assert "sampling.unclip.images is for a system such as --config unclip_shapes" in message
    other = Path(shutil.copytree(system, tmp_path / "other"))
    shutil.rmtree(other / "towers")
    assert "stage towers of" in refused(sample(other, "--prompt", "a red square"))
    towers = [
        a.replace("config.towers.", "config.") for a in SMALL if ".decoder." not in a and ".prior." not in a
    ]
    train = ["--mode", "train", "--config", "clip_shapes", "--workdir", str(other / "towers"), *towers]
    assert main([*train, "--config.seed=1"]) == 0
    message = refused(sample(other, "--prompt", "a red square"))
    assert "are not those that the run was trained with: restore them" in message


def test_a_dry_run_says_what_waits_for_an_untrained_stage(tmp_path: Path, capsys):
    workdir = tmp_path / "new"
    assert main(["--mode", "train", "--config", "unclip_shapes", "--workdir", str(workdir), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.count("works with stage towers, which has not been trained") == 2 and not workdir.exists()
