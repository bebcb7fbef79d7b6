"""Decoding in tiles against decoding the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from score_diffusion.models import AutoencoderKL
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.encoded_data.latent_space import LatentSpace
from score_diffusion.run.encoded_data.tiles import decode_in_tiles
from score_diffusion.run.errors import UserError


def local_decoder(radius: int, dims: int = 2) -> nn.Module:
    """A decoder without norms or attention that sees `radius` latent positions beyond a pixel's, f = 2."""
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layers = [
        conv(2, 4, 2 * radius + 1, padding=radius),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        conv(4, 1, 1),
    ]
    return nn.Sequential(*layers).double().requires_grad_(False)


@pytest.mark.parametrize("size", [(32,), (23,), (40, 17), (33, 50), (16, 16), (18, 17, 16)])
def test_a_local_decoder_gives_the_image_of_the_whole(size: tuple[int, ...]):
    """With tiles of 16 positions a quarter of the overlap is one: a radius of 1 fits, one of 3 does not."""
    z = torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near, far = local_decoder(1, len(size)), local_decoder(3, len(size))
    torch.testing.assert_close(decode_in_tiles(near, z, 16, 2), near(z), rtol=0, atol=1e-6)
    if max(size) > 16:
        assert (decode_in_tiles(far, z, 16, 2) - far(z)).abs().max() > 1e-3


def whole_means(z: Tensor) -> Tensor:
    """A decoder that, like a norm, sees the whole tile: the mean of the tile everywhere; f = 4."""
    return z.flatten(1).mean(1)[:, None, None].expand(-1, 1, 4 * z.shape[2])


def test_between_two_tiles_the_blend_is_linear():
    """Two tiles of 8 positions overlap by 2, pixels 24 to 31; the middle four of these are blended."""
    z = torch.zeros(1, 1, 14, dtype=torch.float64)
    z[..., :6] = 4.0  # means of the tiles: 3 and 0
    image = decode_in_tiles(whole_means, torch.cat([z, z + 1]), 8, 4)
    ramp = 3 * torch.tensor([0.875, 0.625, 0.375, 0.125])
    expected = torch.cat([torch.full((26,), 3.0), ramp, torch.zeros(26)])
    torch.testing.assert_close(image[:, 0], torch.stack([expected, expected + 1]).double())


@pytest.mark.parametrize("size", [(20, 20), (27, 8)])
def test_pixels_lie_between_what_tiles_decode_and_seams_are_continuous(size: tuple[int, int]):
    """Norms and attention see the tile: the image then differs, but never by more than the tiles do."""
    torch.manual_seed(0)
    net = AutoencoderKL(1, latent_channels=2, channels=8).double().eval().requires_grad_(False)
    z, tiles = torch.randn(1, 2, *size, dtype=torch.float64), []

    def decode(place: Tensor) -> Tensor:
        tiles.append(net.decode(place))
        return tiles[-1]

    image, whole = decode_in_tiles(decode, z, 16, net.factor), net.decode(z)
    assert image.shape == whole.shape and len(tiles) > 1
    lowest, highest = min(t.min() for t in tiles), max(t.max() for t in tiles)
    assert lowest - 1e-9 <= image.min() and image.max() <= highest + 1e-9
    # a jump is at most one of the tiles', plus their difference times the slope of the weight
    jump = max(t.diff(dim=d).abs().max() for t in tiles for d in (2, 3))
    slope = 1 / (net.factor * 16 // 4 / 2)
    assert max(image.diff(dim=d).abs().max() for d in (2, 3)) <= jump + 2 * slope * (highest - lowest)


def test_a_space_decodes_in_tiles_and_refuses_tiles_that_cannot_overlap():
    autoencoder = AutoencoderKL(1, latent_channels=2, channels=8).eval().requires_grad_(False)
    scaling, z = Scaling(levels=256), torch.randn(3, 2, 12, 8)
    decoded = LatentSpace(autoencoder, scaling, tile=8).decode(z)
    by_hand = scaling.model_to_user(decode_in_tiles(autoencoder.decode, z, 8, 4))
    torch.testing.assert_close(decoded, by_hand, atol=2 / 255 + 1e-6, rtol=0)  # a grey level, by rounding
    whole = LatentSpace(autoencoder, scaling).decode(z)
    assert torch.equal(LatentSpace(autoencoder, scaling, tile=12).decode(z), whole)
    assert not torch.equal(decoded, whole)
    with pytest.raises(UserError, match=r"sampling\.tile must be 0 for none or at least 4, got 3"):
        LatentSpace(autoencoder, scaling, tile=3)


def test_the_networks_work_on_a_bounded_number_of_pixels(monkeypatch: pytest.MonkeyPatch):
    autoencoder = AutoencoderKL(1, latent_channels=2, channels=8).eval().requires_grad_(False)
    monkeypatch.setattr("score_diffusion.run.encoded_data.latent_space.PIXELS", 2048)
    seen: dict[str, set] = {"encode": set(), "decode": set()}

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        inner = getattr(autoencoder, name)
        return lambda x: (seen[name].add(tuple(x.shape)), inner(x))[1]

    for name in seen:
        monkeypatch.setattr(autoencoder, name, watch(name))
    space = LatentSpace(autoencoder, Scaling(levels=256), tile=4)
    space.decode(space.encode(torch.zeros(9, 1, 32, 32)))
    assert seen == {"encode": {(2, 1, 32, 32)}, "decode": {(8, 2, 4, 4)}}
