"""Guidance by an embedding: samples whose image embedding points along that of a text.

    s_w(x, t) = s(x, t) + w ∇ (f(x_t, t) · g(c))

f is an image encoder that knows the noise level, g(c) the embedding of a caption c. Trained contrastively
(CLIP), f · g(c) is log p(c | x_t) up to a function of x_t and the temperature: classifier guidance by a
classifier whose classes are sentences, except that the normalization over captions is missing. Two functions
are all that it takes,

    image_encoder(x, t) -> (B, E)
    text_encoder(captions) -> (number of captions, E)

and any pair of encoders fits: f may ignore t (then it sees noise that it never saw in training), estimate x̂_0
first, or resize and normalize its input.

Assumes encoders trained on noisy images. The scale has no natural value: f · g of unit vectors lies in
[-1, 1], and CLIP multiplies it by its learned temperature. Costs, besides the evaluation of the score, one
evaluation of f and its gradient, which is not counted among the network evaluations; none where w = 0.

References:
    GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models (Nichol et
        al., 2022), https://arxiv.org/abs/2112.10741: Section 2.3.
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021),
        https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from score_diffusion.samplers.guidance.classifier import ClassifierGuidance
from score_diffusion.samplers.guidance.conditions import rows_for
from score_diffusion.sde_lib import InputError, ScoreFunction

ImageEncoder = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (B, E) of noisy images x (B, C, H, W) at times t (B,)."""


class EmbeddingGuidance(ClassifierGuidance):
    """Guidance by the dot product of two embeddings.

    Args:
        score: The score.
        image_encoder: f: `image_encoder(x, t)` gives embeddings, shape (B, E), differentiable.
        text_embedding: g(c), shape (1, E) for all samples or (B, E).
        scale: Guidance scale w of at least 0.

    Raises:
        InputError: If scale is negative, or text_embedding is not of this form.
    """

    def __init__(
        self, score: ScoreFunction, image_encoder: ImageEncoder, text_embedding: Tensor, *, scale: float = 1.0
    ) -> None:
        super().__init__(score, DotProduct(image_encoder, text_embedding), scale=scale)


class DotProduct:
    """f(x_t, t) · g(c); arguments as for `EmbeddingGuidance`."""

    def __init__(self, image_encoder: ImageEncoder, text_embedding: Tensor) -> None:
        if text_embedding.ndim != 2:
            raise InputError(
                f"text_embedding must have shape (1, E) or (B, E), got {tuple(text_embedding.shape)}"
            )
        self.image_encoder, self.text_embedding = image_encoder, text_embedding.detach()

    @property
    def any_dtype(self) -> bool:
        """Whether the image encoder takes x and t in any floating-point dtypes."""
        return getattr(self.image_encoder, "any_dtype", False)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        image = self.image_encoder(x, t)
        text = rows_for(self.text_embedding, x, "text_embedding").to(image.dtype)
        if image.shape != text.shape:
            raise InputError(
                f"image_encoder(x, t) must return embeddings of shape {tuple(text.shape)}, as the text's, "
                f"got {tuple(image.shape)}"
            )
        return (image * text).sum(1)
