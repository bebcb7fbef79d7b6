"""A contrastive pair of encoders: captions as bytes or words, unit vectors, the temperature."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.models import Clip, caption_bytes


def tiny() -> Clip:
    torch.manual_seed(0)
    return Clip(1, 8, (1,), 1, (), 2, features=6, text_width=8, text_layers=1).eval()


def test_captions_are_bytes_with_zeros_after_the_end():
    assert caption_bytes(["ab", "é"]).tolist() == [[97, 98], [195, 169]]
    assert caption_bytes(["a", "abc"]).tolist() == [[97, 0, 0], [97, 98, 99]]
    for wrong in ("", "x" * 129):
        with pytest.raises(ValueError, match="a caption must have 1 to 128 bytes, got"):
            caption_bytes([wrong])


def test_a_caption_is_read_to_its_end_only():
    net = tiny()
    together = net.encode_text(caption_bytes(["seven", "a handwritten seven"]))
    alone = net.encode_text(caption_bytes(["seven"]))
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_logits_are_scaled_cosines():
    net, x, noise = tiny(), torch.randn(3, 1, 8, 8), torch.zeros(3)
    captions = caption_bytes(["one", "two"])
    images, texts = net(x, noise), net.encode_text(captions)
    torch.testing.assert_close(net(x, noise, captions), images @ texts.T)
    torch.testing.assert_close(images.norm(dim=1), torch.full((3,), 1 / 0.07))
    with torch.no_grad():
        net.log_scale.fill_(10.0)
    net.bound_scale()
    torch.testing.assert_close(net(x, noise).norm(dim=1), torch.full((3,), 100.0))
    net(x, noise, captions).sum().backward()
    assert net.log_scale.grad != 0  # so that training can lower it again


def test_captions_may_be_words():
    net = Clip(1, 8, (1,), 1, (), 2, features=6, text_width=8, text_layers=1, encoder_words=5).eval()
    padded = net.encode_text(torch.tensor([[2, 4, 0, 0], [1, 1, 1, 1]]))
    torch.testing.assert_close(padded[:1], net.encode_text(torch.tensor([[2, 4]])))
    assert net.text.embedding.num_embeddings == 5
    with pytest.raises(ValueError, match="encoder_words must not be negative, got -1"):
        Clip(1, 8, encoder_words=-1)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="text_width must be divisible by 4, got 6"):
        Clip(1, 8, text_width=6)
