from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.extractors import Inception, RawValues, UserFeatures

FUNCTIONS = """
def sums(x):
    return x.flatten(1).sum(1, keepdim=True)

def with_classes(x):
    return sums(x).numpy(), x.flatten(1).softmax(1)

def flat(x):
    return x.flatten()

def broken(x):
    raise RuntimeError("no such luck")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "features.py"
    path.write_text(FUNCTIONS)
    return path


def test_pixels_are_their_own_features_and_points_are_standardized():
    images = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 1, 3, 4)
    features, probabilities = RawValues(Scaling(levels=256))(images)
    np.testing.assert_array_equal(features, images.reshape(2, 12))
    assert probabilities is None
    points = RawValues(Scaling(None, (1.0, 0.0), (1.0, 1e6)))
    np.testing.assert_allclose(points(np.array([[2.0, 3e6]]))[0], [[1, 3]])
    assert points.words == "standardized numbers"
    assert RawValues(Scaling()).words == "raw numbers"


def test_a_function_of_the_user_gives_features_and_probabilities(file: Path):
    samples = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3)
    features, none = UserFeatures(f"{file}:sums")(samples)
    np.testing.assert_allclose(features, [[15], [51]])
    assert none is None
    features, probabilities = UserFeatures(f"{file}:with_classes")(samples)
    assert features.shape == (2, 1) and probabilities.shape == (2, 6)


def test_the_digest_of_a_function_follows_its_name_and_its_source(file: Path):
    digests = [UserFeatures(f"{file}:{name}").digest for name in ("sums", "sums", "with_classes")]
    file.write_text(FUNCTIONS.replace("sum(1", "mean(1"))
    digests.append(UserFeatures(f"{file}:sums").digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", r"evaluation.features .*must define a function none\(\)"),
        ("broken", "the function raised RuntimeError: no such luck"),
        ("flat", r"of shape \(n, F\) for n samples"),
    ],
)
def test_a_function_that_gives_no_features_is_refused(name: str, message: str, file: Path):
    with pytest.raises(UserError, match=message):
        UserFeatures(f"{file}:{name}")(np.zeros((2, 3), np.float32))


def test_the_inception_network_refuses_what_it_cannot_use(tmp_path: Path):
    weights = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="takes images, not samples of"):
        Inception(weights, (2,), torch.device("cpu"))
    with pytest.raises(UserError, match="torch-fidelity"):  # missing, or not these weights
        Inception(weights, (1, 8, 8), torch.device("cpu"))


@pytest.mark.slow
def test_inception_features_of_grey_and_oblong_images(tmp_path: Path):
    """With random weights: what is tested is the way into and out of torch-fidelity's network."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    weights = tmp_path / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        network = fidelity.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), weights)
    extractor = Inception(weights, (1, 6, 9), torch.device("cpu"))
    grey = RNG_IMAGES[:, :1]
    features, probabilities = extractor(grey)
    assert features.shape == (3, 2048) and probabilities.shape == (3, 1008)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    colour, _ = extractor(np.repeat(grey, 3, axis=1))
    with_alpha, _ = extractor(np.concatenate([np.repeat(grey, 3, axis=1), RNG_IMAGES[:, :1]], axis=1))
    np.testing.assert_array_equal(features, colour)
    np.testing.assert_array_equal(features, with_alpha)
    levels = torch.from_numpy((127.5 * (np.repeat(grey, 3, axis=1) + 1)).round().astype(np.uint8))
    np.testing.assert_allclose(features, network(levels)[0].numpy(), rtol=1e-4, atol=1e-5)


RNG_IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 3, 6, 9)).astype(np.float32)
