"""Error against the number of evaluations: every sampler of ours, diffusers and azula.

    python -m benchmarks.quality_vs_nfe                                   # the zoo, on VP
    python -m benchmarks.quality_vs_nfe --problem --workdir runs/vpsde    # only trained models of images
    python -m benchmarks.quality_vs_nfe --problem ring --sde vp --nfe 5 --picture quick.png
    python -m benchmarks.quality_vs_nfe --stochastic --problem ring mixture images sheet   # by their law

Deterministic samplers: the endpoint error, the median over samples of the distance to an accurate solution of
the same probability-flow ODE from the same x_T to the same end time. All samplers (--laws), or the stochastic
ones and their peers (--stochastic): the sliced 2-Wasserstein distance between samples and true ones, divided
by that between two sets of true ones. The tables are printed as Markdown; the picture is
docs/images/quality_vs_nfe.png. Problems: the laws of `benchmarks/zoo.py`, and the scores of trained models.
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

from benchmarks.peers import Peer, peers, run_peer
from benchmarks.stochastic_peers import stochastic_peers
from benchmarks.zoo import LAWS
from score_diffusion.samplers import GRIDS, SAMPLERS, ODESampler, fit_solver, make_sampler, rk4
from score_diffusion.sde_lib import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    GaussianMixture,
    ScoreFunction,
    SubVPSDE,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the backend is chosen)

NFES = (5, 6, 8, 10, 15, 20, 35, 50)
SDES: dict[str, SDE] = {"vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE(), "edm": EDMSDE()}
FITTED = "eabm, fitted"
PICTURE = Path(__file__).parent.parent / "docs/images/quality_vs_nfe.png"
PICTURED = ("mixture, vp", "ring, vp", "images, vp", "far, vp")
SAMPLES_FOR_LAW, DIRECTIONS, TRUE_SETS, SEEDS = 2000, 200, 8, 2


@dataclass
class Problem:
    """A score, its SDE, initial states, and where the probability flow carries them."""

    name: str
    sde: SDE
    score: ScoreFunction
    x_T: Tensor
    end: Tensor

    @classmethod
    def exact(cls, name: str, law: GaussianMixture, sde: SDE, samples: int = 48) -> Problem:
        score, x_T = law.score(sde), starts(sde, (samples, *law.shape))
        solver = ODESampler(sde, GRIDS["uniform"](sde, 1), rtol=1e-9, atol=1e-10)
        return cls(name, sde, score, x_T, solver(score, x_T.shape, x_T=x_T).samples)

    @classmethod
    def trained(cls, workdir: Path, samples: int = 32, steps: int = 150) -> Problem:
        from score_diffusion.run.builders.inference import load_trained
        from score_diffusion.run.config import read_config

        model = load_trained(workdir, read_config(workdir), torch.device("cpu"))
        times = GRIDS["clock"](model.sde, steps)
        # Fixed steps: with a float32 network, rounding stops an adaptive solver at tight tolerances.
        solver = rk4(model.sde, times)
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
    """Samples of the solver that was fitted to the score with other noise."""
    fit = fit_solver(problem.score, problem.sde, nfe, problem.x_T.shape[1:], seed=5)
    return fit.sampler(problem.score, problem.x_T.shape, x_T=problem.x_T).samples


def endpoint_errors(problem: Problem, nfes: tuple[int, ...], with_fit: bool) -> dict[str, list[float]]:
    """Errors by the name of the sampler or peer."""
    names = [name for name, spec in SAMPLERS.items() if not spec.stochastic and spec.nfe_per_step]
    table = {name: [problem.error(ours(problem, name, nfe)) for nfe in nfes] for name in names}
    if with_fit:
        table[FITTED] = [problem.error(fitted(problem, nfe)) if nfe <= 50 else math.nan for nfe in nfes]
    for name, peer in peers().items():
        table[name] = [
            problem.error(run_peer(peer, problem.sde, problem.score, problem.x_T, nfe)) for nfe in nfes
        ]
    return table


def row(name: str, values: list[float], form: str = ".2g") -> str:
    cells = ("-" if math.isnan(v) or math.isinf(v) else format(v, form) for v in values)
    return f"| {name} | " + " | ".join(cells) + " |"


def best_peers(table: dict[str, list[float]], count: int) -> list[tuple[float, str]]:
    """The smallest error of a peer at each NFE, and whose it is."""
    known = peers()
    return [
        min((v[i], name) for name, v in table.items() if name in known and not math.isnan(v[i]))
        for i in range(count)
    ]


def print_endpoint_errors(problem: Problem, table: dict[str, list[float]], nfes: tuple[int, ...]) -> None:
    of_peers, best = peers(), best_peers(table, len(nfes))
    print(f"\n### Endpoint error, {problem.name}\n")
    print(row("NFE", list(nfes), "d"))
    print("|---" * (1 + len(nfes)) + "|")
    for name, values in table.items():
        if name not in of_peers:
            print(row(f"`{name}`", values))
    print(row("diffusers' default", table["DPMSolver++ (default)"]))
    print(row(f"best of {len(of_peers)} peers", [error for error, _ in best]))
    print("\nBest peers: " + "; ".join(f"{n}: {name}" for n, (_, name) in zip(nfes, best, strict=True)) + ".")


def print_ratios(tables: dict[str, dict[str, list[float]]], nfes: tuple[int, ...]) -> None:
    """Our error over that of the best peer at each NFE: each problem, geometric mean and worst."""
    for name in ("eabm", FITTED):
        rows = {
            problem: [a / b for a, (b, _) in zip(table[name], best_peers(table, len(nfes)), strict=True)]
            for problem, table in tables.items()
            if name in table
        }
        if not rows:
            continue
        print(f"\n### `{name}` over the best peer at each NFE\n")
        print(row("NFE", list(nfes), "d"))
        print("|---" * (1 + len(nfes)) + "|")
        for problem, ratios in rows.items():
            print(row(problem, ratios))
        columns = [torch.tensor([r for r in column if r == r]) for column in zip(*rows.values(), strict=True)]
        print(row("geometric mean", [c.log().mean().exp().item() if len(c) else math.nan for c in columns]))
        print(row("worst", [c.max().item() if len(c) else math.nan for c in columns]))


class LawDistance:
    """The sliced 2-Wasserstein distance of samples to a law, over its mean between two true sets."""

    def __init__(self, law: GaussianMixture) -> None:
        v = torch.randn(math.prod(law.shape), DIRECTIONS, generator=torch.Generator().manual_seed(0))
        self.v = v / v.norm(dim=0)
        self.truth = [self._sorted(law.sample(SAMPLES_FOR_LAW, 100 + i)) for i in range(TRUE_SETS)]
        pairs = [self._to(a, b) for i, a in enumerate(self.truth) for b in self.truth[:i]]
        self.floor = sum(pairs) / len(pairs)

    def _sorted(self, x: Tensor) -> Tensor:
        return (x.flatten(1).float() @ self.v).sort(0).values

    @staticmethod
    def _to(a: Tensor, b: Tensor) -> float:
        return (a - b).square().mean().sqrt().item()

    def __call__(self, samples: Tensor | None) -> float:
        if samples is None:
            return math.nan
        found = self._sorted(samples)
        return sum(self._to(found, true) for true in self.truth) / TRUE_SETS / self.floor


def print_laws(law: GaussianMixture, name: str, nfes: tuple[int, ...], stochastic: bool) -> None:
    """Distances to the law on VP, means over seeds; of the stochastic samplers only, and then of peers."""
    sde, score, distance = SDES["vp"], law.score(SDES["vp"]), LawDistance(law)
    shape = (SAMPLES_FOR_LAW, *law.shape)

    def of_ours(key: str, nfe: int, seed: int) -> float:
        try:
            return distance(make_sampler(key, sde, nfe)(score, shape, seed=seed).samples)
        except ValueError:
            return math.nan

    def of_peer(peer: Peer, nfe: int, seed: int) -> float:
        torch.manual_seed(1000 + seed)
        return distance(run_peer(peer, sde, score, sde.prior_std * torch.randn(shape), nfe))

    def mean(of: Callable[..., float], which: object) -> list[float]:
        return [sum(of(which, nfe, seed) for seed in range(SEEDS)) / SEEDS for nfe in nfes]

    print(f"\n### Sliced 2-Wasserstein distance over the floor, {name} on vp, {SAMPLES_FOR_LAW} samples\n")
    print(row("NFE", list(nfes), "d"))
    print("|---" * (1 + len(nfes)) + "|")
    for key, spec in SAMPLERS.items():
        if spec.nfe_per_step and (spec.stochastic or not stochastic):
            print(row(f"`{key}`", mean(of_ours, key)))
    if stochastic:
        table = {key: mean(of_peer, peer) for key, peer in stochastic_peers().items()}
        best = [min((v[i], key) for key, v in table.items() if v[i] == v[i]) for i in range(len(nfes))]
        for key, values in table.items():
            print(row(key, values))
        print(row(f"best of {len(table)} peers", [value for value, _ in best]))
        print("\nBest peers: " + "; ".join(f"{n}: {key}" for n, (_, key) in zip(nfes, best, strict=True)))


def picture(tables: dict[str, dict[str, list[float]]], nfes: tuple[int, ...], path: Path) -> None:
    known = peers()
    figure, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables), 4.2), squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        for name, values in table.items():
            if name in known:
                ax.loglog(nfes, values, color="0.8", lw=0.7, zorder=1)
        ax.loglog(
            nfes,
            [error for error, _ in best_peers(table, len(nfes))],
            "--",
            color="0.35",
            label="best peer at each NFE",
        )
        for name in ("dpmpp_2m", "unipc", "deis", "eabm", FITTED):
            points = [(n, v) for n, v in zip(nfes, table.get(name, ()), strict=False) if v == v]
            if points:
                width = 2.2 if name.startswith("eabm") else 1
                ax.loglog(*zip(*points, strict=True), "o-", ms=3, lw=width, label=name)
        ax.set(title=title, xlabel="evaluations")
        ax.set_xticks(nfes, labels=map(str, nfes))
        ax.minorticks_off()
    axes[0, 0].set_ylabel("endpoint error (median distance)")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFES), help="numbers of evaluations")
    parser.add_argument("--problem", nargs="*", choices=LAWS, default=list(LAWS), help="laws of the zoo")
    parser.add_argument("--sde", nargs="+", choices=SDES, default=["vp"], help="their SDEs")
    parser.add_argument("--workdir", type=Path, nargs="+", default=[], help="runs of trained models")
    parser.add_argument("--fit", action="store_true", help="also fitted solvers, at up to 50 evaluations")
    parser.add_argument("--laws", action="store_true", help="also the Wasserstein distances")
    parser.add_argument("--stochastic", action="store_true", help="only stochastic samplers, by their law")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to write the picture")
    arguments = parser.parse_args(argv)
    diffusers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Prints the tables and draws the picture."""
    nfes, tables = tuple(arguments.nfe), {}
    laws = {name: LAWS[name]() for name in arguments.problem}
    if arguments.stochastic:
        for name, law in laws.items():
            print_laws(law, name, nfes, stochastic=True)
        return
    problems = [
        Problem.exact(f"{name}, {key}", law, SDES[key]) for name, law in laws.items() for key in arguments.sde
    ]
    problems += [Problem.trained(workdir) for workdir in arguments.workdir]
    for problem in problems:
        tables[problem.name] = endpoint_errors(problem, nfes, arguments.fit)
        print_endpoint_errors(problem, tables[problem.name], nfes)
    print_ratios(tables, nfes)
    pictured = [name for name in tables if name in PICTURED or "trained" in name] or list(tables)
    if pictured:
        picture({name: tables[name] for name in pictured[:4]}, nfes, arguments.picture)
    for name, law in laws.items() if arguments.laws else ():
        print_laws(law, name, tuple(nfe for nfe in nfes if nfe <= 100), stochastic=False)


if __name__ == "__main__":
    main()
