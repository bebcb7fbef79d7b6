"""The one table of samplers: every sampler by name, with its order, its cost and its paper.

    sampler = make_sampler("pc", sde, nfe=100, options={"snr": 0.2})

An entry holds the constructor of a sampler, a class or a function (sde, times, *, denoise, <options>), and
what does not follow from it. The default time grid and the options are those of the constructor's signature.
Most default grids have as many steps as 50 evaluations allow, the final denoising included.

The order is that of the error at the last time as steps shrink: of every sample for the deterministic
methods, of mean and covariance (the weak order) for the stochastic ones. The tests measure each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from score_diffusion.samplers.adaptive import AdaptiveSDESampler
from score_diffusion.samplers.base import Sampler
from score_diffusion.samplers.chain import AncestralSampler, DDIMSampler
from score_diffusion.samplers.exponential import (
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    eab_sde,
    eabm,
    unipc,
)
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.langevin import AnnealedLangevinSampler, ConsistentAnnealedSampler
from score_diffusion.samplers.ode import EVALUATIONS_PER_STEP, ODESampler
from score_diffusion.samplers.options import Option, constructor_options, default_grid
from score_diffusion.samplers.predictor_corrector import PCSampler
from score_diffusion.samplers.predictors import (
    NoPredictor,
    Predictor,
    ancestral,
    euler_maruyama,
    reverse_diffusion,
)
from score_diffusion.samplers.runge_kutta import (
    TABLEAUS,
    Interval,
    dpmpp_2s,
    edm,
    edm_churn,
    euler,
    heun,
    midpoint,
    restart,
    rk4,
)
from score_diffusion.sde_lib import SDE, InputError, check_name

DEFAULT = "eabm"
"""The default sampler."""
DEFAULT_STOCHASTIC = "eab_sde"
"""The default among the stochastic ones."""


@dataclass(frozen=True)
class Cost:
    """How often a sampler evaluates the score, the final denoising not included."""

    per_step: int | None
    """Evaluations per step; None for a method that chooses its own steps."""
    extra: int = 0
    """Evaluations besides those of the steps."""


@dataclass(frozen=True)
class SamplerSpec:
    """An entry of the table of samplers."""

    make: Callable[..., Sampler]
    """The constructor, (sde, times=Grid(...), *, denoise=..., <options>)."""
    _: KW_ONLY
    order: int | None
    """Order of the error in the step size; None if smaller steps are not enough for the error to vanish."""
    cost: Cost | Callable[..., Cost]
    """The cost, or a function of some of the options, by their names, to the cost."""
    stochastic: bool
    paper: str
    serves: str = "all"
    """The SDEs that it serves."""

    @cached_property
    def options(self) -> dict[str, Option]:
        """The options by name, from the constructor."""
        return constructor_options(self.make)

    @cached_property
    def default_grid(self) -> Grid:
        """The default time grid, from the constructor."""
        return default_grid(self.make)

    @property
    def grid(self) -> str:
        """The name of the default time grid."""
        return self.default_grid.name

    @property
    def nfe_per_step(self) -> int | None:
        """Evaluations per step with the default options; None for a method that chooses its own steps."""
        return self.cost_with({}).per_step

    def cost_with(self, options: Mapping[str, Any]) -> Cost:
        """The cost with these options and the defaults of the others."""
        if isinstance(self.cost, Cost):
            return self.cost
        needed = inspect.signature(self.cost).parameters
        return self.cost(**{name: options.get(name, self.options[name].default) for name in needed})

    def steps(self, nfe: int, denoise: bool, options: Mapping[str, Any] | None = None) -> int:
        """The largest number of steps that costs at most `nfe` evaluations, the final denoising included.

        Raises:
            InputError: If not even one step does, or the method chooses its own steps.
        """
        cost = self.cost_with(options or {})
        if cost.per_step is None:
            raise InputError("an adaptive method chooses its own steps: set rtol and atol instead of nfe")
        steps = (nfe - cost.extra - denoise) // cost.per_step
        if steps < 1:
            least = cost.per_step + cost.extra + denoise
            raise InputError(f"one step costs {least} evaluations in all, got nfe={nfe}: raise nfe")
        return steps


def _edm_cost(method: str) -> Cost:
    return Cost(len(TABLEAUS[method].b) if method in TABLEAUS else 1)


def _restart_cost(intervals: Sequence[Interval]) -> Cost:
    return Cost(2, extra=sum(2 * repeats * steps for _, _, repeats, steps in intervals))


def _ode_cost(method: str) -> Cost:
    return Cost(EVALUATIONS_PER_STEP.get(method))


def _pc_cost(predictor: str | Predictor, corrector: str, n_corrector_steps: int) -> Cost:
    of_predictor = predictor != "none" and not isinstance(predictor, NoPredictor)
    return Cost(max(1, of_predictor + n_corrector_steps * (corrector != "none")))


def _ald_cost(n_steps_each: int) -> Cost:
    return Cost(max(1, n_steps_each), extra=n_steps_each)


FLOW = "probability flow (Song et al., 2021)"
REVERSE = "reverse SDE (Song et al., 2021)"
DPMPP = "DPM-Solver++ (Lu et al., 2022)"
DPMPP_SDE = "SDE-DPM-Solver++ (Lu et al., 2022)"
ONE = Cost(1)
TWO = Cost(2)

SAMPLERS: dict[str, SamplerSpec] = {
    "eabm": SamplerSpec(
        eabm,
        order=5,
        cost=ONE,
        stochastic=False,
        paper="exponential Adams-Bashforth-Moulton, see samplers/exponential.py",
    ),
    "dpmpp_2s": SamplerSpec(dpmpp_2s, order=2, cost=TWO, stochastic=False, paper=DPMPP),
    "dpmpp_2m": SamplerSpec(dpmpp_2m, order=2, cost=ONE, stochastic=False, paper=DPMPP),
    "dpmpp_3m": SamplerSpec(dpmpp_3m, order=3, cost=ONE, stochastic=False, paper=DPMPP),
    "unipc": SamplerSpec(unipc, order=4, cost=ONE, stochastic=False, paper="UniPC (Zhao et al., 2023)"),
    "deis": SamplerSpec(deis, order=4, cost=ONE, stochastic=False, paper="DEIS, tAB3 (Zhang & Chen, 2023)"),
    "ddim": SamplerSpec(DDIMSampler, order=1, cost=ONE, stochastic=False, paper="DDIM (Song et al., 2021)"),
    "euler": SamplerSpec(euler, order=1, cost=ONE, stochastic=False, paper=FLOW),
    "midpoint": SamplerSpec(midpoint, order=2, cost=TWO, stochastic=False, paper=FLOW),
    "heun": SamplerSpec(heun, order=2, cost=TWO, stochastic=False, paper=FLOW),
    "rk4": SamplerSpec(rk4, order=4, cost=Cost(4), stochastic=False, paper=FLOW),
    "edm": SamplerSpec(
        edm, order=2, cost=_edm_cost, stochastic=False, paper="EDM, Algorithm 1 (Karras et al., 2022)"
    ),
    "ode": SamplerSpec(
        ODESampler,
        order=5,
        cost=_ode_cost,
        stochastic=False,
        paper="Dormand-Prince, a step size for each sample (Song et al., 2021)",
    ),
    "adaptive_sde": SamplerSpec(
        AdaptiveSDESampler,
        order=None,
        cost=Cost(None),
        stochastic=True,
        paper="Gotta Go Fast, a step size for each sample (Jolicoeur-Martineau et al., 2021)",
    ),
    "pc": SamplerSpec(
        PCSampler, order=None, cost=_pc_cost, stochastic=True, paper="predictor-corrector (Song et al., 2021)"
    ),
    "euler_maruyama": SamplerSpec(euler_maruyama, order=1, cost=ONE, stochastic=True, paper=REVERSE),
    "reverse_diffusion": SamplerSpec(
        reverse_diffusion, order=1, cost=ONE, stochastic=True, paper="reverse SDE, eq. 46 (Song et al., 2021)"
    ),
    "ancestral": SamplerSpec(
        ancestral, order=1, cost=ONE, stochastic=True, paper="ancestral sampling (Ho et al., 2020)"
    ),
    "ddpm": SamplerSpec(
        AncestralSampler,
        order=1,
        cost=ONE,
        stochastic=True,
        paper="DDPM, Algorithm 2 (Ho et al., 2020)",
        serves="VP, sub-VP, VE, DDPM's chains",
    ),
    "eab_sde": SamplerSpec(
        eab_sde,
        order=2,
        cost=ONE,
        stochastic=True,
        paper="exponential Adams-Bashforth for the reverse SDE, see samplers/exponential.py",
    ),
    "dpmpp_sde": SamplerSpec(dpmpp_sde, order=1, cost=ONE, stochastic=True, paper=DPMPP_SDE),
    "dpmpp_2m_sde": SamplerSpec(dpmpp_2m_sde, order=2, cost=ONE, stochastic=True, paper=DPMPP_SDE),
    "dpmpp_3m_sde": SamplerSpec(dpmpp_3m_sde, order=2, cost=ONE, stochastic=True, paper=DPMPP_SDE),
    "edm_churn": SamplerSpec(
        edm_churn, order=2, cost=TWO, stochastic=True, paper="EDM, Algorithm 2 (Karras et al., 2022)"
    ),
    "restart": SamplerSpec(
        restart, order=2, cost=_restart_cost, stochastic=True, paper="Restart (Xu et al., 2023)"
    ),
    "ald": SamplerSpec(
        AnnealedLangevinSampler,
        order=None,
        cost=_ald_cost,
        stochastic=True,
        paper="annealed Langevin dynamics (Song & Ermon, 2019)",
    ),
    "cas": SamplerSpec(
        ConsistentAnnealedSampler,
        order=None,
        cost=ONE,
        stochastic=True,
        paper="consistent annealed sampling (Jolicoeur-Martineau et al., 2021)",
    ),
}


def find_sampler(name: str) -> SamplerSpec:
    """SAMPLERS[name].

    Raises:
        InputError: If there is no such name.
    """
    check_name("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def sampler_options(name: str) -> dict[str, Option]:
    """The options of a sampler by name, each with its default, type, allowed names and explanation.

    Raises:
        InputError: If there is no such sampler.
    """
    return find_sampler(name).options


def sampler_grid(
    name: str,
    nfe: int | None = None,
    grid: str | Grid | Tensor | None = None,
    denoise: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Tensor | Grid:
    """The time grid of `make_sampler` with these arguments.

    Raises:
        InputError: If a name is unknown, or nfe does not suffice for one step.
    """
    spec = find_sampler(name)
    if isinstance(grid, Tensor | Grid):
        return grid
    if nfe is not None:
        return Grid(grid or spec.grid, spec.steps(nfe, denoise, options))
    if grid == "chain":
        return Grid(grid)  # all of it
    return Grid(grid or spec.grid, spec.default_grid.steps)


def make_sampler(
    name: str,
    sde: SDE,
    nfe: int | None = None,
    grid: str | Grid | Tensor | None = None,
    denoise: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Sampler:
    """A sampler by name, with the settings of its paper except for the given ones.

    Args:
        name: A name in `SAMPLERS`.
        sde: The SDE.
        nfe: The largest number of evaluations per sample, the final denoising included; None for the default
            number of steps, which is that of the whole chain if grid is "chain".
        grid: A name in `GRIDS`; a `Grid` or the times themselves, shape (steps + 1,), to which nfe does not
            matter; None for the sampler's default grid.
        denoise: Whether to end with Tweedie's formula.
        options: Options of the sampler by name, see `sampler_options`.

    Returns:
        The sampler.

    Raises:
        InputError: If a name or an option is unknown, nfe does not suffice for one step, the method chooses
            its own steps, or the SDE or the grid does not fit the sampler.
    """
    spec, options = find_sampler(name), dict(options or {})
    _check_options(name, options)
    times = sampler_grid(name, nfe, grid, denoise, options)
    return spec.make(sde, times, denoise=denoise, **options)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    own = sampler_options(name)
    for option in options:
        if option in own:
            continue
        owners = [other for other, spec in SAMPLERS.items() if option in spec.options]
        if owners:
            raise InputError(f"{option} is an option of {', '.join(owners)}, not of {name}")
        if not own:
            raise InputError(f"unknown option {option!r} of {name}, which has none")
        check_name(f"an option of {name}", option, own)


def sampler_table() -> list[tuple[str, ...]]:
    """The samplers as rows of text with a header, for printing."""
    rows: list[tuple[str, ...]] = [
        ("name", "kind", "order", "NFE/step", "grid", "steps", "SDEs", "paper", "options and their defaults")
    ]
    for name, spec in SAMPLERS.items():
        kind = "SDE" if spec.stochastic else "ODE"
        per_step = "adaptive" if spec.nfe_per_step is None else str(spec.nfe_per_step)
        order = "-" if spec.order is None else str(spec.order)
        options = ", ".join(f"{option.name}={option.default}" for option in spec.options.values())
        steps = "all" if spec.default_grid.steps is None else str(spec.default_grid.steps)
        rows.append((name, kind, order, per_step, spec.grid, steps, spec.serves, spec.paper, options))
    return rows
