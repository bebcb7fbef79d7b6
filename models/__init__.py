"""Networks `net(x, noise, cond=None) -> like x`: x is (B, *shape), noise, by default log(σ/α), is (B,)."""

from models.dit import DiT
from models.embeddings import FourierEmbedding, SinusoidalEmbedding
from models.mlp import MLP
from models.presets import PRESETS
from models.refinenet import NCSN, NCSNv2
from models.unet import UNet

__all__ = ["MLP", "NCSN", "PRESETS", "DiT", "FourierEmbedding", "NCSNv2", "SinusoidalEmbedding", "UNet"]
