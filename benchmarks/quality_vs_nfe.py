"""Error against the number of evaluations: every sampler of ours, diffusers and azula.

    python -m benchmarks.quality_vs_nfe                                   # the exact mixtures
    python -m benchmarks.quality_vs_nfe --problem --workdir runs/vpsde    # only a trained model of images
    python -m benchmarks.quality_vs_nfe --problem ring --sde vp --nfe 5 --no_laws --picture quick.png

Deterministic samplers: the endpoint error, the median over samples of the distance to an accurate solution of
the same probability-flow ODE from the same x_T to the same end time. All samplers: the sliced 2-Wasserstein
distance between samples and true ones, divided by that between two sets of true ones. The tables are printed
as Markdown; the picture is docs/images/quality_vs_nfe.png. Problems: a 64-D mixture of 10 components (means
from N(0, I), standard deviations 0.2 to 0.5), the 2-D ring of 8 modes (radius 4, standard deviation 0.3),
the trained model's score.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import matplotlib
import torch
from torch import Tensor

from benchmarks.peers import peers, run_peer
from score_diffusion.samplers import (
    GRIDS,
    SAMPLERS,
    LinearSampler,
    ODESampler,
    fit_grid,
    make_sampler,
    rk4,
)
from score_diffusion.sde_lib import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    GaussianMixture,
    ScoreFunction,
    SubVPSDE,
)
from tests.problems import ring, sampling_floor, sliced_wasserstein

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the backend is chosen)

NFES = (5, 8, 10, 15, 20, 35, 50, 100, 1000)
SDES: dict[str, SDE] = {"vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE(), "edm": EDMSDE()}
PICTURE = Path(__file__).parent.parent / "docs/images/quality_vs_nfe.png"
SAMPLES_FOR_LAW = 2000


def mixture() -> GaussianMixture:
    """The 64-D mixture of 10 components."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    deviations = 0.2 + 0.3 * torch.rand(10, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, deviations.square())


LAWS: dict[str, Callable[[], GaussianMixture]] = {"mixture": mixture, "ring": ring}


@dataclass
class Problem:
    """A score, its SDE, initial states, and where the probability flow carries them."""

    name: str
    sde: SDE
    score: ScoreFunction
    x_T: Tensor
    end: Tensor

    @classmethod
    def exact(cls, name: str, law: GaussianMixture, sde: SDE, samples: int = 64) -> Problem:
        score, x_T = law.score(sde), starts(sde, (samples, *law.shape))
        solver = ODESampler(sde, GRIDS["uniform"](sde, 1), rtol=1e-9, atol=1e-10)
        return cls(name, sde, score, x_T, solver(score, x_T.shape, x_T=x_T).samples)

    @classmethod
    def trained(cls, workdir: Path, samples: int = 32, steps: int = 150) -> Problem:
        from score_diffusion.run.build_inference import load_trained
        from score_diffusion.run.config import read_config

        model = load_trained(workdir, read_config(workdir), torch.device("cpu"))
        times = GRIDS["clock"](model.sde, steps)
        # Fixed steps: with a float32 network, rounding stops an adaptive solver at tight tolerances.
        solver = rk4(model.sde, times)
        with torch.no_grad():
            x_T = starts(model.sde, (samples, *model.data.shape))
            end = solver(model.score, x_T.shape, x_T=x_T).samples
        return cls(f"{workdir.name}, trained", model.sde, model.score, x_T, end)

    def error(self, samples: Tensor | None) -> float:
        if samples is None:
            return math.nan
        return (samples - self.end).flatten(1).norm(dim=1).median().item()


def starts(sde: SDE, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return sde.prior_std * torch.randn(shape, generator=generator, dtype=torch.float64)


def ours(problem: Problem, name: str, nfe: int) -> Tensor | None:
    """Samples of one of our samplers; None if nfe is too small for it."""
    try:
        sampler = make_sampler(name, problem.sde, nfe)
    except ValueError:
        return None
    return sampler(problem.score, problem.x_T.shape, x_T=problem.x_T).samples


def fitted(problem: Problem, nfe: int) -> Tensor:
    """Samples of the default sampler on a grid that was fitted to the score with other samples."""

    def make(times: Tensor) -> LinearSampler:
        return make_sampler("eabm", problem.sde, grid=times)

    start = GRIDS["clock"](problem.sde, nfe)
    grid = fit_grid(make, problem.score, problem.sde, start, problem.x_T.shape[1:], seed=5)
    return make(grid)(problem.score, problem.x_T.shape, x_T=problem.x_T).samples


def endpoint_errors(problem: Problem, nfes: tuple[int, ...], with_fit: bool) -> dict[str, list[float]]:
    """Errors by the name of the sampler or peer."""
    names = [name for name, spec in SAMPLERS.items() if not spec.stochastic and spec.nfe_per_step]
    table = {name: [problem.error(ours(problem, name, nfe)) for nfe in nfes] for name in names}
    if with_fit:
        largest = 20 if "trained" in problem.name else 50  # a fit takes a hundred runs
        table["eabm, fitted grid"] = [
            problem.error(fitted(problem, nfe)) if nfe <= largest else math.nan for nfe in nfes
        ]
    for name, peer in peers().items():
        table[name] = [
            problem.error(run_peer(peer, problem.sde, problem.score, problem.x_T, nfe)) for nfe in nfes
        ]
    return table


def row(name: str, values: list[float], form: str = ".2g") -> str:
    cells = ("-" if math.isnan(v) or math.isinf(v) else format(v, form) for v in values)
    return f"| {name} | " + " | ".join(cells) + " |"


def print_endpoint_errors(problem: Problem, table: dict[str, list[float]], nfes: tuple[int, ...]) -> None:
    of_peers = {name: values for name, values in table.items() if name in peers()}
    best = [
        min((values[i], name) for name, values in of_peers.items() if not math.isnan(values[i]))
        for i in range(len(nfes))
    ]
    print(f"\n### Endpoint error, {problem.name}\n")
    print(row("NFE", list(nfes), "d"))
    print("|---" * (1 + len(nfes)) + "|")
    for name, values in table.items():
        if name not in of_peers:
            print(row(f"`{name}`", values))
    print(row("diffusers' default", of_peers["DPMSolver++ (default)"]))
    print(row(f"best of {len(of_peers)} peers", [error for error, _ in best]))
    ratios = [a / b for a, (b, _) in zip(table["eabm"], best, strict=True)]
    print(row("`eabm` over the best peer", ratios))
    print("\nBest peers: " + "; ".join(f"{n}: {name}" for n, (_, name) in zip(nfes, best, strict=True)) + ".")


def print_laws(law: GaussianMixture, name: str, nfes: tuple[int, ...]) -> None:
    """Sliced Wasserstein distances relative to their floor, on VP."""
    sde, n = SDES["vp"], SAMPLES_FOR_LAW
    score, truth, floor = law.score(sde), law.sample(n, seed=9), sampling_floor(law, n)
    print(f"\n### Sliced 2-Wasserstein distance over the floor, {name} on vp, {n} samples\n")
    print(row("NFE", list(nfes), "d"))
    print("|---" * (1 + len(nfes)) + "|")
    for key in SAMPLERS:
        values = []
        for nfe in nfes:
            try:
                sampler = make_sampler(key, sde, nfe)
                samples = sampler(score, (n, *law.shape), seed=2).samples
                values.append(sliced_wasserstein(samples, truth) / floor)
            except ValueError:
                values.append(math.nan)
        if not all(map(math.isnan, values)):
            print(row(f"`{key}`", values))


def picture(tables: dict[str, dict[str, list[float]]], nfes: tuple[int, ...], path: Path) -> None:
    known = peers()
    figure, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables), 4.2), squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        for name, values in table.items():
            if name in known:
                ax.loglog(nfes, values, color="0.8", lw=0.7, zorder=1)
        best = [min(v[i] for n, v in table.items() if n in known and v[i] == v[i]) for i in range(len(nfes))]
        ax.loglog(nfes, best, "--", color="0.35", label="best peer at each NFE")
        for name in ("dpmpp_2m", "unipc", "deis", "eabm", "eabm, fitted grid"):
            if name in table:
                ax.loglog(nfes, table[name], "o-", ms=3, lw=2.2 if name.startswith("eabm") else 1, label=name)
        ax.set(title=title, xlabel="evaluations")
    axes[0, 0].set_ylabel("endpoint error (median distance)")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFES), help="numbers of evaluations")
    parser.add_argument("--problem", nargs="*", choices=LAWS, default=list(LAWS), help="exact mixtures")
    parser.add_argument("--sde", nargs="+", choices=SDES, default=list(SDES), help="SDEs of the mixtures")
    parser.add_argument("--workdir", type=Path, help="run directory of a trained model")
    parser.add_argument("--fit", action="store_true", help="also fitted grids, on VP (slow)")
    parser.add_argument("--no_laws", action="store_true", help="omit the Wasserstein distances")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to write the picture")
    arguments = parser.parse_args(argv)
    diffusers.logging.set_verbosity_error()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Prints the tables and draws the picture."""
    nfes, tables = tuple(arguments.nfe), {}
    laws = {name: LAWS[name]() for name in arguments.problem}
    problems = [
        Problem.exact(f"{name}, {key}", law, SDES[key]) for name, law in laws.items() for key in arguments.sde
    ]
    if arguments.workdir:
        problems.append(Problem.trained(arguments.workdir))
    for problem in problems:
        shorter = nfes if "trained" not in problem.name else tuple(n for n in nfes if n <= 100)
        pictured = problem.sde is SDES["vp"] or "trained" in problem.name
        table = endpoint_errors(problem, shorter, arguments.fit and pictured)
        print_endpoint_errors(problem, table, shorter)
        if pictured:
            tables[problem.name] = {k: v + [math.nan] * (len(nfes) - len(v)) for k, v in table.items()}
    if tables:
        picture(tables, nfes, arguments.picture)
    if not arguments.no_laws:
        for name, law in laws.items():
            print_laws(law, name, tuple(nfe for nfe in nfes if nfe <= 100))


if __name__ == "__main__":
    main()
