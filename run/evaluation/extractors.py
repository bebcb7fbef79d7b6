"""Features that distances are measured on: an extractor turns samples into vectors.

    pixels                the samples themselves
    FILE.py:FUNCTION      what a function of the user's returns
    RUN                   the last features of a classifier that --config classifier_features has trained
    WEIGHTS.pth           the Inception-v3 network of FID, with weights on the disk

An extractor is called with samples in the user's units, pixels in [-1, 1] or numbers, and carries a digest of
everything that decides its features.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.user_function import find_function, sentence
from score_diffusion.run.errors import UserError

Extracted = tuple[np.ndarray, np.ndarray | None]
"""Features (n, F), and of classifiers the probabilities of the classes (n, K)."""

BATCH = 64  # images that a network works on at a time
KEY = "evaluation.features"


class Extractor(Protocol):
    """Computes features of samples."""

    words: str
    """What the features are, in words."""
    digest: str
    """Of everything that decides them."""
    is_standard: bool
    """Whether they are the features of published figures."""

    def __call__(self, samples: np.ndarray) -> Extracted:
        """Features of samples in the user's units, shape (n, *shape)."""


class RawValues:
    """The samples themselves: pixels in [-1, 1], or numbers, standardized as the training data are.

    Without standardization a column of points in a small unit would decide all distances.
    """

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling
        numbers = "standardized numbers" if scaling.standardizes else "raw numbers"
        self.words = "raw pixels" if scaling.levels else numbers
        self.digest, self.is_standard = digest_of("raw values", repr(scaling)), False

    def __call__(self, samples: np.ndarray) -> Extracted:
        values = samples if self._scaling.levels else self._scaling.user_to_stored(samples)
        return values.reshape(len(values), -1), None


class UserFeatures:
    """A function of the user's: `function(samples)` with a tensor (n, *shape) in the user's units.

    It returns features (n, F), or a pair of features and probabilities of classes (n, K).

    Args:
        path: FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.

    Raises:
        UserError: If there is no such function.
    """

    def __init__(self, path: str) -> None:
        self._function, self._path = find_function(path, KEY), path
        self.words = f"the function {path}"
        self.digest = digest_of("function", path.rpartition(":")[2], _source(self._function))
        self.is_standard = False

    def __call__(self, samples: np.ndarray) -> Extracted:
        try:
            with torch.no_grad():
                given = self._function(torch.from_numpy(np.ascontiguousarray(samples)))
            features, probabilities = given if isinstance(given, tuple) else (given, None)
            features = np.asarray(features, np.float32)
            probabilities = None if probabilities is None else np.asarray(probabilities, np.float32)
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"{KEY}={self._path}: the function raised {sentence(error)}") from error
        for array in (features, probabilities):
            if array is not None and (array.ndim != 2 or len(array) != len(samples)):
                raise UserError(
                    f"{KEY}={self._path}: the function must return features of shape (n, F) for n samples, "
                    f"or a pair with probabilities (n, K), got {array.shape} for n = {len(samples)}"
                )
        return features, probabilities


def _source(function: object) -> str:
    try:
        return Path(inspect.getfile(function)).read_text()  # type: ignore[arg-type]
    except (OSError, TypeError):  # built in, or of a compiled module
        return repr(function)


class Inception:
    """The Inception-v3 network of FID, as torch-fidelity has it: 2048 features, 1008 classes.

    Images of any size are stretched to 299x299 as FID's first implementation does; grey ones are repeated to
    three channels, an alpha channel is left out.

    Args:
        weights: torch-fidelity's file of weights, weights-inception-2015-12-05-6726825d.pth.
        shape: Of a sample.
        device: Where to compute.

    Raises:
        UserError: If torch-fidelity is not installed, the samples are no images, or the file does not
            hold the network's weights.
    """

    def __init__(self, weights: Path, shape: tuple[int, ...], device: torch.device) -> None:
        if len(shape) != 3:
            raise UserError(f"{KEY}={weights}: the Inception network takes images, not samples of {shape}")
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"{KEY}={weights}: the Inception network needs the package torch-fidelity ({error}): "
                "install it, or choose other features"
            ) from error
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run any code
            network = FeatureExtractorInceptionV3("inception", ["2048", "logits"], str(weights))
        except Exception as error:
            raise UserError(
                f"{KEY}={weights} does not hold the weights of torch-fidelity's Inception network: "
                f"{sentence(error)}"
            ) from error
        self._network, self._device = network.to(device), device
        self.words = "Inception-v3 features"
        self.digest = digest_of("inception", hashlib.sha256(weights.read_bytes()).hexdigest())
        self.is_standard = True

    def __call__(self, samples: np.ndarray) -> Extracted:
        colour = samples[:, :3] if samples.shape[1] > 2 else samples[:, :1].repeat(3, axis=1)
        levels = torch.from_numpy((127.5 * (colour + 1)).round().clip(0, 255).astype(np.uint8))
        features, probabilities = [], []
        for batch in levels.split(BATCH):
            pooled, logits = self._network(batch.to(self._device))
            features.append(pooled.cpu().numpy())
            probabilities.append(logits.softmax(1).cpu().numpy())
        return np.concatenate(features), np.concatenate(probabilities)


class ClassifierFeatures:
    """The last features of a classifier that was trained on the data, and its probabilities of the classes.

    Args:
        classify: `classify(x)` gives features (n, F) and logits (n, K) of model inputs x, on their device.
        scaling: That of the data.
        device: Where to compute.
        words: What to call the features.
        weights: Digest of the classifier.
    """

    is_standard = False

    def __init__(
        self,
        classify: Callable[[Tensor], tuple[Tensor, Tensor]],
        scaling: Scaling,
        device: torch.device,
        words: str,
        weights: str,
    ) -> None:
        self._classify, self._scaling, self._device = classify, scaling, device
        self.words, self.digest = words, digest_of("classifier", weights)

    def __call__(self, samples: np.ndarray) -> Extracted:
        inputs = samples if self._scaling.levels else self._scaling.user_to_stored(samples)
        features, probabilities = [], []
        for batch in torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).split(BATCH):
            with torch.no_grad():
                found, logits = self._classify(batch.to(self._device))
            features.append(found.float().cpu().numpy())
            probabilities.append(logits.float().softmax(1).cpu().numpy())
        return np.concatenate(features), np.concatenate(probabilities)


def digest_of(*parts: object) -> str:
    """A digest of texts and numbers."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
