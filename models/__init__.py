"""Networks `net(x, noise, cond=None) -> like x`: x is (B, *shape); noise, by default log(σ/α), is (B,)."""

from score_diffusion.models.dit import DiT
from score_diffusion.models.embeddings import FourierEmbedding, SinusoidalEmbedding
from score_diffusion.models.mlp import MLP
from score_diffusion.models.presets import PRESETS
from score_diffusion.models.refinenet import NCSN, NCSNv2
from score_diffusion.models.unet import UNet

__all__ = ["MLP", "NCSN", "PRESETS", "DiT", "FourierEmbedding", "NCSNv2", "SinusoidalEmbedding", "UNet"]

if __name__ == "models":  # in a checkout: the names above, no second copy of the files
    __path__ = []
