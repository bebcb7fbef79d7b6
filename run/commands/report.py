"""`--mode report`: one page about a run, report.html in its directory, which needs no other file.

Pictures and curves are part of the page, there is no script, and nothing is fetched. The page shows what
there is: it is shorter while training is in progress, or when no samples were drawn. A run may be somebody
else's: only pictures and results in its directory are shown, not what a link in it leads to.
"""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timezone
from html import escape
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.run import plots, web_page
from score_diffusion.run.build_training import total_training_steps
from score_diffusion.run.config import changed_keys, flatten
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.info import DATA_FILE, read_data_info
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic
from score_diffusion.run.inference.sample_files import SAMPLES, read_facts
from score_diffusion.run.json_files import parse_json, read_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.training.log import finite_values, read_log

REPORT_FILE = "report.html"
MOST_PICTURES = 12  # the most previews on the page, which stays small; evenly spaced
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 2**25  # bytes
WINDOWS = 4  # parts of the training for which the losses by noise level are shown
SETTINGS = {"num_samples": Values(kind=int, least=1)}  # of a sample file, what the page shows
LOGARITHMIC = ("loss", "norm of the gradient")  # curves whose axis is logarithmic
CURVES = {  # each by its title: the names of its lines, and their keys in the log
    "loss": {"training": "loss", "held out": "held_out_loss"},
    "norm of the gradient": {"norm": "grad_norm"},
    "learning rate": {"rate": "learning_rate"},
    "steps per second": {"steps": "steps_per_second"},
}


def report(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Writes the page of a run directory, replacing an older one; returns the exit code."""
    if not processes.is_rank_0():
        return 0  # there is nothing to share
    path = workdir / REPORT_FILE
    write_atomic(path, page(config, workdir).encode(errors="replace"))  # names of files may be no text
    print_result("Report", [("page", path), ("size", f"{path.stat().st_size / 2**20:.1f} MiB")])
    return 0


def page(config: ConfigDict, workdir: Path) -> str:
    """The page as HTML."""
    rows = read_log(workdir)
    sections = {
        "Summary": _summary(config, workdir, rows),
        "Configuration": _configuration(config),
        "Training": _curves(rows),
        "Loss by noise level": _noise_levels(rows),
        "Samples while training": _previews(workdir),
        "Likelihood": _results(workdir, "likelihood"),
        "Distances to held-out data": _results(workdir, "evaluation"),
        "Samples": _sample_files(workdir),
        "Data": [_picture(path, workdir) for path in sorted(workdir.glob("data*.png"))],
        "Files": _files(workdir),
    }
    body = "\n".join(
        f"<h2>{escape(title)}</h2>\n" + "\n".join(parts) for title, parts in sections.items() if parts
    )
    return web_page.page(f"Run {workdir.resolve().name}", body)


def _summary(config: ConfigDict, workdir: Path, rows: list[dict]) -> list[str]:
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines: list[tuple[str, object]] = [("SDE", config.sde.name), ("model", config.model.name)]
    if (workdir / DATA_FILE).exists():
        try:
            info = read_data_info(workdir)
            lines += [("data", info.name), ("", info)]
        except UserError as error:
            lines.append(("data", error))
    if rows:
        last = rows[-1]
        lines.append(("steps", f"{last['step']:,} of {total_training_steps(config.training):,}"))
        lines += [("time", format_duration(last["seconds"]))] if "seconds" in last else []
        lines += [(name, _number(values[-1])) for name, values in _last_losses(rows).items() if values]
    else:
        lines.append(("steps", f"none logged, of {config.training.steps:,}"))
    return [web_page.table([*lines, ("page written", written)])]


def _configuration(config: ConfigDict) -> list[str]:
    """The keys that differ from their defaults, then the others in a fold."""
    flat, changed = flatten(config), changed_keys(config)
    rest = [key for key in flat if key not in changed]
    return [
        web_page.table(
            [(key, _value(value), _value(default)) for key, (value, default) in changed.items()],
            ("changed", "value", "default"),
        ),
        web_page.folded(
            f"{len(rest)} keys at their defaults", web_page.table([(key, _value(flat[key])) for key in rest])
        ),
    ]


def _last_losses(rows: list[dict]) -> dict[str, list[float]]:
    return {f"loss, {name}": finite_values(rows, key)[1] for name, key in CURVES["loss"].items()}


def _curves(rows: list[dict]) -> list[str]:
    images = []
    for title, keys in CURVES.items():
        lines = {name: finite_values(rows, key) for name, key in keys.items()}
        lines = {name: line for name, line in lines.items() if line[0]}
        if lines:
            positive = title in LOGARITHMIC and all(min(y) > 0 for _, y in lines.values())
            scale = "log" if positive else "linear"
            images.append(web_page.figure(plots.curves(lines, "step", title, yscale=scale), title))
    return [web_page.gallery(images)] if images else []


def _noise_levels(rows: list[dict]) -> list[str]:
    """Mean losses by noise level in equal parts of the training, as far as the log has them."""
    levels = [len(row.get("level_losses", ())) for row in rows[-1:]]
    rows = [row for row in rows if _has_levels(row, *levels)]
    lines = {}
    for window in np.array_split(np.arange(len(rows)), min(WINDOWS, len(rows)) or 1):
        if len(window):
            chosen = [rows[k] for k in window]
            losses = np.array([row["level_losses"] for row in chosen], dtype=float)  # null becomes NaN
            known = np.isfinite(losses)
            counts = known.sum(0)
            means = np.where(known, losses, 0).sum(0)[counts > 0] / counts[counts > 0]
            centres = _centres(np.array(chosen[0]["level_edges"], dtype=float))[counts > 0]
            lines[f"to step {chosen[-1]['step']:,}"] = (centres, means)
    if not lines:
        return []
    scale = "log" if all((y > 0).all() for _, y in lines.values()) else "linear"
    figure = plots.curves(lines, "noise level log(σ/α)", "loss", yscale=scale)
    return [
        web_page.gallery([web_page.figure(figure, "loss by noise level, means over parts of the training")])
    ]


def _has_levels(row: dict, count: int) -> bool:
    """Whether a row has a loss of each of so many levels."""
    losses, edges = row.get("level_losses", ()), row.get("level_edges", ())
    return len(losses) == count == len(edges) + 1 and len(edges) > 1


def _centres(edges: np.ndarray) -> np.ndarray:
    """The centres of bins between equally spaced edges; the first and last bin, which are open, count as wide
    as the others.
    """
    width = edges[1] - edges[0]
    return np.append(edges[0] - width / 2, edges + width / 2)


def _previews(workdir: Path) -> list[str]:
    pictures = sorted((workdir / SAMPLES).glob("step_*.png"))
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), MOST_PICTURES)).round().astype(int)
    shown = [_picture(pictures[k], workdir, f"step {_step(pictures[k])}") for k in chosen]
    left_out = len(pictures) - len(shown)
    note = [f"<p>{left_out} more in {escape(SAMPLES)}/, see Files.</p>"] if left_out else []
    return [web_page.gallery(shown), *note] if shown else []


def _step(picture: Path) -> str:
    number = picture.stem.removeprefix("step_")
    return f"{int(number):,}" if number.isdecimal() else number


def _results(workdir: Path, stem: str) -> list[str]:
    """The JSON files of a mode, each with its pictures."""
    parts = []
    for path in sorted(workdir.glob(f"{stem}*.json"), key=lambda path: (len(path.name), path.name)):
        parts.append(f"<h3>{escape(path.name)}</h3>")
        try:
            _refuse_link(path, workdir)
            parts.append(_record(read_json(path, {}, "it is not shown")))
        except UserError as error:
            parts.append(f"<p>cannot be read: {escape(str(error))}</p>")
        pictures = [
            path.with_suffix(".png"),
            *(path.with_name(path.stem + end) for end in ("-bound.png", "-copies.png")),
        ]
        parts += [web_page.gallery([_picture(picture, workdir) for picture in pictures if picture.exists()])]
    return parts


def _record(record: dict) -> str:
    """Numbers and texts; parts with the same entries as columns of one table; the whole file in a fold."""
    shown = {key: value for key, value in record.items() if key != "settings"}
    flat = {key: part for key, part in shown.items() if isinstance(part, dict) and _is_flat(part)}
    columns = flat if len(flat) > 1 else {}
    parts = [web_page.table(_leaves({key: value for key, value in shown.items() if key not in columns}))]
    if columns:
        names = list(dict.fromkeys(name for column in columns.values() for name in column))
        rows = [
            (_words(name), *(_value(column.get(name, "")) for column in columns.values())) for name in names
        ]
        parts.append(web_page.table(rows, ("", *map(_words, columns))))
    parts.append(
        web_page.folded("the whole file", f"<pre class='scroll'>{escape(json.dumps(record, indent=1))}</pre>")
    )
    return "\n".join(parts)


def _is_flat(part: dict) -> bool:
    return not any(isinstance(value, dict | list) for value in part.values())


def _leaves(record: dict, prefix: str = "") -> list[tuple[str, str]]:
    """The numbers and texts of a record and of the records in it, named by their paths."""
    rows = []
    for key, value in record.items():
        name = f"{prefix}{_words(key)}"
        if isinstance(value, dict):
            rows += _leaves(value, f"{name}: ")
        elif not isinstance(value, list):
            rows.append((name, _value(value)))
    return rows


def _sample_files(workdir: Path) -> list[str]:
    parts = []
    for path in sorted((workdir / SAMPLES).glob("*.npz")):
        parts.append(f"<h3>{escape(path.name)}</h3>")
        try:
            _refuse_link(path, workdir)
            facts = read_facts(path)
            settings = parse_json(facts.pop("settings"), SETTINGS)
            rows = [("samples", settings["num_samples"]), *((_words(key), facts[key]) for key in facts)]
            parts.append(web_page.table(rows))
        except ValueError as error:
            parts.append(f"<p>cannot be read: {escape(str(error))}</p>")
        picture = path.with_suffix(".png")
        parts += [web_page.gallery([_picture(picture, workdir)])] if picture.exists() else []
    return parts


def _files(workdir: Path) -> list[str]:
    rows = []
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if name.as_posix() != REPORT_FILE and not any(part.startswith(".") for part in name.parts):
            with contextlib.suppress(FileNotFoundError):  # training may be removing old checkpoints
                if path.is_file():
                    rows.append((name.as_posix(), f"{path.stat().st_size:,} bytes"))
    return [web_page.folded(f"{len(rows)} files", web_page.table(rows))]


def _picture(path: Path, workdir: Path, caption: str = "") -> str:
    try:
        _refuse_link(path, workdir)
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST_PICTURE else b""
    except (OSError, UserError) as error:
        return f"<p>cannot be read: {escape(str(error))}</p>"
    if not data.startswith(PNG_SIGNATURE):
        return f"<p>{escape(path.name)} is no picture</p>"
    return web_page.image(data, "png", caption or path.name)


def _refuse_link(path: Path, workdir: Path) -> None:
    """Refuses a file that is in another place: whoever made the run may have linked it to a private one."""
    if not path.resolve().is_relative_to(workdir.resolve()):
        raise UserError(f"{path.name} is a link out of the run directory, and is not shown")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.6g}"
