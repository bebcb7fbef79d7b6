"""From a network's output to a score function.

With x_t = α x_0 + σ ε, the score of the perturbation kernel is -ε/σ, and a network may predict any of the
quantities that determine it. The network F sees an input of unit variance (for data of unit variance) and the
logarithmic noise level,

    F(c_in x_t, log(σ/α)),    c_in = 1/√(α² + σ²),

which leaves the input as it is for VP and tames it for VE, where x_t grows to σ_max. With cos φ = c_in α, sin
φ = c_in σ:

    prediction   the network's target                     noise estimate ε̂
    noise        ε                                        F
    x0           x_0                                      (x_t - α F)/σ
    v            v = cos φ ε - sin φ x_0                  sin φ (c_in x_t) + cos φ F
    score        ∇ log p_t(x_t)                           -σ F

Two options: a network that tells the noise level by its input sees x_t itself (NCSN's); and one with twice
    the channels predicts,
beside F, where the log variance of DDPM's reverse step lies between its bounds, v = (F_v + 1)/2 (Improved
DDPM).

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: ε.
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022),
        https://arxiv.org/abs/2202.00512: Appendix D, the angle φ and v.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672: eq. 15, learned variance.
    Tweedie's Formula and Selection Bias (Efron, 2011): E[x_0 | x_t] from the score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_lib.sde import SDE, ScoreFunction, expand

PREDICTIONS = ("noise", "x0", "v", "score")


def tweedie(sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor) -> Tensor:
    """The denoiser E[x_0 | x_t = x] = (x + σ² score(x, t))/α (Efron, 2011; Song et al., 2021, Appendix G).

    Args:
        sde: The SDE of the path.
        score: The score function.
        x: Noisy samples, shape (B, *shape).
        t: Times, shape (B,).

    Returns:
        The posterior mean, shape (B, *shape).
    """
    return (x + expand(sde.sigma(t).square(), x) * score(x, t)) / expand(sde.alpha(t), x)


class ScoreModel(nn.Module):
    """A score function made of a network: `score_model(x, t) -> ∇ log p_t(x)`.

    Args:
        net: Any module `net(x, noise, cond=None)`: x of shape (B, *shape) with unit variance, noise of shape
            (B,) with values log(σ/α), the result like x. It runs in the dtype of its own parameters.
        sde: The SDE that perturbs the data.
        prediction: What the network's output means: "noise", "x0", "v" or "score".
        learned_variance: Whether the network returns twice the channels (dimension 1), F and then F_v.
        scale_input: Whether the network sees c_in x_t; False for x_t itself.

    Raises:
        ValueError: If the prediction is not one of these.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        prediction: str = "noise",
        learned_variance: bool = False,
        scale_input: bool = True,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        self.net = net
        self.sde = sde
        self.prediction = prediction
        self.learned_variance = learned_variance
        self.scale_input = scale_input

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters; samplers draw their noise there."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def _output(
        self, x: Tensor, c_in: Tensor, t: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(output F, variance fraction v or None), both like x."""
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        net_input = (c_in * x if self.scale_input else x).to(dtype)
        out = self.net(net_input, self.sde.noise_level(t).to(x.device, dtype), cond).to(x.dtype)
        expected = (len(x), (1 + self.learned_variance) * x.shape[1], *x.shape[2:])
        if out.shape != expected:
            what = "twice the channels" if self.learned_variance else "the shape"
            raise ValueError(
                f"the network must return {what} of its input, {expected}, it returned {tuple(out.shape)}"
            )
        if not self.learned_variance:
            return out, None
        F, F_v = out.chunk(2, dim=1)
        return F, (F_v + 1) / 2

    def _estimates(
        self, x: Tensor, t: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(output F, noise estimate ε̂, σ expanded, variance fraction v or None), all ready to combine with
        x.
        """
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        c_in = (alpha.square() + sigma.square()).rsqrt()
        F, fraction = self._output(x, c_in, t, cond)
        if self.prediction == "noise":
            noise = F
        elif self.prediction == "x0":
            noise = (x - alpha * F) / sigma
        elif self.prediction == "v":
            noise = c_in.square() * sigma * x + c_in * alpha * F
        else:
            noise = -sigma * F
        return F, noise, sigma, fraction

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The score ∇ log p_t(x).

        Args:
            x: Noisy samples, shape (B, *shape).
            t: Times in (0, T], shape (B,).
            cond: Whatever the network takes as its condition.

        Returns:
            The score in the dtype of x, shape (B, *shape).

        Raises:
            ValueError: If t does not have shape (B,), x is not floating point, or the network changes the
                shape.
        """
        _, noise, sigma, _ = self._estimates(x, t, cond)
        return -noise / sigma

    def score_and_fraction(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The score, and the fraction v of a learned variance exp(v log β + (1 - v) log β̃), each of shape
        (B, *shape).

        Raises:
            ValueError: As for a call, or if the model has no learned variance.
        """
        if not self.learned_variance:
            raise ValueError(
                "this ScoreModel has no learned variance: build it with learned_variance=True, "
                "or use variance='small' or 'large'"
            )
        _, noise, sigma, fraction = self._estimates(x, t, cond)
        return -noise / sigma, fraction

    def denoise(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The denoised samples E[x_0 | x_t = x], shape (B, *shape); Tweedie's formula on the network's
        output.
        """
        F, noise, sigma, _ = self._estimates(x, t, cond)
        if self.prediction == "x0":
            return F  # exact at σ → 0, where x - σ ε̂ divides and multiplies by σ
        return (x - sigma * noise) / expand(self.sde.alpha(t), x)
