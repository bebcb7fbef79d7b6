"""Networks `net(x, noise, cond=None) -> like x`, where x is (B, *shape) and noise = log(σ/α) is (B,)."""

from models.dit import DiT
from models.embeddings import FourierEmbedding, SinusoidalEmbedding
from models.mlp import MLP
from models.refinenet import NCSN, NCSNv2
from models.unet import UNet

__all__ = ["MLP", "NCSN", "DiT", "FourierEmbedding", "NCSNv2", "SinusoidalEmbedding", "UNet"]
