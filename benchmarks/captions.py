"""Text-conditional samples: how often a recognizer reads off an image what its prompt says.

    python -m benchmarks.captions --shapes runs/text_shapes --digits runs/text_digits

The runs are those of --config text_shapes and text_digits. Prompts are all single shapes, those whose
combination of colour and kind is not in the training set in a row of their own, and all digits with one
attribute. The first row of each table has what the recognizers read off real images under their own captions.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from score_diffusion import load_run
from score_diffusion.run.data.captioned_digits import ATTRIBUTES, DIGIT_WORDS, HIGH, LOW, article
from score_diffusion.run.data.shapes import COLOURS, KINDS, NEW, SIZES, Scene, Shape, ShapeSource
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.evaluation.recognizers import DigitRecognizer, ShapeRecognizer, scene_agreement

PROPERTIES = ("colour", "kind", "size")


def draw(run: str, prompts: Sequence[str], each: int, scale: float, nfe: int) -> np.ndarray:
    """Samples of a run, `each` under every prompt in turn."""
    count = each * len(prompts)
    return load_run(run).sample(count, nfe=nfe, guidance="cfg", scale=scale, prompt=prompts).samples


def shapes_table(run: str, scales: Sequence[float], each: int, nfe: int) -> None:
    """Colour, kind and size of single shapes, seen in training and new."""
    words = [Shape(*names) for names in itertools.product(SIZES, COLOURS, KINDS)]
    groups = {
        "seen": [shape for shape in words if (shape.colour, shape.kind) not in NEW],
        "new": [shape for shape in words if (shape.colour, shape.kind) in NEW],
    }
    recognizer, real = ShapeRecognizer(16), ShapeSource(1, "benchmark", 400, 16, (1,))
    read = recognizer(real.read(torch.arange(400)).numpy())
    print(f"{'':28}" + "".join(f"{name:>9}" for name in PROPERTIES))
    print_agreement("real images", [scene_agreement(real.scene(i), scene) for i, scene in enumerate(read)])
    for scale, (name, shapes) in itertools.product(scales, groups.items()):
        samples = draw(run, [str(shape) for shape in shapes], each, scale, nfe)
        read = recognizer(((samples + 1) * 127.5).round().clip(0, 255).astype(np.uint8))
        asked = [Scene((shapes[k % len(shapes)],)) for k in range(len(read))]
        print_agreement(
            f"scale {scale:g}, {name}", [scene_agreement(*pair) for pair in zip(asked, read, strict=True)]
        )


def print_agreement(name: str, agreements: Sequence[Mapping[str, bool]]) -> None:
    """A row of a table: how often each of the properties agrees."""
    shares = [100 * np.mean([agrees[key] for agrees in agreements]) for key in PROPERTIES]
    print(f"{name:28}" + "".join(f"{share:8.1f}%" for share in shares) + f"   of {len(agreements)}")


def digits_table(run: str, scales: Sequence[float], each: int, nfe: int) -> None:
    """The digit, and whether an attribute is in the third that its prompt names."""
    recognizer, digits = DigitRecognizer(), load_digits()
    assert digits.test_labels is not None  # digits have labels
    prompts, asked = [], []
    for digit, (name, ends) in itertools.product(range(10), ATTRIBUTES.items()):
        for third, word in zip((LOW, HIGH), ends, strict=True):
            word_and_digit = (DIGIT_WORDS[digit], word) if name == "slant" else (word, DIGIT_WORDS[digit])
            prompts.append(" ".join([article(word_and_digit[0]), *word_and_digit]))
            asked.append((digit, name, third))
    print(f"{'':24}" + "".join(f"{name:>10}" for name in ("digit", *ATTRIBUTES)))
    read, _ = recognizer(digits.test[:])
    print(f"{'real images':24}{100 * (read == digits.test_labels).double().mean():9.1f}%")
    for scale in scales:
        samples = torch.from_numpy(draw(run, prompts, each, scale, nfe))
        read, thirds = recognizer(((samples + 1) * 8).round())
        rows = [asked[k % len(asked)] for k in range(len(samples))]
        right = [int(read[k]) == digit for k, (digit, _, _) in enumerate(rows)]
        shares = [np.mean(right)]
        for attribute in ATTRIBUTES:
            hits = [
                int(thirds[name][k]) == third for k, (_, name, third) in enumerate(rows) if name == attribute
            ]
            shares.append(np.mean(hits))
        print(f"{f'scale {scale:g}':24}" + "".join(f"{100 * share:9.1f}%" for share in shares))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help="run of --config text_shapes")
    parser.add_argument("--digits", help="run of --config text_digits")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--each", type=int, default=5, help="samples under each prompt")
    parser.add_argument("--nfe", type=int, default=30)
    options = parser.parse_args(argv)
    for run, table in ((options.shapes, shapes_table), (options.digits, digits_table)):
        if run:
            table(run, options.scales, options.each, options.nfe)


if __name__ == "__main__":
    main()
