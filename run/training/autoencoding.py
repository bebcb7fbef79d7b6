"""The objective of autoencoders: reconstruction, perceptual distance, penalty of the latents, and a patch
discriminator that starts late.

    mean |x - x̂| + w_p d(x, x̂) + w_r penalty + w_a λ · (-D(x̂))          for the autoencoder
    ½ (max(0, 1 - D(x)) + max(0, 1 + D(sg[x̂])))                          for the discriminator D

d compares the features of a classifier of the same data, λ balances the gradients of the two parts at the
decoder's last layer, and sg stops the gradient. Both are minimized in the same step: D's weights are
constants in the autoencoder's part, and x̂ is one in the discriminator's. Adam treats every number by itself,
so that one Adam over the weights of both is two of equal settings; D is saved with every checkpoint.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
        https://arxiv.org/abs/2112.10752: Section 3.1, Appendix G.
    Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021),
        https://arxiv.org/abs/2012.09841: eqs. 4 to 7, the weight λ.
    The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
        https://arxiv.org/abs/1801.03924: eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from score_diffusion.models import Autoencoder, AutoencoderVQ, PatchDiscriminator
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.codebook import Restarts
from score_diffusion.run.training.objectives import Objective

FIGURES = {
    "psnr": "PSNR of reconstructions, dB",
    "kl": "KL of the latents, nats",
    "codes_used": "share of the codes that are used",
}
"""The figures of held-out samples, in words."""
LAST_LAYER = "decoder.conv_out.weight"
LARGEST_LAMBDA = 1e4
SMALLEST_GRADIENT = 1e-4  # δ in eq. 7


class FeatureDistance(nn.Module):
    """The distance of images in the features of a network, with unit weights (Zhang et al., 2018, eq. 1).

    Args:
        net: The network, which does not learn; `net(x)` runs it on images (B, C, *size).
        layers: Those of its modules whose outputs (B, C', *size') are the features.
    """

    def __init__(self, net: nn.Module, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).eval()
        self._found: list[Tensor] = []
        for layer in layers:
            layer.register_forward_hook(lambda module, inputs, output: self._found.append(output))

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stays in evaluation mode."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """The features of each layer, of unit length at each position."""
        self._found.clear()
        self.net(x)
        found = [F.normalize(h.float(), dim=1, eps=1e-6) for h in self._found]
        self._found.clear()
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared distances, summed over channels, averaged over positions, summed over layers; (B,)."""
        pairs = zip(self.features(x), self.features(y), strict=True)
        return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).sum(0)


@dataclass(frozen=True)
class Adversary:
    """A discriminator, and when and how much it counts."""

    net: PatchDiscriminator
    weight: float
    """w_a."""
    start: int
    """The training step from which it is trained and counts."""


class Autoencoding(Objective[Autoencoder]):
    """Trains an autoencoder; its own parameters are the discriminator's.

    Args:
        penalty_weight: w_r.
        perceptual: d; None for none.
        perceptual_weight: w_p.
        adversary: The discriminator; None for none.
        codes: Codes of the model's codebook; 0 for none.
    """

    uses_times = False

    def __init__(
        self,
        penalty_weight: float,
        perceptual: FeatureDistance | None = None,
        perceptual_weight: float = 1.0,
        adversary: Adversary | None = None,
        codes: int = 0,
    ) -> None:
        super().__init__()
        self.penalty_weight, self.perceptual_weight = penalty_weight, perceptual_weight
        self.perceptual = perceptual
        self.discriminator = None if adversary is None else adversary.net
        self._adversary = adversary
        self.restarts = Restarts(codes) if codes else None
        self._last: tuple[Tensor, Tensor] | None = None  # latents and codes of the last batch

    def forward(self, model: Autoencoder, batch: Batch) -> Tensor:
        """The loss of each sample; of held-out samples, without gradients, that without discriminator."""
        decoded, penalty, latents, codes = model(batch.x_0)
        if torch.is_grad_enabled() and latents is not None and codes is not None:
            self._last = latents, codes
        decoded = decoded.float()
        losses = (decoded - batch.x_0).abs().flatten(1).mean(1)
        if self.perceptual is not None:
            losses = losses + self.perceptual_weight * self.perceptual(decoded, batch.x_0)
        total = losses + self.penalty_weight * penalty
        if self._adversary is None or self.step < self._adversary.start or not torch.is_grad_enabled():
            return total
        return total + self._adversarial(self._adversary, losses, decoded, batch.x_0, last_layer(model))

    def _adversarial(
        self, adversary: Adversary, losses: Tensor, decoded: Tensor, x: Tensor, last: Tensor
    ) -> Tensor:
        """What the discriminator adds, for the autoencoder and for itself; shape (B,)."""
        constant = {name: weight.detach() for name, weight in adversary.net.named_parameters()}
        generated = -_mean(torch.func.functional_call(adversary.net, constant, (decoded,)))
        balance = adaptive_weight(losses.mean(), generated.mean(), last)
        on_real, on_decoded = adversary.net(x), adversary.net(decoded.detach())
        hinge = _mean(F.relu(1 - on_real)) + _mean(F.relu(1 + on_decoded))
        return adversary.weight * balance * generated + 0.5 * hinge

    def after_step(self, models: Sequence[Autoencoder], group: ProcessGroup | None) -> None:
        """Restarts codes that are not used."""
        if self.restarts is not None and self._last is not None:
            codebooks = [model.codebook.weight for model in models if isinstance(model, AutoencoderVQ)]
            self.restarts.update(codebooks, *self._last, group)

    @torch.no_grad()
    def figures(self, model: Autoencoder, batches: Iterable[Batch]) -> dict[str, float]:
        """PSNR of the reconstructions in dB, KL in nats, and of a codebook the share of codes in use."""
        errors, penalties, used = [], [], set[int]()
        for batch in batches:
            decoded, penalty, _, codes = model(batch.x_0)
            errors.append((decoded.float() - batch.x_0).double().square().flatten(1).mean(1))
            penalties.append(penalty.double() * batch.x_0[0].numel())
            if codes is not None:
                used.update(codes.unique().tolist())
        psnr = 10 * (4 / torch.cat(errors).clamp_min(1e-12)).log10()  # pixels reach from -1 to 1
        found = {"psnr": psnr.mean().item()}
        if isinstance(model, AutoencoderVQ):
            return found | {"codes_used": len(used) / model.codebook.num_embeddings}
        return found | {"kl": torch.cat(penalties).mean().item()}


def adaptive_weight(reconstruction: Tensor, generated: Tensor, last: Tensor) -> Tensor:
    """λ = ‖∇ L_rec‖ / (‖∇ L_GAN‖ + δ) at the last layer of the decoder (Esser et al., 2021, eq. 7)."""
    of_rec, of_gan = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, generated)
    )
    return (of_rec / (of_gan + SMALLEST_GRADIENT)).clamp(0, LARGEST_LAMBDA).detach()


def last_layer(model: nn.Module) -> Tensor:
    """The weights of the decoder's last layer, of an autoencoder or of what runs it in training."""
    return next(weight for name, weight in model.named_parameters() if name.endswith(LAST_LAYER))


def _mean(patches: Tensor) -> Tensor:
    """The mean over the patches of each sample, (B,)."""
    return patches.float().flatten(1).mean(1)
