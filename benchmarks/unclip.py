"""unCLIP on shapes: what a recognizer reads off images of prompts and off variations, with and without prior.

    python -m benchmarks.unclip --system runs/unclip_shapes

The system is one of --config unclip_shapes. The first row has how often the encoders find the caption of a
held-out image among those of all shapes. The next have how often colour, kind and size are as requested: of
prompts through the prior with the best of two embeddings and with one, of prompts whose own embedding goes
to the decoder (Ramesh et al., 2022, Section 5.1), and of variations of held-out images. The last table has
how similar the embeddings of images on a path between two are to those of its ends.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.captions import PROPERTIES, agreement, print_heading, print_row, single_shapes
from benchmarks.recognizers import ShapeRecognizer, scene_agreement
from score_diffusion.run.builders.encoders import load_contrastive_encoders
from score_diffusion.run.data.shapes import COLOURS, KINDS, SIZES, Scene, Shape, ShapeSource
from score_diffusion.run.encoded_data.embeddings import ContrastiveEncoders
from score_diffusion.run.python.system import System, load_system

SIDE = 16
WAYS: dict[str, dict[str, object]] = {
    "prior, best of 2": {"unclip.best_of": 2},
    "prior, 1": {"unclip.best_of": 1},
    "text embedding, no prior": {"unclip.prior": False},
}


def levels(samples: np.ndarray) -> np.ndarray:
    """Grey levels, uint8, of pixels in [-1, 1]."""
    return ((samples + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def held_out(count: int) -> tuple[Tensor, list[Scene]]:
    """Images that no stage was trained on, in [-1, 1], and what they show."""
    source = ShapeSource(1, "benchmark", count, SIDE, (1,))
    images = 2 * source.read(torch.arange(count)).float() / 255 - 1
    return images, [source.scene(i) for i in range(count)]


def retrieval_table(encoders: ContrastiveEncoders, count: int) -> None:
    """How often the nearest of all captions is that of the image."""
    images, scenes = held_out(count)
    shapes = [Shape(*names) for names in itertools.product(SIZES, COLOURS, KINDS)]
    vocabulary = encoders.info.vocabulary
    assert vocabulary is not None  # of captioned shapes
    texts = encoders.encode_text(vocabulary.encode([str(shape) for shape in shapes]))
    with torch.no_grad():
        nearest = (encoders.encode(images) @ texts.T).argmax(1)
    found = [scene_agreement(scene, Scene((shapes[k],))) for scene, k in zip(scenes, nearest, strict=True)]
    print_row(f"nearest of {len(shapes)} captions", agreement(found, PROPERTIES))


def agreement_table(system: System, each: int, nfe: int, settings: Mapping[str, object]) -> None:
    """Colour, kind and size of prompts, seen in training and new, and of variations."""
    recognizer = ShapeRecognizer(SIDE)
    for (way, options), (group, scenes) in itertools.product(WAYS.items(), single_shapes().items()):
        prompts = [scene.captions()[0] for scene in scenes]
        drawn = system.sample(each * len(scenes), prompt=prompts, nfe=nfe, settings={**options, **settings})
        read = recognizer(levels(drawn.samples))
        found = [scene_agreement(scenes[k % len(scenes)], scene) for k, scene in enumerate(read)]
        print_row(f"{way}, {group}", agreement(found, PROPERTIES))
    images, scenes = held_out(each * 16)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images.numpy())
        chosen = {"unclip.images": str(Path(folder) / "images.npy"), **settings}
        read = recognizer(levels(system.sample(len(images), nfe=nfe, settings=chosen).samples))
    found = [scene_agreement(*pair) for pair in zip(scenes, read, strict=True)]
    print_row("variations of images", agreement(found, PROPERTIES))


def path_table(
    system: System, encoders: ContrastiveEncoders, pairs: int, points: int, settings: Mapping[str, object]
) -> None:
    """The cosines of the embeddings of images on a path with those of its ends."""
    images, _ = held_out(2 * pairs)
    with torch.no_grad():
        ends = encoders.encode(images).unflatten(0, (pairs, 2))
    rows = []
    for k, pair in enumerate(images.unflatten(0, (pairs, 2))):
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "pair.npy", pair.numpy())
            chosen = {"unclip.images": str(Path(folder) / "pair.npy"), "unclip.path": True, **settings}
            drawn = torch.from_numpy(system.sample(points, settings=chosen).samples)
        with torch.no_grad():
            rows.append(encoders.encode(drawn) @ ends[k].T / ends.shape[2])
    cosines = torch.stack(rows)  # (pairs, points, 2)
    print(f"{'place':24}" + "".join(f"{place:8.2f}" for place in torch.linspace(0, 1, points).tolist()))
    for name, means in zip(("first image", "second image"), cosines.mean(0).T, strict=True):
        print(f"{f'cosine with {name}':24}" + "".join(f"{value:8.2f}" for value in means.tolist()))
    steps = cosines.diff(dim=1)
    right = torch.cat([steps[..., 0] <= 0, steps[..., 1] >= 0]).double().mean()
    print(f"steps in the right direction: {100 * right:.0f} % of {steps.numel()}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", required=True, help="system of --config unclip_shapes")
    parser.add_argument("--each", type=int, default=3, help="samples under each prompt")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--scale", type=float, default=2.0, help="guidance of the decoder")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of images with a path between them")
    parser.add_argument("--points", type=int, default=7, help="images on a path")
    options = parser.parse_args(argv)
    system = load_system(options.system)
    encoders = load_contrastive_encoders(str(system.path / system.stages[0]), None)
    settings = {f"{system.stages[-1]}.cfg.scale": options.scale, "seed": options.seed}
    print_heading(PROPERTIES)
    retrieval_table(encoders, 400)
    agreement_table(system, options.each, options.nfe, settings)
    path_table(system, encoders, options.pairs, options.points, settings)


if __name__ == "__main__":
    main()
