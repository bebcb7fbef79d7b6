"""Guidance by embeddings: exact where the dot product is a log-likelihood, and with encoders of others."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.guidance import EmbeddingGuidance
from score_diffusion.sde_lib import VPSDE, Gaussian, InputError
from tests.problems import distance_to_floor, gaussian, labelled_ring


def test_embeddings_that_are_log_likelihoods_sample_the_exact_conditional():
    """f(x, t) = (log p(y = k | x_t))_k and g(c) a unit vector: their dot product is log p(y = c | x_t)."""
    problem, sde = labelled_ring(), VPSDE()
    logits = problem.logits(sde)

    def image_encoder(x, t):
        return logits(x, t).log_softmax(1)

    guided = EmbeddingGuidance(problem.law.score(sde), image_encoder, torch.eye(4)[1:2])
    samples = make_sampler("eabm", sde, 30, denoise=True)(guided, (1200, 2)).samples
    assert distance_to_floor(samples, problem.of_class[1]) < 1.3


def test_an_embedding_for_each_sample():
    """f(x) = x: the score plus the scaled embedding."""
    sde, law, text = VPSDE(), gaussian(2), torch.randn(3, 2)
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    guided = EmbeddingGuidance(law.score(sde), lambda x, t: x, text, scale=2.0)
    torch.testing.assert_close(guided(x, t), law.score(sde)(x, t) + 2 * text)


def test_a_clip_of_transformers_fits():
    """A CLIP of random weights, its input resized: f · g rises under guidance."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    torch.manual_seed(0)
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = size | dict(vocab_size=20, max_position_embeddings=8, eos_token_id=19, bos_token_id=18)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=size | dict(image_size=16, patch_size=8), projection_dim=8
    )
    clip = transformers.CLIPModel(config).eval().requires_grad_(False)

    def embedding(output):
        output = getattr(output, "pooler_output", output)
        return output / output.norm(dim=-1, keepdim=True)

    def image_encoder(x, t):
        pixels = interpolate(x.expand(-1, 3, -1, -1), 16)
        return embedding(clip.get_image_features(pixel_values=pixels))

    def text_encoder(captions):
        tokens = torch.tensor([[18, *(ord(c) % 18 for c in caption[:5]), 19] for caption in captions])
        return embedding(clip.get_text_features(input_ids=tokens))

    sde, law, prompt = VPSDE(), Gaussian(torch.zeros(1, 8, 8), torch.tensor(1.0)), text_encoder(["seven"])
    similarity = []
    for scale in (0.0, 1.0):
        guided = EmbeddingGuidance(law.score(sde), image_encoder, prompt, scale=scale)
        samples = make_sampler("eabm", sde, 15, denoise=True)(guided, (8, 1, 8, 8), seed=0).samples
        similarity.append((image_encoder(samples, torch.zeros(8)) @ prompt.T)[:, 0])
    assert (similarity[1] > similarity[0]).all()


def test_bad_input_is_refused():
    sde = VPSDE()
    score, x, t = gaussian(2).score(sde), torch.zeros(3, 2), torch.full((3,), 0.5)
    with pytest.raises(InputError, match=r"text_embedding must have shape \(1, E\) or \(B, E\), got \(5,\)"):
        EmbeddingGuidance(score, lambda x, t: x, torch.zeros(5))
    with pytest.raises(InputError, match=r"embeddings of shape \(3, 5\), as the text's, got \(3, 2\)"):
        EmbeddingGuidance(score, lambda x, t: x, torch.zeros(1, 5))(x, t)
    with pytest.raises(InputError, match="text_embedding has 2 rows, and the score is evaluated for 3"):
        EmbeddingGuidance(score, lambda x, t: x, torch.zeros(2, 2))(x, t)
    with pytest.raises(InputError, match="scale must be a number of at least 0"):
        EmbeddingGuidance(score, lambda x, t: x, torch.zeros(1, 2), scale=-1)
