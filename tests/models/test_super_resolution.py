from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from score_diffusion.models import SuperResolution, TextConditioned, TextEncoder, UNet
from score_diffusion.models.conditions import drop_conditions, null_condition
from score_diffusion.models.super_resolution import LEVEL_FEATURES, augmentation_scales, level_features
from score_diffusion.samplers.guidance import null_condition as null_of

SMALL = dict(channels=8, multipliers=(1,), attention_levels=(0,), heads=2, image_channels=1)


def unet(vector: int = 0, **options: int) -> UNet:
    return UNet(1, vector_dim=LEVEL_FEATURES + vector, **SMALL, **options)


def network(net: UNet, upsampling: str = "bilinear", text: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    made: torch.nn.Module = SuperResolution(net, 2, upsampling)
    made = TextConditioned(made, TextEncoder(6, width=16, depth=1, heads=2)) if text else made
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))  # U-Nets start at 0
    return made


def inputs(**others: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, low = (torch.randn(3, 1, side, side, generator=generator) for side in (8, 4))
    return x, torch.zeros(3), {"low_resolution": low, "augmentation": torch.tensor([0.0, 0.3, 1.0]), **others}


def test_the_first_features_of_a_level_are_its_scales():
    level = torch.linspace(0, 1, 7)
    alpha, sigma = augmentation_scales(level)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(7))
    assert float(sigma[3]) == pytest.approx(math.sqrt(0.5))
    features = level_features(level)
    assert features.shape == (7, LEVEL_FEATURES)
    torch.testing.assert_close(features[:, [0, LEVEL_FEATURES // 2]], torch.stack([alpha, sigma], 1))


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "bicubic"])
def test_the_network_sees_the_enlarged_image_and_the_level(upsampling: str):
    net = network(unet(), upsampling)
    x, noise, cond = inputs()
    options = {} if upsampling == "nearest" else {"align_corners": False}
    image = F.interpolate(cond["low_resolution"], (8, 8), mode=upsampling, **options)
    expected = net.net(x, noise, {"image": image, "vector": level_features(cond["augmentation"])})
    torch.testing.assert_close(net(x, noise, cond), expected)
    without = net(x, noise, {"low_resolution": cond["low_resolution"]})
    clean = net(x, noise, cond | {"augmentation": torch.zeros(3)})
    torch.testing.assert_close(without, clean)
    assert (net(x, noise, cond) - clean).abs()[1:].amax() > 1e-3


def test_texts_classes_and_vectors_of_the_data_pass_on():
    net = network(unet(16, num_classes=3, token_dim=16), text=True)
    assert net.condition_sizes == {"label": 3, "low_resolution": 2, "augmentation": 1, "text": 6}
    x, noise, cond = inputs(label=torch.tensor([0, 1, 2]), text=torch.tensor([[1, 2], [3, 0], [4, 4]]))
    out = net(x, noise, cond)
    for kind in ("label", "text"):
        others = {key: value for key, value in cond.items() if key != kind}
        assert (net(x, noise, others) - out).abs().amax() > 1e-3
    own = network(unet(5))
    assert own.condition_sizes == {"vector": 5, "low_resolution": 2, "augmentation": 1}
    x, noise, cond = inputs(vector=torch.ones(3, 5))
    assert (own(x, noise, cond) - own(x, noise, cond | {"vector": torch.zeros(3, 5)})).abs().amax() > 1e-3


def test_the_small_image_stays_where_other_conditions_are_dropped():
    _, _, cond = inputs(label=torch.tensor([0, 1, 2]))
    dropped = drop_conditions(cond, torch.tensor([True, False, True]))
    assert dropped["label"].tolist() == [-1, 1, -1]
    null = null_of(cond)
    assert null["label"].tolist() == [-1, -1, -1]
    for kind in ("low_resolution", "augmentation"):
        assert torch.equal(dropped[kind], cond[kind]) and torch.equal(null[kind], cond[kind])
    spelled = null_condition({"low_resolution": 2, "augmentation": 1}, (3, 8, 12))
    assert spelled["low_resolution"].shape == (1, 3, 4, 6) and spelled["augmentation"].shape == (1,)


def test_every_weight_has_a_gradient():
    net = network(unet(16, num_classes=3), text=True)
    x, noise, cond = inputs()
    net(x, noise, {"low_resolution": cond["low_resolution"]}).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_wrong_conditions_and_arguments_are_refused():
    net, (x, noise, cond) = network(unet()), inputs()
    with pytest.raises(ValueError, match="cond must have a low_resolution image"):
        net(x, noise, {"augmentation": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"low_resolution of cond must have shape \(3, 1, 4, 4\), got"):
        net(x, noise, {"low_resolution": x})
    with pytest.raises(ValueError, match=r"augmentation of cond must have shape \(3,\), got"):
        net(x, noise, cond | {"augmentation": torch.zeros(1)})
    with pytest.raises(ValueError, match="factor must be at least 2 and upsampling one of"):
        SuperResolution(unet(), 1)
    with pytest.raises(ValueError, match="the network must take an image, and a vector of at least 8"):
        SuperResolution(UNet(1, **SMALL), 2)
