"""`--mode compare RUN RUN ...`: samples of several runs, samplers and budgets in one table and one picture.

    score-diffusion --mode compare runs/vpsde runs/vesde --config.compare.samplers=eabm,pc
        --config.compare.nfe=8,15,30

A RUN is a run directory, whose samples are drawn if they are not there, or an evaluation.json. The results
are written to --workdir as comparison.json, .csv, .png and .html.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from score_diffusion.run import plots, web_page
from score_diffusion.run.build import build_sampler, build_sde
from score_diffusion.run.builders.data import load_shown_data
from score_diffusion.run.builders.evaluation import build_evaluator, find_or_draw, result_record
from score_diffusion.run.builders.guidance import load_guided
from score_diffusion.run.config import CONFIG_FILE, Overrides, read_config, read_run
from score_diffusion.run.console import print_result, print_table
from score_diffusion.run.constructor_keys import NO_GUIDANCE
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.evaluation.evaluator import Evaluator
from score_diffusion.run.evaluation.results import (
    Record,
    csv_text,
    figure_of,
    figures_record,
    name_in_words,
    read_result,
    refuse_unlike,
    table,
)
from score_diffusion.run.files import write_atomic, write_numbered_json
from score_diffusion.run.keys import COMPARE
from score_diffusion.run.web_page import Section

STEM = "comparison"
WIDE = (9.6, 3.8)  # inches, of the picture on the page


def compare(runs: Sequence[Path], overrides: Overrides, workdir: Path, device: torch.device) -> int:
    """Compares samples of runs; returns the exit code.

    Args:
        runs: Run directories, and results of `--mode evaluate`.
        overrides: Keys that the user sets, for all runs.
        workdir: Where to write.
        device: Where to draw samples.

    Raises:
        UserError: If there is no run, or the runs cannot be compared.
    """
    if not runs:
        raise UserError(
            "--mode compare needs run directories, or results of --mode evaluate: compare RUN RUN ..."
        )
    _refuse_other_data([run for run in runs if (run / CONFIG_FILE).exists()], overrides)
    records: list[Record] = []
    for run in runs:
        found = _read(run) if run.suffix == ".json" else _measure(run, overrides, workdir, device)
        records += found
        if records:
            refuse_unlike(records)  # as soon as it is known
    if not processes.is_rank_0():
        return 0
    (metric,) = _setting(overrides, "metric")
    figure = _picture(records, metric)
    stem = write_numbered_json(workdir / STEM, {"results": records}, ".csv", ".png", ".html")
    files = {
        ".csv": csv_text(records).encode(),
        ".png": plots.png(figure),
        ".html": _page(records, figure, metric).encode(),
    }
    for suffix, data in files.items():
        write_atomic(stem.with_name(stem.name + suffix), data)
    print_table(table(records))
    rows: list[tuple[str, object]] = [
        (suffix[1:], stem.with_name(stem.name + suffix)) for suffix in (".json", *files)
    ]
    print_result(_title(records), rows)
    return 0


def _refuse_other_data(runs: Sequence[Path], overrides: Overrides) -> None:
    """Refuses runs of different data before samples are drawn, unless one set of data is named for all.

    Raises:
        UserError: If they are.
    """
    if any(key.startswith("data.") for key, _ in overrides):
        return
    infos = [read_data_info(run) for run in runs]
    shown = [info.decoded or info for info in infos]
    for run, info in zip(runs[1:], shown[1:], strict=True):
        if not (info.fits(shown[0]) and (info.digest or info.name) == (shown[0].digest or shown[0].name)):
            raise UserError(
                f"{runs[0]} and {run} cannot be compared, they were trained on different data "
                f"({shown[0].name!r}, {shown[0]}; {info.name!r}, {info}): name data for both with "
                "--config.data.path="
            )


def _setting(overrides: Overrides, name: str) -> tuple:
    """The values of a key of the section `compare`, which is about all runs."""
    key, text = COMPARE[f"compare.{name}"], dict(overrides).get(f"compare.{name}")
    value = key.default if text is None else key.parse(f"compare.{name}", str(text))
    return value if isinstance(value, tuple) else (value,)


def _read(path: Path) -> list[Record]:
    """The result in a file, on rank 0."""
    record = processes.from_rank_0(lambda: read_result(path))
    return [{"run": str(path), **record}] if processes.is_rank_0() else []


def _measure(run: Path, overrides: Overrides, workdir: Path, device: torch.device) -> list[Record]:
    """The results of a run, on rank 0; on the others none."""
    by_scale = [
        [read_run(run, chosen, "compare", more) for chosen, more in _combinations(overrides, scale)]
        for scale in _scales(overrides, run)
    ]
    for config in itertools.chain(*by_scale):  # their checks first: drawing takes long
        build_sampler(config.sampling, build_sde(config.sde))
    evaluator: Evaluator | None = None
    records: list[Record] = []
    for configs in by_scale:
        trained = load_guided(run, configs[0], device)
        if evaluator is None:
            dataset = load_shown_data(configs[0].data, trained.data)
            evaluator = build_evaluator(configs[0].evaluation, dataset, workdir, device)
        for config in configs:
            if processes.is_rank_0():
                budget = f", {config.sampling.nfe} evaluations" if config.sampling.nfe else ""
                print(f"{run}: {config.sampling.sampler}{budget}")
            file = find_or_draw(config.sampling, trained, run)
            if file is None:  # on all ranks except the first
                continue
            features = evaluator.features_of(file.samples, file.labels)
            figures = figures_record(evaluator.measure(features, f"{file.sampler}, NFE {file.nfe}"))
            records.append({"run": str(run), **result_record(file, trained, evaluator), **figures})
    if evaluator is None or not records:
        return []
    real = figures_record(evaluator.measure(evaluator.real(records[0]["num_samples"]), "real data"), "real")
    return [record | real for record in records]


def _scales(overrides: Overrides, run: Path) -> list[Overrides]:
    """For each guidance scale the override that sets it."""
    scales = _setting(overrides, "scales")
    if not scales:
        return [[]]
    guidance = dict(overrides).get("sampling.guidance", read_config(run).sampling.guidance)
    if guidance == NO_GUIDANCE:
        raise UserError(
            f"compare.scales are of a guidance, and {run} is sampled without: set --config.sampling.guidance"
        )
    return [[(f"sampling.{guidance}.scale", scale)] for scale in scales]


def _combinations(overrides: Overrides, more: Overrides) -> Iterator[tuple[Overrides, Overrides]]:
    """For each sampler and number of evaluations the overrides that concern it, and those that choose it."""
    samplers, budgets = _setting(overrides, "samplers"), _setting(overrides, "nfe")
    for sampler in samplers or (None,):
        others = {f"sampling.{name}." for name in samplers if name != sampler}
        chosen = [pair for pair in overrides if not pair[0].startswith(tuple(others))]
        of_sampler = [] if sampler is None else [("sampling.sampler", sampler)]
        for nfe in budgets or (None,):
            of_budget = [] if nfe is None else [("sampling.nfe", nfe)]
            yield chosen, [*more, *of_sampler, *of_budget]


def _title(records: Sequence[Record]) -> str:
    first = records[0]
    return (
        f"{first['num_samples']:,} samples each, compared with {first['reference']} "
        f"({first['num_reference']:,} samples), by {first['measured_on']}"
    )


def _picture(records: Sequence[Record], metric: str) -> plots.Figure:
    """The metric against the evaluations, and against the seconds where they are known."""
    of_line: dict[str, list[Record]] = {}
    several = len({record["run"] for record in records}) > 1
    for record in sorted(records, key=lambda record: record["nfe"]):
        parts = [record["run"] if several else "", record["sampler"], record.get("guidance") or ""]
        name = " ".join(filter(None, parts))
        if figure_of(record, metric) is not None:
            of_line.setdefault(name, []).append(record)
    if not of_line:
        raise UserError(
            f"compare.metric={metric} was not measured on these samples: choose one of "
            f"{some_of(metric, records[0]['samples'])}"
        )
    panels = {
        label: {name: _line(points, key, metric) for name, points in of_line.items()}
        for key, label in (("nfe", "network evaluations"), ("seconds_per_sample", "seconds per sample"))
    }
    real = next((figure_of(record, metric, "real") for record in records), None)
    level = None if real is None else real.value
    values = [y for line in panels["network evaluations"].values() for y in line.y]
    wide = min(values) > 0 and max(values) > 10 * min(values) and (level is None or level > 0)
    return plots.error_curves(panels, name_in_words(metric), level, "log" if wide else "linear")


def _line(records: Sequence[Record], key: str, metric: str) -> plots.ErrorBars:
    points = [(record[key], figure_of(record, metric)) for record in records if record[key]]
    figures = [figure for _, figure in points if figure is not None]
    return plots.ErrorBars(
        [x for x, _ in points],
        [figure.value for figure in figures],
        [figure.standard_error or 0.0 for figure in figures],
    )


def _page(records: Sequence[Record], figure: plots.Figure, metric: str) -> str:
    header, *rows = table(records)
    note = "Each figure is followed by its standard error; the dashed line is what as many real samples get."
    sections = [
        Section("Picture", [web_page.figure(figure, name_in_words(metric), WIDE), web_page.paragraph(note)]),
        Section("Table", [web_page.table(rows, header)]),
    ]
    return web_page.page("Comparison of samples", f"{_title(records)}.", sections)
