"""Networks `net(x, noise, cond=None) -> like x`: x is (B, *shape); noise, by default log(σ/α), is (B,)."""

from torch import nn

from score_diffusion.models.autoencoder import Autoencoder, AutoencoderKL, AutoencoderVQ
from score_diffusion.models.classifier import Classifier
from score_diffusion.models.clip import Clip, caption_bytes
from score_diffusion.models.dequantizer import Dequantizer
from score_diffusion.models.discriminator import PatchDiscriminator
from score_diffusion.models.dit import DiT
from score_diffusion.models.embeddings import FourierEmbedding, SinusoidalEmbedding
from score_diffusion.models.mlp import MLP
from score_diffusion.models.presets import PRESETS
from score_diffusion.models.prior import Prior
from score_diffusion.models.refinenet import NCSN, NCSNv2
from score_diffusion.models.super_resolution import SuperResolution
from score_diffusion.models.text_encoder import TextConditioned, TextEncoder
from score_diffusion.models.unet import UNet

IMAGE_NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "ncsn": NCSN, "ncsnv2": NCSNv2, "dit": DiT}
"""Networks for x of shape (B, C, *size), by their names in a configuration."""
POINT_NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "prior": Prior}
"""Networks for x of shape (B, D), by their names in a configuration."""
ENCODERS: dict[str, type[nn.Module]] = {
    "classifier": Classifier,
    "clip": Clip,
    "dequantizer": Dequantizer,
}
"""Networks of images, noisy ones for most, that serve another model, by their names in a configuration."""
AUTOENCODERS: dict[str, type[Autoencoder]] = {
    "autoencoder_kl": AutoencoderKL,
    "autoencoder_vq": AutoencoderVQ,
}
"""Networks that compress images to latents, by their names in a configuration."""

__all__ = [
    "AUTOENCODERS",
    "Autoencoder",
    "AutoencoderKL",
    "AutoencoderVQ",
    "Classifier",
    "Clip",
    "Dequantizer",
    "ENCODERS",
    "IMAGE_NETWORKS",
    "MLP",
    "NCSN",
    "PatchDiscriminator",
    "POINT_NETWORKS",
    "PRESETS",
    "Prior",
    "DiT",
    "FourierEmbedding",
    "NCSNv2",
    "SinusoidalEmbedding",
    "SuperResolution",
    "TextConditioned",
    "TextEncoder",
    "UNet",
    "caption_bytes",
]

if __name__ == "models":  # in a checkout: the names above, no second copy of the files
    __path__ = []
