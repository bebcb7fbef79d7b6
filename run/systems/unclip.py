"""unCLIP: a prior draws the embedding of an image for a text, and a decoder the image (Ramesh et al., 2022).

    text -> prior -> image embedding z_i -> decoder -> image

The embeddings of given images can take the place of the prior's:

    variations    the embedding of each image in turn, and other noise for each sample
    a path        between two images: embeddings and codes on the sphere between those of the two
    a change      of one image by two texts: its code stays, its embedding turns towards the difference of the
                  texts', slerp(z_i, z_d, θ) with z_d = norm(z_t - z_t0) and θ growing from 0

A code is the noise that the probability flow of the decoder leads to the image, given its embedding.

Reference:
    Hierarchical Text-Conditional Image Generation with CLIP Latents (Ramesh et al., 2022),
        https://arxiv.org/abs/2204.06125: Sections 2 and 3.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.data import load_run_data
from score_diffusion.run.builders.encoders import load_contrastive_encoders
from score_diffusion.run.builders.inference import OF_SYSTEM
from score_diffusion.run.config import with_values
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.data.inputs import HELD_OUT, InputReader, named_paths
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.encoded_data.embeddings import ContrastiveEncoders, with_unit_entries
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import file_digest
from score_diffusion.run.inference.latents import decode, encode
from score_diffusion.run.inference.prompts import encoded_prompts
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.systems.chain import Chain, ScoreStage, StageRun, StageSamples, stage_seed
from score_diffusion.samplers import ODESampler, interpolate

TOLERANCE = 1e-3  # of the flow, a fraction of a grey level
ARROW = "->"  # between the two texts of a change
OF_WHOLE = dict.fromkeys(
    ("sampling.prompt", "sampling.prompts", *(f"sampling.unclip.{key}" for key in OF_SYSTEM)), ""
)
"""Keys of the whole system that mean nothing to its decoder, with what stands for nothing."""


@dataclass(frozen=True)
class Given:
    """What the decoder draws samples of."""

    vectors: Tensor
    """Image embeddings, (n, E)."""
    nfe: int = 0
    """Network evaluations of the prior for a sample."""
    codes: Tensor | None = None
    """The noise to decode, (n, *shape); None for that of each sample."""


class EmbeddingSource(ABC):
    """Where the embeddings come from that the decoder draws images of."""

    @abstractmethod
    def give(self, indices: range, seed: int) -> Given:
        """What the samples with these indices are drawn of, a function of (seed, index)."""

    @property
    @abstractmethod
    def conditions(self) -> SampleConditions:
        """What the samples are drawn of, by their indices: texts, or images and places as classes."""


def best_of(candidates: Tensor, texts: Tensor) -> Tensor:
    """Of each sample's candidates the one with the largest dot product with its text (Section 2.2).

    Args:
        candidates: Image embeddings, (candidates, n, E).
        texts: Text embeddings, (n, E).

    Returns:
        Image embeddings, (n, E).
    """
    best = (candidates * texts).sum(2).argmax(0)  # (n,)
    return candidates[best, torch.arange(len(texts))]


class FromPrior(EmbeddingSource):
    """Embeddings that the prior draws for texts, the best of a few.

    Args:
        prior: The prior, under the texts.
        count: Embeddings that it draws for each sample.
    """

    def __init__(self, prior: ScoreStage, count: int) -> None:
        self.prior, self.count = prior, count

    def give(self, indices: range, seed: int) -> Given:
        stages = [
            self.prior.draw(indices, stage_seed(seed, f"{self.prior.name} {k}")) for k in range(self.count)
        ]
        drawn = torch.stack([with_unit_entries(torch.from_numpy(stage.samples)) for stage in stages])
        nearest = best_of(drawn, _rows(self.prior.trained, indices))
        return Given(nearest, sum(stage.nfe for stage in stages))

    @property
    def conditions(self) -> SampleConditions:
        return self.prior.trained.conditions


class FromTexts(EmbeddingSource):
    """The embeddings of the texts themselves, without the prior (the ablation of Section 5.1).

    Args:
        prior: The prior, under the texts.
    """

    def __init__(self, prior: ScoreStage) -> None:
        self.prior = prior

    def give(self, indices: range, seed: int) -> Given:
        return Given(_rows(self.prior.trained, indices))

    @property
    def conditions(self) -> SampleConditions:
        return self.prior.trained.conditions


def _rows(prior: TrainedModel, indices: range) -> Tensor:
    """The text embeddings of samples, (n, E)."""
    return (prior.conditions.of(indices) or {})["vector"]


class Variations(EmbeddingSource):
    """The embeddings of some images in turn.

    Args:
        vectors: The embeddings, (images, E).
        images: Names of the images.
    """

    def __init__(self, vectors: Tensor, images: Sequence[str]) -> None:
        self.vectors, self.images = vectors, images

    def give(self, indices: range, seed: int) -> Given:
        return Given(self.vectors[torch.arange(indices.start, indices.stop) % len(self.vectors)])

    @property
    def conditions(self) -> SampleConditions:
        return SampleConditions.of_classes(range(len(self.images)), tuple(self.images))


class Path(EmbeddingSource):
    """Embeddings and codes on the sphere between those of two ends.

    Args:
        ends: The embeddings of the ends, (2, E).
        codes: Their codes, (2, *shape).
        count: Number of samples, evenly spaced.
        reach: Where the last sample is, 1 at the second end.
    """

    def __init__(self, ends: Tensor, codes: Tensor, count: int, reach: float) -> None:
        self.ends, self.codes = ends, codes
        self.places = torch.linspace(0, reach, count)

    def give(self, indices: range, seed: int) -> Given:
        places = self.places[indices.start : indices.stop]
        vectors, codes = (interpolate(x[:1], x[1:], places)[:, 0] for x in (self.ends, self.codes))
        return Given(vectors, codes=codes)

    @property
    def conditions(self) -> SampleConditions:
        names = tuple(f"{place:.2f}" for place in self.places.tolist())
        return SampleConditions.of_classes(range(len(names)), names)


class Unclip(Chain):
    """A prior and a decoder.

    Args:
        runs: The run directories.
        source: Where the embeddings come from.
        decoder: The decoder.
        flow: The probability flow by which the decoder decodes codes.
        fact: The stage whose embeddings the decoder gets, and what it is in words.
    """

    def __init__(
        self,
        runs: Mapping[str, StageRun],
        source: EmbeddingSource,
        decoder: ScoreStage,
        flow: ODESampler,
        fact: tuple[str, object],
    ) -> None:
        super().__init__(runs)
        self.source, self.decoder, self.flow, self._fact = source, decoder, flow, fact
        section = self.sampling.unclip.to_dict()
        if section["images"] not in ("", HELD_OUT):
            section["images"] = [
                file_digest(path) for path in named_paths(section["images"]) if path.is_file()
            ]
        self.settings = json.dumps({**json.loads(self.settings), "unclip": section}, sort_keys=True)

    @classmethod
    def load(cls, runs: Mapping[str, StageRun], device: torch.device) -> Unclip:
        """unCLIP of some run directories.

        Raises:
            UserError: If they are not encoders, a prior and a decoder that were trained with the encoders,
                or what is to be drawn is named twice or cannot be read.
        """
        towers, prior_run, decoder_run = _roles(runs)
        of_stages = [read_data_info(run.path) for run in (prior_run, decoder_run)]
        encoders, _ = (load_contrastive_encoders(str(towers.path), info) for info in of_stages)
        decoder = ScoreStage.load(_with_values(decoder_run, OF_WHOLE), device)
        section = towers.config.sampling
        flow = ODESampler(decoder.trained.sde, rtol=TOLERANCE, atol=TOLERANCE)
        if section.unclip.images:
            own = _with_values(decoder_run, {"data.encoder": str(towers.path)})
            source = _of_images(towers.config, own, encoders, decoder, flow)
            return cls(runs, source, decoder, flow, (towers.name, f"embeddings of {section.unclip.images}"))
        if section.unclip.path or section.unclip.change:
            raise UserError(
                "sampling.unclip.path and sampling.unclip.change start from images: name them by --variations"
            )
        prior = ScoreStage.load(_with_values(prior_run, {"data.encoder": str(towers.path)}), device)
        if not section.unclip.prior:
            return cls(runs, FromTexts(prior), decoder, flow, (towers.name, "embeddings of the texts"))
        name, words = prior.fact()
        fact = name, f"{words}, the best of {section.unclip.best_of}"
        return cls(runs, FromPrior(prior, section.unclip.best_of), decoder, flow, fact)

    def draw(self, indices: range, seed: int) -> dict[str, StageSamples]:
        given = self.source.give(indices, seed)
        embeddings = StageSamples(given.vectors.numpy(), given.nfe, None)
        if given.codes is None:
            vectors = given.vectors.roll(indices.start % len(given.vectors), 0)  # sample k has row k mod n
            model = _under(self.decoder.trained, vectors)
            drawn = self.decoder.draw(indices, stage_seed(seed, self.decoder.name), model)
        else:
            model = _under(self.decoder.trained, given.vectors)
            samples, nfe = decode(model, self.flow, given.codes, self.decoder.batch_size)
            scaling = model.data.scaling
            drawn = StageSamples(scaling.model_to_user(samples).numpy(), nfe, scaling.limits)
        return {"embeddings": embeddings, self.decoder.name: drawn}

    def facts(self) -> list[tuple[str, object]]:
        return [self._fact, self.decoder.fact()]

    @property
    def last(self) -> TrainedModel:
        return self.decoder.trained

    @property
    def conditions(self) -> SampleConditions:
        return self.source.conditions


def _roles(runs: Mapping[str, StageRun]) -> tuple[StageRun, StageRun, StageRun]:
    """The encoders, the prior and the decoder.

    Raises:
        UserError: If the stages are others.
    """
    stages = list(runs.values())
    found = ["encoders" if _encodes(stage) else stage.config.data.embeddings for stage in stages]
    if found != ["encoders", "samples", "conditions"]:
        raise UserError(
            "unCLIP has three stages, encoders of images and captions, a prior (data.embeddings=samples) and "
            "a decoder (data.embeddings=conditions), and others are in "
            f"{stages[0].path.parent}: {', '.join(runs)}"
        )
    return stages[0], stages[1], stages[2]


def _encodes(stage: StageRun) -> bool:
    return stage.config.model.name == "clip"


def _with_values(run: StageRun, values: Mapping[str, object]) -> StageRun:
    return replace(run, config=with_values(run.config, values))


def _of_images(
    config: ConfigDict,
    run: StageRun,
    encoders: ContrastiveEncoders,
    decoder: ScoreStage,
    flow: ODESampler,
) -> EmbeddingSource:
    """The embeddings that a section `sampling` takes from images.

    Args:
        config: The configuration with the section.
        run: That of the decoder.
        encoders: The encoders.
        decoder: The decoder.
        flow: Its probability flow.

    Raises:
        UserError: If the images cannot be read, there are too few or too many, or a text is unknown.
    """
    section, options = config.sampling, config.sampling.unclip
    if section.prompt or section.prompts:
        raise UserError("set a prompt or --variations, not both: either a text or an image is drawn from")
    if options.path and options.change:
        raise UserError("set one of sampling.unclip.path and sampling.unclip.change, not both")
    x, names = _images(run, decoder.trained.data, options.images, section.num_samples)
    with torch.no_grad():
        vectors = encoders.encode(x)
    if not (options.path or options.change):
        return Variations(vectors, names)
    needed = 2 if options.path else 1
    if len(x) != needed:
        what = f"sampling.unclip.{'path' if options.path else 'change'}"
        raise UserError(f"{what} needs {needed} image{'s' * (needed > 1)}, and {options.images} has {len(x)}")
    codes = encode(_under(decoder.trained, vectors), flow, x, decoder.batch_size)
    if options.path:
        return Path(vectors, codes, section.num_samples, 1.0)
    turned = torch.cat([vectors, _difference(options.change, encoders)])
    return Path(turned, codes.expand(2, *codes.shape[1:]), section.num_samples, options.reach)


def _images(run: StageRun, data: DataInfo, text: str, most: int) -> tuple[Tensor, Sequence[str]]:
    """Images in the units of the decoder, (n, *shape), with their names: of files, or held-out ones.

    Raises:
        UserError: If they cannot be read or have another shape.
    """
    if text == HELD_OUT:
        dataset = load_run_data(run.config.data, data)
        stored = dataset.test[:most]
        return dataset.scaling.stored_to_model(stored).float(), [str(k) for k in range(len(stored))]
    inputs = InputReader(data_options(run.config.data), data.scaling, most).truth(text, data.shape)
    return data.scaling.user_to_model(inputs.samples), inputs.names


def _difference(change: str, encoders: ContrastiveEncoders) -> Tensor:
    """The normalized difference of the embeddings of two texts, (1, E) (Section 3.3).

    Args:
        change: The texts, "a red square -> a blue square".
        encoders: The encoders.

    Raises:
        UserError: If there are not two different texts, or they have unknown words.
    """
    vocabulary = encoders.info.vocabulary
    if vocabulary is None:
        raise UserError(f"the encoders of {encoders.run} know no words: leave out sampling.unclip.change")
    texts = [text.strip() for text in change.split(ARROW)]
    if len(texts) != 2 or texts[0] == texts[1]:
        raise UserError(
            f"sampling.unclip.change must be two different texts with {ARROW} between them, as 'a red square "
            f"{ARROW} a blue square', got {change!r}"
        )
    before, after = encoders.encode_text(encoded_prompts(texts, vocabulary, "sampling.unclip.change"))
    return with_unit_entries((after - before)[None])


def _under(decoder: TrainedModel, vectors: Tensor) -> TrainedModel:
    """The decoder under embeddings."""
    return replace(decoder, conditions=replace(decoder.conditions, rows={"vector": vectors}))
