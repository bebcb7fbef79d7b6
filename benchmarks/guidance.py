"""Guided digits: how many are recognized as the requested class, and how much of its diversity is left.

    python -m benchmarks.guidance      # trains what is missing, prints a table and draws a picture
    python -m benchmarks.guidance --scales 1 2 --samples 10 --picture quick.png      # a quick look

The recognizer is a support vector machine that knows nothing of the models, fitted to the training digits.
Diversity is the sliced 2-Wasserstein distance of the samples of a class to its held-out digits, the mean over
classes. The last line has the recognizer's accuracy on held-out digits, and the distance of as many training
digits in place of the samples.

    cfg          classifier-free guidance of a model trained with classes
    classifier   a noise-conditional classifier guides a model trained without classes
    clip         a caption, "a handwritten seven", guides the same model by two encoders
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.svm import SVC

from score_diffusion import load_run
from score_diffusion.run.data.class_captions import captions_of
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.evaluation.wasserstein import sliced_wasserstein
from score_diffusion.run.main import main as command

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "guidance.png"
CLASSES = tuple("0123456789")
METHODS = {"cfg": "conditional", "classifier": "unconditional", "clip": "unconditional"}
SCALES = {"cfg": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0), "classifier": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)}
SCALES["clip"] = SCALES["classifier"]
Point = tuple[float, float, float, int]
"""Scale, share recognized, distance, network evaluations."""


def train(workdir: Path, methods: Sequence[str], steps: int | None) -> None:
    """Trains the models of the methods that are not there."""
    limit = [] if steps is None else [f"--config.training.steps={steps}"]
    unconditional = f"--config.training.run={workdir / 'unconditional'}"
    for name, arguments in (
        ("conditional", ["vpsde_cfg"]),
        ("unconditional", ["vpsde"]),
        ("classifier", ["classifier", unconditional]),
        ("clip", ["clip_digits", unconditional]),
    ):
        folder, is_needed = workdir / name, name in {*methods, *(METHODS[method] for method in methods)}
        if is_needed and not (folder / "checkpoints").exists():
            code = command(["--mode", "train", "--config", *arguments, "--workdir", str(folder), *limit])
            if code:
                raise SystemExit(code)


def draw(workdir: Path, method: str, scale: float, count: int, nfe: int) -> tuple[np.ndarray, int]:
    """Guided samples (10, count, 1, 8, 8), class by class, and their network evaluations."""
    run = load_run(workdir / METHODS[method])
    if method != "clip":
        settings = {} if method == "cfg" else {"classifier.run": str(workdir / "classifier")}
        samples = run.sample(
            10 * count, label=CLASSES, guidance=method, scale=scale, nfe=nfe, settings=settings
        )
        return samples.samples.reshape(count, 10, 1, 8, 8).swapaxes(0, 1), samples.nfe
    drawn = []
    for k, captions in enumerate(captions_of(CLASSES)):
        settings = {"clip.run": str(workdir / "clip"), "clip.prompt": captions[0]}
        samples = run.sample(count, guidance=method, scale=scale, nfe=nfe, seed=k, settings=settings)
        drawn.append(samples.samples)
    return np.stack(drawn), samples.nfe


class Judge:
    """Recognizes digits, and compares them with held-out ones.

    Args:
        count: Samples of a class.
    """

    def __init__(self, count: int) -> None:
        data = load_digits()
        train, test = (
            data.scaling.stored_to_user(part).numpy().reshape(len(part), -1)
            for part in (data.train, data.test)
        )
        labels, test_labels = data.conditions["label"].numpy(), data.test_conditions["label"].numpy()
        self._recognizer = SVC(C=10.0).fit(train, labels)
        self.accuracy = self._recognizer.score(test, test_labels)
        self._held_out = [test[test_labels == k] for k in range(10)]
        real = np.stack([train[labels == k][:count] for k in range(10)])
        self.real = self.accuracy, self(real)[1]

    def __call__(self, samples: np.ndarray) -> tuple[float, float]:
        """The share of samples (10, count, ...) that is recognized, and their distance to held-out digits."""
        flat = samples.reshape(10, samples.shape[1], -1)
        right = [(self._recognizer.predict(of_class) == k).mean() for k, of_class in enumerate(flat)]
        pairs = zip(flat, self._held_out, strict=True)
        return float(np.mean(right)), float(np.mean([sliced_wasserstein(a, b) for a, b in pairs]))


def draw_picture(path: Path, curves: dict[str, list[Point]], real: tuple[float, float]) -> None:
    """The share recognized over the distance, a curve for each method with its scales."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method, points in curves.items():
        scales, right, distances, _ = zip(*points, strict=True)
        (line,) = axes.plot(distances, [100 * share for share in right], "o-", label=method)
        offset = {"cfg": (0, 7), "classifier": (6, -12), "clip": (-6, -14)}[method]  # points often coincide
        for scale, share, distance in zip(scales, right, distances, strict=True):
            place = {"xytext": offset, "textcoords": "offset points", "color": line.get_color()}
            axes.annotate(f"{scale:g}", (distance, 100 * share), fontsize=9, ha="center", **place)
    axes.margins(0.06, 0.08)
    axes.plot(real[1], 100 * real[0], "k*", markersize=12, label="real digits")
    axes.set_xlabel("distance to held-out digits of the class (sliced W2)")
    axes.set_ylabel("recognized as the class asked for, %")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "guidance", help="the trained models")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--scales", nargs="+", type=float, help="instead of the scales of each method")
    parser.add_argument("--samples", type=int, default=40, help="of each class")
    parser.add_argument("--nfe", type=int, default=20, help="of the sampler; cfg takes twice it")
    parser.add_argument("--steps", type=int, help="training steps, instead of those of the experiments")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args(argv)
    train(arguments.workdir, arguments.methods, arguments.steps)
    judge, curves = Judge(arguments.samples), {}
    print("\n| guidance | scale | recognized | distance | NFE |\n|---|---|---|---|---|")
    for method in arguments.methods:
        curves[method] = []
        for scale in arguments.scales or SCALES[method]:
            samples, nfe = draw(arguments.workdir, method, scale, arguments.samples, arguments.nfe)
            right, distance = judge(samples)
            curves[method].append((scale, right, distance, nfe))
            print(f"| {method} | {scale:g} | {100 * right:.1f} % | {distance:.4f} | {nfe} |", flush=True)
    print(f"| real digits | | {100 * judge.real[0]:.1f} % | {judge.real[1]:.4f} | |")
    draw_picture(arguments.picture, curves, judge.real)
    print(f"The picture is {arguments.picture}.")


if __name__ == "__main__":
    main()
