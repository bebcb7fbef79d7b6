"""The model card of a run: what it is, how to use it, its figures with their digests, its licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict
from torch import nn

from score_diffusion import __version__
from score_diffusion.run.config import changed_text
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.evaluation.resampling import Estimate
from score_diffusion.run.evaluation.results import figure_of, in_words, read_result
from score_diffusion.run.files import file_digest
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values

LICENCE_NOT_STATED = "other"
UNITS = {"bits_per_dim": "bits/dim", "negative_log_likelihood": "nats"}  # of likelihood files
LISTED_CLASSES = 20


@dataclass(frozen=True)
class Card:
    """What a card says."""

    name: str
    config: ConfigDict
    trained: TrainedModel
    licence: str | None
    """An identifier of the hub such as apache-2.0; None if none is stated."""
    picture: str
    """The file of a picture of samples; empty for none."""

    @property
    def data(self) -> DataInfo:
        return self.trained.data

    @property
    def weights(self) -> int:
        """How many weights the network has."""
        return sum(p.numel() for p in cast(nn.Module, self.trained.score).parameters())


def card_text(card: Card, folder: Path, weights: Path, results: Sequence[Path]) -> str:
    """A card in Markdown.

    Args:
        card: What it says.
        folder: The folder that it describes.
        weights: The folder of the checkpoint in there.
        results: The result files in there.
    """
    parts = [_header(card), f"# {card.name}\n", _what(card)]
    if card.picture:
        parts.append(f"![Samples]({card.picture})\n")
    parts += [_use(card), _figures(results), _files(folder, weights), _settings(card), _licence(card)]
    return "\n".join(part for part in parts if part)


def _header(card: Card) -> str:
    kind = ["pipeline_tag: unconditional-image-generation"] if _is_unconditional_image(card) else []
    lines = [
        "library_name: score-diffusion",
        f"license: {card.licence or LICENCE_NOT_STATED}",
        *kind,
        "tags:\n- score-diffusion\n- diffusion\n- score-based-generative-model",
    ]
    return "\n".join(("---", *lines, "---\n"))


def _is_unconditional_image(card: Card) -> bool:
    return len(card.data.shape) == 3 and not card.config.training.conditional


def _what(card: Card) -> str:
    data, network = card.data, card.config.model.name
    classes = ""
    if card.config.training.conditional and data.classes:
        names = ", ".join(f"`{_plain(name)}`" for name in data.classes[:LISTED_CLASSES])
        more = ", ..." if len(data.classes) > LISTED_CLASSES else ""
        classes = f" It is conditioned on {len(data.classes)} classes: {names}{more}."
    return (
        f"A score-based diffusion model of `{_plain(data.name)}`, samples of shape {data.shape} "
        f"({data.kind}), under {card.trained.sde}: a `{network}` of {card.weights:,} weights after "
        f"{card.trained.step:,} training steps on {data.num_train:,} samples.{classes}\n"
    )


def _use(card: Card) -> str:
    return f"""## Use

```python
from score_diffusion import Run

run = Run.from_pretrained("{card.name}")
samples = run.sample(16)
samples.save("samples.png")
```

It is a run directory of the package score-diffusion {__version__}:
`score-diffusion --mode sample --workdir FOLDER` draws from it, too.
"""


def _figures(results: Sequence[Path]) -> str:
    rows = []
    for path in results:
        record = read_json(path, {}, "repair or remove it")
        count = record.get("num_samples", record.get("num_images", "?"))
        source = f"{path.name} | `{file_digest(path)}`"
        rows += [
            f"| {name} | {in_words(figure)} {UNITS.get(name, '')} | {count} | {source} |"
            for name, figure in _figures_of(path, record).items()
        ]
    if not rows:
        return ""
    header = (
        "## Figures\n\n| figure | value ± standard error | samples | file | SHA-256 |\n|---|---|---|---|---|"
    )
    return "\n".join((header, *rows, ""))


def _figures_of(path: Path, record: dict[str, Any]) -> dict[str, Estimate]:
    """The figures of a result file: a likelihood, or the distances of samples."""
    number = Values(kind=float)
    if path.name.startswith("evaluation"):
        result = read_result(path)
        found = {name: figure_of(result, name) for name in result["samples"]}
        return {_plain(name): figure for name, figure in found.items() if figure is not None}
    error = record.get("standard_error")
    return {
        name: Estimate(record[name], error if number.take(error) else None)
        for name in UNITS
        if number.take(record.get(name))
    }


def _files(folder: Path, weights: Path) -> str:
    rows = [
        f"| {path.relative_to(folder)} | `{file_digest(path)}` |"
        for path in sorted(weights.glob("*.safetensors"))
    ]
    note = "`ema.safetensors` holds the averaged weights that samples are drawn with."
    return "\n".join(("## Weights\n", "| file | SHA-256 |\n|---|---|", *rows, f"\n{note}\n"))


def _settings(card: Card) -> str:
    return f"## Settings that differ from the defaults\n\n```\n{changed_text(card.config)}\n```\n"


def _licence(card: Card) -> str:
    words = card.licence or "not stated by whoever trained the model: ask before you use it"
    return f"## Licence\n\nOf the weights: {words}. The data have a licence of their own.\n"


def _plain(text: str) -> str:
    """A name, which may be that of any folder, without line breaks, backticks or markup."""
    return "".join(c if c.isprintable() and c not in "`|<>" else "?" for c in text)
