"""What a training step minimizes.

An objective is a module, `objective(model, batch) -> losses (B,)`, that does not hold the model: its
state_dict has only its own parameters. It uses as much of the `Batch` as it needs: score matching x_0, times
and noise; a classifier, a contrastive pair or an autoencoder x_0 and conditions. Objectives that use no times
set `uses_times = False`, and none are drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from score_diffusion.models import Clip, caption_bytes
from score_diffusion.run.training.batches import Batch
from score_diffusion.sde_lib import (
    SDE,
    ConditionalScore,
    LearnedUncertainty,
    NoisyDataModel,
    ScoreFunction,
    ScoreModel,
    Weighting,
    chain_times,
    denoising_score_matching,
    hybrid_loss,
)

Model = TypeVar("Model", bound=nn.Module)
RECALLED = 5  # captions among which an image's own must be to count as found


class Objective(nn.Module, Generic[Model]):
    """Base class of the objectives for a kind of model."""

    uses_times = True
    """Whether batches have times and noise."""
    needs_whole_batch = False
    """Whether the loss of a sample compares it with the others of its batch, which cannot be divided then."""
    accuracy_of = "of held-out samples"
    """What the share of recognized samples is a share of, in words."""
    step = 0
    """The training step, counted from 0: the trainer sets it before each."""

    @abstractmethod
    def forward(self, model: Model, batch: Batch) -> Tensor:
        """The loss of each sample, shape (B,)."""

    def after_step(self, models: Sequence[Model], group: ProcessGroup | None) -> None:
        """Changes what an optimizer step has left; nothing for most objectives.

        Args:
            models: The model, and its averages.
            group: The ranks that share the work; None for one process.
        """

    def recognized(self, model: Model, batch: Batch) -> Tensor | None:
        """Whether the model recognizes each sample, bool (B,); None where that has no meaning."""
        return None

    def figures(self, model: Model, batches: Iterable[Batch]) -> dict[str, float]:
        """What is logged of held-out samples besides their loss; empty for most objectives."""
        return {}


def conditioned(model: ScoreModel, batch: Batch, conditional: bool) -> ScoreFunction:
    """The model, conditioned on what the batch comes with if it is to be trained so."""
    return ConditionalScore(model, batch.conditions) if conditional and batch.conditions else model


class DenoisingScoreMatching(Objective[ScoreModel]):
    """Denoising score matching.

    Args:
        weighting: Weighting of the loss over times.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    def __init__(self, weighting: Weighting, conditional: bool = False) -> None:
        super().__init__()
        self.weighting, self.conditional = weighting, conditional

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        assert batch.times is not None and batch.noise is not None  # uses_times
        score = conditioned(model, batch, self.conditional)
        return denoising_score_matching(
            model.sde, score, batch.x_0, batch.times.t, batch.noise, self.weighting
        )


class UncertaintyWeighted(DenoisingScoreMatching):
    """Denoising score matching, divided by a learned uncertainty of each noise level.

    Args:
        sde: The SDE.
        weighting: Weighting of the loss over times.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    def __init__(self, sde: SDE, weighting: Weighting, conditional: bool = False) -> None:
        super().__init__(weighting, conditional)
        self.uncertainty = LearnedUncertainty(sde)

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        losses = super().forward(model, batch)
        assert batch.times is not None
        return self.uncertainty(losses, batch.times.t)


class Hybrid(Objective[ScoreModel]):
    """Improved DDPM's L_simple + λ L_vlb, which trains a learned variance; for times of the SDE's chain.

    Args:
        sde: The SDE.
        levels: Number of grey levels of pixel values that are not dequantized; None for other data.
        vlb_weight: λ.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    times: Tensor

    def __init__(self, sde: SDE, levels: int | None, vlb_weight: float, conditional: bool = False) -> None:
        super().__init__()
        self.register_buffer("times", chain_times(sde), persistent=False)
        self.levels, self.vlb_weight, self.conditional = levels, vlb_weight, conditional

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        assert batch.times is not None and batch.times.k is not None and batch.noise is not None
        score = conditioned(model, batch, self.conditional)
        return hybrid_loss(
            model.sde,
            score,
            batch.x_0,
            self.times,
            batch.times.k,
            batch.noise,
            self.levels,
            self.vlb_weight,
        )


def noisy_data(model: NoisyDataModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """x_t and t of a batch."""
    assert batch.times is not None and batch.noise is not None  # uses_times
    return model.sde.perturb(batch.x_0, batch.times.t, batch.noise), batch.times.t


class Classification(Objective[NoisyDataModel]):
    """The cross-entropy of a classifier of noisy data, for guidance (Dhariwal & Nichol, 2021, Section 4)."""

    def forward(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        return F.cross_entropy(model(*noisy_data(model, batch)), batch.conditions["label"], reduction="none")

    def recognized(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        return model(*noisy_data(model, batch)).argmax(1) == batch.conditions["label"]


class CleanClassification(Objective[NoisyDataModel]):
    """The cross-entropy of a classifier of data without noise, whose features samples are measured on."""

    uses_times = False

    def forward(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        logits = model(*clean_data(model, batch.x_0))
        return F.cross_entropy(logits, batch.conditions["label"], reduction="none")

    def recognized(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        return model(*clean_data(model, batch.x_0)).argmax(1) == batch.conditions["label"]


def clean_data(model: NoisyDataModel, x_0: Tensor) -> tuple[Tensor, Tensor]:
    """Data without noise and the time that a classifier of such data is called with, always the same."""
    return x_0, torch.full((len(x_0),), model.sde.sampling_eps, device=x_0.device)


class Contrastive(Objective[NoisyDataModel]):
    """The symmetric cross-entropy of images and captions (Radford et al., 2021, Section 2.3).

    Each image of a batch is to find its caption among those of the batch, and each caption its image. Images
    that share a caption bound the loss from below. 1/temperature stays at most `models.clip.LARGEST_SCALE`.

    Args:
        clean: Whether images come without noise; else they are noised, for guidance (Nichol et al., 2022).
    """

    needs_whole_batch = True

    def __init__(self, clean: bool = False) -> None:
        super().__init__()
        self.clean, self.uses_times = clean, not clean

    def after_step(self, models: Sequence[NoisyDataModel], group: ProcessGroup | None) -> None:
        for model in models:
            cast(Clip, model.net).bound_scale()

    def logits(self, model: NoisyDataModel, batch: Batch, captions: Tensor) -> Tensor:
        """Of every image with every caption, shape (B, n)."""
        inputs = clean_data(model, batch.x_0) if self.clean else noisy_data(model, batch)
        return model(*inputs, captions)

    @abstractmethod
    def captions_of(self, batch: Batch) -> Tensor:
        """The caption of each image, ids (B, L)."""

    def forward(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        logits = self.logits(model, batch, self.captions_of(batch))  # (B, B)
        target = torch.arange(len(batch), device=logits.device)
        of_images = F.cross_entropy(logits, target, reduction="none")
        return (of_images + F.cross_entropy(logits.T, target, reduction="none")) / 2


class ClassContrastive(Contrastive):
    """Contrastive training on captions of the classes. A sample's phrasing goes by its place in the batch.

    Args:
        captions: The phrasings of each class.
        clean: As for `Contrastive`.
    """

    captions: Tensor

    def __init__(self, captions: Sequence[Sequence[str]], clean: bool = False) -> None:
        super().__init__(clean)
        self.phrasings = len(captions[0])
        flat = caption_bytes([caption for of_class in captions for caption in of_class])
        self.register_buffer(
            "captions", flat.unflatten(0, (-1, self.phrasings)), persistent=False
        )  # (K, P, L)

    def captions_of(self, batch: Batch) -> Tensor:
        phrasing = torch.arange(len(batch), device=batch.x_0.device) % self.phrasings
        return self.captions[batch.conditions["label"], phrasing]

    def recognized(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        """Whether the class's first phrasing is the best among those of all classes."""
        return self.logits(model, batch, self.captions[:, 0]).argmax(1) == batch.conditions["label"]


class CaptionContrastive(Contrastive):
    """Contrastive training on the captions of the data."""

    accuracy_of = f"of held-out images find their caption among the best {RECALLED} of a batch"

    def captions_of(self, batch: Batch) -> Tensor:
        return batch.conditions["text"]

    def recognized(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        """Whether the image's own caption is among the best `RECALLED` of the batch's different captions.

        One image may have several true captions, other phrasings of its own: the best one alone says little.
        """
        different, own = torch.unique(self.captions_of(batch), dim=0, return_inverse=True)
        logits = self.logits(model, batch, different)  # (B, n)
        return (logits > logits.gather(1, own[:, None])).sum(1) < RECALLED
