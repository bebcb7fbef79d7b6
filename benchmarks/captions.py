"""Text-conditional samples: how often a recognizer reads off an image what its prompt says.

    python -m benchmarks.captions --shapes runs/text_shapes --digits runs/text_digits
    python -m benchmarks.captions --shapes runs/text_shapes --picture agreement.png
    python -m benchmarks.captions --shapes runs/cascade_shapes --scales 2

The runs are those of --config text_shapes and text_digits, or a cascade on shapes, whose images are read
after each stage and whose first stage is guided. Prompts are all single shapes, those whose combination of
colour and kind is not in the training set in a row of their own, and all digits with one attribute. A run on
--config.data.name=shapes draws scenes of two shapes besides, whose relation is read, too; in a new scene one
of the two is a new combination. The first row of each table has what the recognizers read off real images
under their own captions.

The picture has agreement against guidance scale. An error is the deviation of Beta(1 + k, 1 + n - k), the
posterior of a share of which k of n were right.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.recognizers import DigitRecognizer, ShapeRecognizer, scene_agreement
from score_diffusion import load_run, load_system
from score_diffusion.run.console import silence
from score_diffusion.run.data.captioned_digits import ATTRIBUTES, DIGIT_WORDS, HIGH, LOW, article
from score_diffusion.run.data.shapes import (
    COLOURS,
    KINDS,
    NEW,
    SIZES,
    Scene,
    Shape,
    ShapeSource,
    random_scene,
)
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.python.run import Run
from score_diffusion.run.python.system import System
from score_diffusion.run.systems.system import is_system

PROPERTIES = ("colour", "kind", "size")
SCALES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
PAIRS = 48  # prompts of two shapes in a row


@dataclass(frozen=True)
class Share:
    """How often something was right."""

    right: int
    count: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.count

    @property
    def error(self) -> float:
        """The deviation of the percentage given the counts and a flat prior; not 0 where all are right."""
        share = (self.right + 1) / (self.count + 2)
        return 100 * math.sqrt(share * (1 - share) / (self.count + 3))

    def __str__(self) -> str:
        return f"{self.percent:.1f} ± {self.error:.1f} %"


Row = dict[str, Share]
"""What was right, by property."""
Curves = dict[str, dict[float, Row]]
"""Rows by the group of their prompts and by guidance scale."""


def draw(
    model: Run | System, prompts: Sequence[str], each: int, scale: float, nfe: int
) -> dict[str, np.ndarray]:
    """Samples, `each` under every prompt in turn: of a system after each stage, by its name."""
    count = each * len(prompts)
    with silence():
        if isinstance(model, Run):
            return {"": model.sample(count, nfe=nfe, guidance="cfg", scale=scale, prompt=prompts).samples}
        settings = {f"{model.stages[0]}.cfg.scale": scale}
        drawn = model.sample(count, nfe=nfe, prompt=prompts, settings=settings)
        assert drawn.after is not None  # a system has stages
        return dict(drawn.after)


def single_shapes() -> dict[str, list[Scene]]:
    """Scenes of one shape: all combinations that training may have seen, and all new ones."""
    shapes = [Shape(*names) for names in itertools.product(SIZES, COLOURS, KINDS)]
    return {
        "seen": [Scene((shape,)) for shape in shapes if (shape.colour, shape.kind) not in NEW],
        "new": [Scene((shape,)) for shape in shapes if (shape.colour, shape.kind) in NEW],
    }


def pairs_of_shapes(count: int) -> dict[str, list[Scene]]:
    """Random scenes of two shapes, and such scenes whose first shape is a new combination."""
    rng = np.random.default_rng(0)
    seen = [random_scene(rng, (2,)) for _ in range(count)]
    new = []
    for k, scene in enumerate(random_scene(rng, (2,)) for _ in range(count)):
        colour, kind = NEW[k % len(NEW)]
        other = next(shape for shape in scene.shapes if shape.colour != colour)
        new.append(replace(scene, shapes=(Shape(scene.shapes[0].size, colour, kind), other)))
    return {"pairs, seen": seen, "pairs, new": new}


def agreement(agreements: Sequence[Mapping[str, bool]], names: Sequence[str]) -> Row:
    """How often each of the properties that the agreements have was right."""
    return {
        name: Share(sum(agrees[name] for agrees in agreements), len(agreements))
        for name in names
        if name in agreements[0]
    }


def print_heading(names: Sequence[str]) -> None:
    """The heading of a table of these properties."""
    print(f"{'':28}" + "".join(f"{name:>15}" for name in names))


def print_row(title: str, row: Row, names: Sequence[str] = PROPERTIES) -> None:
    """A row of a table: how often each of the properties is right."""
    counts = sorted({share.count for share in row.values()})
    shares = "".join(f"{str(row.get(name, '')):>15}" for name in names)
    print(f"{title:28}{shares}   of {' or '.join(map(str, counts))}", flush=True)


def shapes_table(path: str, scales: Sequence[float], each: int, nfe: int) -> Curves:
    """Colour, kind and size of shapes, seen in training and new, and the relation of two."""
    model = load_system(path) if is_system(Path(path)) else load_run(path)
    data = (model if isinstance(model, Run) else model.stage(model.stages[-1])).data
    groups, names = single_shapes(), PROPERTIES
    if data.name == "shapes":
        groups, names = groups | pairs_of_shapes(PAIRS), (*PROPERTIES, "relation")
    recognizer, curves = functools.cache(ShapeRecognizer), defaultdict[str, dict[float, Row]](dict)
    print_heading(names)
    for count in sorted({len(scenes[0].shapes) for scenes in groups.values()}):
        real = ShapeSource(1, "benchmark", 400, data.shape[-1], (count,))
        read = recognizer(data.shape[-1])(real.read(torch.arange(400)).numpy())
        found = [scene_agreement(real.scene(i), scene) for i, scene in enumerate(read)]
        print_row(f"real images, {count} each", agreement(found, names), names)
    for scale, (group, scenes) in itertools.product(scales, groups.items()):
        drawn = draw(model, [scene.captions()[0] for scene in scenes], each, scale, nfe)
        for stage, samples in drawn.items():
            images = ((samples + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
            read = recognizer(images.shape[-1])(images)
            found = [scene_agreement(scenes[k % len(scenes)], scene) for k, scene in enumerate(read)]
            title = f"{group}, {stage}" if stage else group
            curves[title][scale] = agreement(found, names)
            print_row(f"scale {scale:g}, {title}", curves[title][scale], names)
    return curves


def digit_prompts() -> tuple[list[str], list[tuple[int, str, int]]]:
    """All digits with one attribute, and for each its digit, the attribute and the third that is named."""
    prompts, asked = [], []
    for digit, (name, ends) in itertools.product(range(10), ATTRIBUTES.items()):
        for third, word in zip((LOW, HIGH), ends, strict=True):
            word_and_digit = (DIGIT_WORDS[digit], word) if name == "slant" else (word, DIGIT_WORDS[digit])
            prompts.append(" ".join([article(word_and_digit[0]), *word_and_digit]))
            asked.append((digit, name, third))
    return prompts, asked


def digits_table(path: str, scales: Sequence[float], each: int, nfe: int) -> Curves:
    """The digit, and whether an attribute is in the third that its prompt names: of digits that some training
    image shows so, and of those that none does, such as large sixes.
    """
    run, recognizer, digits = load_run(path), DigitRecognizer(), load_digits()
    assert digits.labels is not None and digits.test_labels is not None  # digits have labels
    (prompts, asked), names = digit_prompts(), ("digit", *ATTRIBUTES)
    thirds = recognizer.thirds(digits.train[:])
    shown = {
        (digit, name, third)
        for name, values in thirds.items()
        for digit, third in zip(digits.labels.tolist(), values.tolist(), strict=True)
    }
    print_heading(names)
    read, _ = recognizer(digits.test[:])
    right = read == digits.test_labels
    print_row("real images", {"digit": Share(int(right.sum()), len(right))}, names)
    curves: Curves = {"digits, seen": {}, "digits, new": {}}
    for scale in scales:
        samples = torch.from_numpy(draw(run, prompts, each, scale, nfe)[""])
        read, found = recognizer(((samples + 1) * 8).round())
        for group, rows in curves.items():
            of = [(k, asked[k % len(asked)]) for k in range(len(samples))]
            of = [(k, wanted) for k, wanted in of if (wanted in shown) == (group == "digits, seen")]
            row = {"digit": Share(sum(int(read[k]) == digit for k, (digit, _, _) in of), len(of))}
            for attribute in ATTRIBUTES:
                hits = [int(found[name][k]) == third for k, (_, name, third) in of if name == attribute]
                if hits:
                    row[attribute] = Share(sum(hits), len(hits))
            rows[scale] = row
            print_row(f"scale {scale:g}, {group}", row, names)
    return curves


def draw_picture(path: Path, curves: Curves) -> None:
    """Agreement against guidance scale: a panel for each group of prompts, a curve for each property."""
    figure = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (group, rows) in zip(all_axes, curves.items(), strict=True):
        for name in next(iter(rows.values())):
            shares = [row[name] for row in rows.values()]
            percents, errors = [share.percent for share in shares], [share.error for share in shares]
            axes.errorbar([*rows], percents, errors, fmt="o-", markersize=4, capsize=3, label=name)
        axes.set_title(group)
        axes.set_xlabel("guidance scale")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    all_axes[0].set_ylim(0, 103)
    all_axes[0].set_ylabel("read off as the prompt says, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help="run of --config text_shapes, or cascade on shapes")
    parser.add_argument("--digits", help="run of --config text_digits")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--each", type=int, default=5, help="samples under each prompt")
    parser.add_argument("--nfe", type=int, default=30)
    parser.add_argument("--picture", type=Path, help="where to draw agreement against scale, a .png file")
    options = parser.parse_args(argv)
    curves: Curves = {}
    for run, table in ((options.shapes, shapes_table), (options.digits, digits_table)):
        if run:
            curves |= table(run, options.scales, options.each, options.nfe)
    if options.picture:
        draw_picture(options.picture, curves)
        print(f"The picture is {options.picture}.")


if __name__ == "__main__":
    main()
