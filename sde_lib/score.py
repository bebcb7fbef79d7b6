"""From a network's output to a score function.

With x_t = α x_0 + σ ε, the score of the perturbation kernel is -ε/σ, and a network may predict any of the
quantities that determine it. The network F receives an input of about unit variance and a noise input,

    F(c_in x_t, c_noise),    c_in = 1/√(α² σ_data² + σ²),    σ_data = 1 except for edm,

which leaves x_t as it is for VP and rescales it for VE, where it grows to σ_max. Its output gives the noise
estimate by two numbers, and the score:

    ε̂ = p x_t + q F,    score = -ε̂/σ,    and in training F is compared with (ε - p x_t)/q.

With cos φ = c_in α and sin φ = c_in σ:

    prediction   F estimates                        p             q               c_noise
    noise        ε                                  0             1               log(σ/α)
    x0           x_0                                1/σ           -α/σ            log(σ/α)
    v            cos φ ε - sin φ x_0                c_in sin φ    cos φ           log(σ/α)
    score        ∇ log p(x_t | x_0) = -ε/σ          0             -σ              log(σ/α)
    edm          (x_0 - c_skip x_t/α)/c_out         c_in sin φ    -σ_data cos φ   ¼ log(σ/α)
    vp           ε                                  0             1               (N - 1) t
    ve           -ε, from x_t itself (c_in = 1)     0             -1              log(σ/2α)
    iddpm        ε                                  0             1               nearest step k

The last four are the preconditionings of Karras et al. (2022), Table 1, written for every SDE: their x is
x_t/α, their σ is σ/α, and D(x; σ) = c_skip x + c_out F(c_in x; c_noise) has ε̂ = (x - D)/σ. For σ_data = 1,
edm is v with the opposite sign of F. The networks of vp, iddpm and ve are those of score_sde_pytorch and
DDPM: the noise input of `vp` and `iddpm` is the position on the SDE's chain, that of `ve` the logarithm of σ
for data in [0, 1], which is half of σ for data in [-1, 1].

Three options: `scale_input=False` gives a network x_t itself (NCSN's reads the noise level off it);
`learned_variance` is for a network with twice the channels, whose second half F_v says where the log variance
of DDPM's reverse step lies between its bounds, v = (F_v + 1)/2 (Improved DDPM); `noise_input` replaces the
c_noise of the prediction by any of `NOISE_INPUTS`.

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

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from score_diffusion.sde_lib.errors import InputError, check_name
from score_diffusion.sde_lib.score_wrapper import Condition
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, each_time, expand

Number = float | Tensor


@dataclass(frozen=True)
class Parametrization:
    """A row of the table: what a network's output F says of the noise, ε̂ = p x_t + q F."""

    coefficients: Callable[[Tensor, Tensor, Tensor, float], tuple[Number, Number]]
    """(p, q) of (α, σ, c_in, σ_data); of σ ε̂ where the network predicts the data."""
    predicts_data: bool = False
    """Whether F is x̂_0 itself. Then ε̂ is a difference divided by σ, which keeps its digits as σ -> 0."""
    noise_input: str = "log_noise_level"
    """The network's noise input, a name in `NOISE_INPUTS`."""
    scale_input: bool = True
    """Whether the network sees c_in x_t; else x_t itself."""
    uses_sigma_data: bool = False
    """Whether σ_data is an argument; else it is 1."""

    def noise(
        self, F: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float
    ) -> Tensor:
        """The noise estimate ε̂ of an output F."""
        p, q = self.coefficients(alpha, sigma, c_in, sigma_data)
        value = q * F if isinstance(p, float) and p == 0 else p * x_t + q * F
        return value / sigma if self.predicts_data else value

    def target(
        self, noise: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, c_in: Tensor, sigma_data: float
    ) -> Tensor:
        """The output F whose noise estimate is ε: (ε - p x_t)/q."""
        p, q = self.coefficients(alpha, sigma, c_in, sigma_data)
        return ((sigma * noise if self.predicts_data else noise) - p * x_t) / q


# fmt: off
PARAMETRIZATIONS = {  # with a = α, s = σ, c = c_in, d = σ_data
    #                                                  p               q
    "noise": Parametrization(lambda a, s, c, d: (           0.0,        1.0)),
    "x0":    Parametrization(lambda a, s, c, d: (           1.0,         -a), predicts_data=True),
    "v":     Parametrization(lambda a, s, c, d: (c.square() * s,      c * a)),
    "score": Parametrization(lambda a, s, c, d: (           0.0,         -s)),
    "edm":   Parametrization(lambda a, s, c, d: (c.square() * s, -d * c * a),
                             noise_input="quarter_log_noise_level", uses_sigma_data=True),
    "vp":    Parametrization(lambda a, s, c, d: (           0.0,        1.0), noise_input="position"),
    "ve":    Parametrization(lambda a, s, c, d: (           0.0,       -1.0),
                             noise_input="log_half_noise_level", scale_input=False),
    "iddpm": Parametrization(lambda a, s, c, d: (           0.0,        1.0), noise_input="step"),
}
# fmt: on
PREDICTIONS = tuple(PARAMETRIZATIONS)

NOISE_INPUTS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "log_noise_level": lambda sde, t: sde.log_noise_level(t),
    "quarter_log_noise_level": lambda sde, t: sde.log_noise_level(t) / 4,
    "log_half_noise_level": lambda sde, t: sde.log_noise_level(t) - math.log(2),
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
    return denoised_from(sde, score(x, t), x, t)


def denoised_from(sde: SDE, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The same of the score at x, shape (B, *shape), where it is known already."""
    return (x + expand(sde.sigma(t).square(), x) * score) / expand(sde.alpha(t), x)


def score_change(sde: SDE, change: Tensor, t: Tensor) -> Tensor:
    """What must be added to the score for x̂_0 to change by this much: α/σ² · change, shape (B, *shape)."""
    return expand(sde.alpha(t) / sde.sigma(t).square(), change) * change


class FunctionNetwork(nn.Module):
    """A network without parameters, from a function of (x, noise) or (x, noise, cond)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:  # noqa: ANN401
        return self.function(*arguments)


class ScoreModel(nn.Module):
    """A score function made of a network: `score_model(x, t) -> ∇ log p_t(x)`.

    Args:
        net: Any network `net(x, noise)` or `net(x, noise, cond)`: x of shape (B, *shape) with about unit
            variance, noise of shape (B,) with values c_noise, by default log(σ/α). It returns a tensor like
            x, or an object whose attribute `sample` is one (as diffusers' do), and runs in the dtype of its
            own parameters.
        sde: The SDE that perturbs the data.
        prediction: What the network's output means, a row of the table above.
        learned_variance: Whether the network returns twice the channels (dimension 1), F and then F_v.
        scale_input: Whether the network sees c_in x_t; False for x_t itself, as with "ve" in any case.
        noise_input: What noise input the network takes, a name in `NOISE_INPUTS`; None for the prediction's.
        sigma_data: Standard deviation of the data, for the prediction "edm" only; 0.5 is the paper's for
            images in [-1, 1].

    Raises:
        InputError: If the prediction or the noise input is not one of these, sigma_data is not positive, or
            the network cannot be called in either way.
    """

    any_dtype = True

    def __init__(
        self,
        net: Callable[..., Any],
        sde: SDE,
        prediction: str = "noise",
        learned_variance: bool = False,
        scale_input: bool = True,
        noise_input: str | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        check_name("prediction", prediction, PREDICTIONS)
        row = PARAMETRIZATIONS[prediction]
        noise_input = row.noise_input if noise_input is None else noise_input
        check_name("noise_input", noise_input, NOISE_INPUTS)
        if not sigma_data > 0:
            raise InputError(f"sigma_data must be positive, got {sigma_data}")
        self._accepts_condition, self._needs_condition = _condition_of(net)
        self.net: nn.Module = net if isinstance(net, nn.Module) else FunctionNetwork(net)
        self.sde = sde
        self.prediction = prediction
        self.learned_variance = learned_variance
        self.scale_input = scale_input and row.scale_input
        self.noise_input = noise_input
        self.sigma_data = sigma_data if row.uses_sigma_data else 1.0

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters; samplers draw their noise there."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def _coefficients(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """α, σ and c_in, expanded to multiply x."""
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        return alpha, sigma, ((self.sigma_data * alpha).square() + sigma.square()).rsqrt()

    def _output(self, x: Tensor, c_in: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """(output F, variance fraction v or None), both like x."""
        dtype = next((p.dtype for p in self.parameters()), x.dtype)
        net_input = (c_in * x if self.scale_input else x).to(dtype)
        # Not rounded to a half-precision network's dtype, in which neighbouring steps would be one number.
        noise = NOISE_INPUTS[self.noise_input](self.sde, t)
        noise = noise.to(x.device, torch.promote_types(dtype, torch.float32))
        out = self._call_net(net_input, noise, cond).to(x.dtype)
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

    def _call_net(self, net_input: Tensor, noise: Tensor, cond: Condition) -> Tensor:
        if cond is not None and not self._accepts_condition:
            raise InputError(
                f"{_name(self.net)} takes no condition, it is called as net(x, noise): call score(x, t)"
            )
        with_condition = cond is not None or self._needs_condition
        out = self.net(net_input, noise, cond) if with_condition else self.net(net_input, noise)
        out = out if isinstance(out, Tensor) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise InputError(
                "the network must return a tensor like its input, or an object with one as its attribute "
                f"sample, {_name(self.net)} returned a {type(out).__name__}: wrap it in a function that does"
            )
        return out

    def _estimates(
        self, x: Tensor, t: Tensor | float, cond: Condition
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Output F, noise estimate ε̂, α and σ expanded, variance fraction v or None."""
        if x.is_complex():
            raise InputError("x must be real for a ScoreModel: view complex numbers by torch.view_as_real")
        t = each_time(t, x)
        alpha, sigma, c_in = self._coefficients(x, t)
        F, fraction = self._output(x, c_in, t, cond)
        noise = PARAMETRIZATIONS[self.prediction].noise(F, x, alpha, sigma, c_in, self.sigma_data)
        return F, noise, alpha, sigma, fraction

    def forward(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The score ∇ log p_t(x).

        Args:
            x: Noisy samples, shape (B, *shape).
            t: Times in (0, T], shape (B,); one for all samples may have shape () or (1,).
            cond: Whatever the network takes as its condition.

        Returns:
            The score in the dtype of x, shape (B, *shape).

        Raises:
            InputError: If t has another shape, x is not floating point, the network takes no condition, or it
                does not return a tensor of the right shape.
        """
        _, noise, _, sigma, _ = self._estimates(x, t, cond)
        return -noise / sigma

    def score_and_fraction(self, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, Tensor]:
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
        _, noise, _, sigma, fraction = self._estimates(x, t, cond)
        assert fraction is not None  # as learned_variance says
        return -noise / sigma, fraction

    def denoise(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The denoised samples E[x_0 | x_t = x], shape (B, *shape); Tweedie's formula on the network's
        output.
        """
        F, noise, alpha, sigma, _ = self._estimates(x, t, cond)
        if PARAMETRIZATIONS[self.prediction].predicts_data:
            return F  # exact as σ -> 0, where x - σ ε̂ divides and multiplies by σ
        return (x - sigma * noise) / alpha

    def target(self, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The output that training asks of the network at x_t = α x_0 + σ ε, whose noise estimate is ε.

        Args:
            x_t: Noisy samples, shape (B, *shape).
            noise: Their noise ε, shape (B, *shape).
            t: Times, shape (B,).

        Returns:
            The target of F, shape (B, *shape).
        """
        coefficients = self._coefficients(x_t, each_time(t, x_t))
        return PARAMETRIZATIONS[self.prediction].target(noise, x_t, *coefficients, self.sigma_data)


def _name(net: Callable[..., Any]) -> str:
    net = net.function if isinstance(net, FunctionNetwork) else net
    return getattr(net, "__name__", type(net).__name__)


def _condition_of(net: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a network can be called with a condition as its third argument, and whether it must be.

    Raises:
        InputError: If it can be called neither with two arguments nor with three.
    """
    signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)

    def takes(arguments: int) -> bool:
        try:
            signature.bind(*[None] * arguments)
        except TypeError:
            return False
        return True

    if not (takes(2) or takes(3)):
        raise InputError(
            f"a network is called as net(x, noise) or net(x, noise, cond); {_name(net)} takes {signature}"
        )
    return takes(3), not takes(2)
