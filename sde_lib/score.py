"""From a network's output to a score function.

With x_t = α x_0 + σ ε, the score of the perturbation kernel is -ε/σ, and a network may predict any of the
quantities that determine it. The network F sees an input of about unit variance and the noise level,

    F(c_in x_t, c_noise),    c_in = 1/√(α² σ_data² + σ²),    σ_data = 1 except for edm,

which leaves the input as it is for VP and tames it for VE, where x_t grows to σ_max. With cos φ = c_in α, sin
φ = c_in σ:

    prediction   the network's target              noise estimate ε̂                         c_noise
    noise        ε                                 F                                         log(σ/α)
    x0           x_0                               (x_t - α F)/σ                             log(σ/α)
    v            v = cos φ ε - sin φ x_0           sin φ (c_in x_t) + cos φ F                log(σ/α)
    score        ∇ log p_t(x_t)                    -σ F                                      log(σ/α)
    edm          (x_0 - c_skip x_t/α)/c_out        sin φ (c_in x_t) - σ_data cos φ F         ¼ log(σ/α)
    vp           ε                                 F                                         (N - 1) t
    ve           -ε, told x_t itself (c_in = 1)    -F                                        log(σ/2α)
    iddpm        ε                                 F                                         nearest step k

The last four are the preconditionings of Karras et al. (2022), Table 1, written for every SDE: their x is
x_t/α, their σ is σ/α, and D(x; σ) = c_skip x + c_out F(c_in x; c_noise) has ε̂ = (x - D)/σ. For σ_data = 1,
edm is v with the sign of F turned. The networks of vp, iddpm and ve are those of score_sde_pytorch and DDPM:
`vp` and `iddpm` are told the position on the SDE's chain, `ve` the logarithm of σ for data in [0, 1], half of
that for data in [-1, 1].

Three options: a network that tells the noise level by its input sees x_t itself (NCSN's); one with twice the
channels predicts, beside F, where the log variance of DDPM's reverse step lies between its bounds, v =
(F_v + 1)/2 (Improved DDPM); and `noise_input` tells any network any c_noise of `NOISE_INPUTS`.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: ε.
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022),
        https://arxiv.org/abs/2202.00512: Appendix D, the angle φ and v.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672: eq. 15, learned variance.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Table 1 and Appendix C.
    Tweedie's Formula and Selection Bias (Efron, 2011): E[x_0 | x_t] from the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, expand


@dataclass(frozen=True)
class Parametrization:
    """A row of the table."""

    noise: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
    """The noise estimate ε̂ of (F, x_t, α, σ, c_in, σ_data)."""
    noise_input: str = "log_level"
    """What the network is told of the noise, a name in `NOISE_INPUTS`."""
    scale_input: bool = True
    """Whether the network sees c_in x_t; else x_t itself."""
    uses_sigma_data: bool = False
    """Whether σ_data is an argument; else it is 1."""


def _noise(F: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float) -> Tensor:
    return F


def _minus_noise(
    F: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float
) -> Tensor:
    return -F


def _x0(F: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float) -> Tensor:
    return (x - alpha * F) / sigma


def _v(F: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float) -> Tensor:
    return c_in.square() * sigma * x + c_in * alpha * F


def _score(F: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float) -> Tensor:
    return -sigma * F


def _edm(F: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float) -> Tensor:
    return c_in.square() * sigma * x - sigma_data * c_in * alpha * F


PARAMETRIZATIONS = {
    "noise": Parametrization(_noise),
    "x0": Parametrization(_x0),
    "v": Parametrization(_v),
    "score": Parametrization(_score),
    "edm": Parametrization(_edm, noise_input="quarter_log_level", uses_sigma_data=True),
    "vp": Parametrization(_noise, noise_input="position"),
    "ve": Parametrization(_minus_noise, noise_input="log_half_level", scale_input=False),
    "iddpm": Parametrization(_noise, noise_input="step"),
}
PREDICTIONS = tuple(PARAMETRIZATIONS)

NOISE_INPUTS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "log_level": lambda sde, t: sde.noise_level(t),
    "quarter_log_level": lambda sde, t: sde.noise_level(t) / 4,
    "log_half_level": lambda sde, t: sde.noise_level(t) - math.log(2),
    "position": lambda sde, t: sde.chain_position(t),
    "step": lambda sde, t: sde.chain_position(t).round(),
    "reversed_step": lambda sde, t: (sde.N - 1 - sde.chain_position(t)).round(),  # NCSN's, largest σ first
}


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
        net: Any module `net(x, noise, cond=None)`: x of shape (B, *shape) with about unit variance, noise of
            shape (B,) with values c_noise, by default log(σ/α), the result like x. It runs in the dtype of
            its own parameters.
        sde: The SDE that perturbs the data.
        prediction: What the network's output means, a row of the table above.
        learned_variance: Whether the network returns twice the channels (dimension 1), F and then F_v.
        scale_input: Whether the network sees c_in x_t; False for x_t itself, as with "ve" in any case.
        noise_input: What the network is told of the noise, a name in `NOISE_INPUTS`; None for what the
            prediction says.
        sigma_data: Standard deviation of the data, of the prediction "edm" alone; 0.5 is the paper's for
            images in [-1, 1].

    Raises:
        InputError: If the prediction or the noise input is not one of these, or sigma_data is not positive.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        prediction: str = "noise",
        learned_variance: bool = False,
        scale_input: bool = True,
        noise_input: str | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if prediction not in PARAMETRIZATIONS:
            raise InputError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        row = PARAMETRIZATIONS[prediction]
        noise_input = row.noise_input if noise_input is None else noise_input
        if noise_input not in NOISE_INPUTS:
            raise InputError(f"noise_input must be one of {', '.join(NOISE_INPUTS)}, got {noise_input!r}")
        if not sigma_data > 0:
            raise InputError(f"sigma_data must be positive, got {sigma_data}")
        self.net = net
        self.sde = sde
        self.prediction = prediction
        self.learned_variance = learned_variance
        self.scale_input = scale_input and row.scale_input
        self.noise_input = noise_input
        self.sigma_data = sigma_data if row.uses_sigma_data else 1.0

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters; samplers draw their noise there."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def _output(
        self, x: Tensor, c_in: Tensor, t: Tensor, cond: object | None
    ) -> tuple[Tensor, Tensor | None]:
        """(output F, variance fraction v or None), both like x."""
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        net_input = (c_in * x if self.scale_input else x).to(dtype)
        # Not rounded to a half-precision network's dtype, in which neighbouring steps would be one number.
        noise = NOISE_INPUTS[self.noise_input](self.sde, t)
        noise = noise.to(x.device, torch.promote_types(dtype, torch.float32))
        out = self.net(net_input, noise, cond).to(x.dtype)
        expected = (len(x), (1 + self.learned_variance) * x.shape[1], *x.shape[2:])
        if out.shape != expected:
            what = "twice the channels" if self.learned_variance else "the shape"
            raise InputError(
                f"the network must return {what} of its input, {expected}, it returned {tuple(out.shape)}"
            )
        if not self.learned_variance:
            return out, None
        F, F_v = out.chunk(2, dim=1)
        return F, (F_v + 1) / 2

    def _estimates(
        self, x: Tensor, t: Tensor, cond: object | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(output F, noise estimate ε̂, σ expanded, variance fraction v or None), all ready to combine with
        x.
        """
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        c_in = ((self.sigma_data * alpha).square() + sigma.square()).rsqrt()
        F, fraction = self._output(x, c_in, t, cond)
        noise = PARAMETRIZATIONS[self.prediction].noise(F, x, alpha, sigma, c_in, self.sigma_data)
        return F, noise, sigma, fraction

    def forward(self, x: Tensor, t: Tensor, cond: object | None = None) -> Tensor:
        """The score ∇ log p_t(x).

        Args:
            x: Noisy samples, shape (B, *shape).
            t: Times in (0, T], shape (B,).
            cond: Whatever the network takes as its condition.

        Returns:
            The score in the dtype of x, shape (B, *shape).

        Raises:
            InputError: If t does not have shape (B,), x is not floating point, or the network changes the
                shape.
        """
        _, noise, sigma, _ = self._estimates(x, t, cond)
        return -noise / sigma

    def score_and_fraction(self, x: Tensor, t: Tensor, cond: object | None = None) -> tuple[Tensor, Tensor]:
        """The score, and the fraction v of a learned variance exp(v log β + (1 - v) log β̃), each of shape
        (B, *shape).

        Raises:
            InputError: As for a call, or if the model has no learned variance.
        """
        if not self.learned_variance:
            raise InputError(
                "this ScoreModel has no learned variance: build it with learned_variance=True, "
                "or use variance='small' or 'large'"
            )
        _, noise, sigma, fraction = self._estimates(x, t, cond)
        return -noise / sigma, fraction

    def denoise(self, x: Tensor, t: Tensor, cond: object | None = None) -> Tensor:
        """The denoised samples E[x_0 | x_t = x], shape (B, *shape); Tweedie's formula on the network's
        output.
        """
        F, noise, sigma, _ = self._estimates(x, t, cond)
        if self.prediction == "x0":
            return F  # exact at σ → 0, where x - σ ε̂ divides and multiplies by σ
        return (x - sigma * noise) / expand(self.sde.alpha(t), x)
