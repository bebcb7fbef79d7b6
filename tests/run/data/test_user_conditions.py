"""A user's own conditions: their shapes, their names in files, and where they go."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data.checks import warn_of_oddities
from score_diffusion.run.errors import UserError
from tests.run.data.helpers import load

RNG = np.random.default_rng(0)
N = 12
IMAGES = RNG.integers(0, 256, (N, 4, 6), np.uint8)
POINTS = RNG.normal(size=(N, 2))
VECTOR = RNG.normal(size=(N, 3))
TOKENS, MASK = RNG.normal(size=(N, 5, 2)).astype(np.float32), RNG.random((N, 5)) < 0.5


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("samples", "kind", "array", "expected"),
    [
        (POINTS, "vector", VECTOR, VECTOR),
        (POINTS, "vector", np.arange(N), np.arange(N)[:, None]),
        (POINTS, "tokens", TOKENS, TOKENS),
        (IMAGES, "image", IMAGES, IMAGES[:, None] / 127.5 - 1),
        (IMAGES, "image", np.stack([IMAGES] * 3, -1), np.stack([IMAGES] * 3, 1) / 127.5 - 1),
        (IMAGES, "image", VECTOR[:, :2, None, None] * np.ones((4, 6)), None),
        (RNG.normal(size=(N, 1, 9)), "image", RNG.normal(size=(N, 2, 9)), None),
    ],
)
def test_conditions_come_with_their_samples(
    samples: np.ndarray, kind: str, array: np.ndarray, expected: np.ndarray | None, tmp_path: Path
):
    """Those of the held-out part with that, whether the file has one or a part is held out."""
    expected = torch.from_numpy(np.float32(array if expected is None else expected))
    parts = {f"cond_{kind}_train": array[:8], f"cond_{kind}_test": array[8:]}
    data = load(save(tmp_path / "a.npz", x_train=samples[:8], x_test=samples[8:], **parts))
    assert data.condition_sizes == {kind: expected.shape[1 if kind == "image" else -1]}
    torch.testing.assert_close(data.conditions[kind], expected[:8])
    torch.testing.assert_close(data.test_conditions[kind], expected[8:])
    split = load(save(tmp_path / "b.npz", x_train=samples, **{f"cond_{kind}_train": array}))
    together = torch.cat([split.conditions[kind], split.test_conditions[kind]])
    assert len(split.test) == len(split.test_conditions[kind]) > 0
    for held, given in ((together, expected), (expected, together)):
        assert torch.cdist(held.flatten(1), given.flatten(1)).amin(1).max() < 1e-3


def test_each_row_stays_with_its_sample(tmp_path: Path):
    numbers = np.arange(40.0)
    data = load(save(tmp_path / "a.npz", x_train=numbers[:, None], cond_vector_train=numbers))
    for samples, cond in ((data.train, data.conditions), (data.test, data.test_conditions)):
        torch.testing.assert_close(data.scaling.stored_to_user(samples).float(), cond["vector"])


def test_arrays_that_are_mapped_from_files_are_copied(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    arrays = {"x_train": POINTS, "cond_vector_train": np.float32(VECTOR), "cond_tokens_train": TOKENS}
    for name, array in {**arrays, "cond_mask_train": MASK}.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = load(tmp_path)
    assert data.condition_sizes == {"vector": 3, "tokens": 2} and not recwarn.list
    data.conditions["vector"].zero_()


def test_masks_tokens_and_labels_come_together(tmp_path: Path):
    arrays = dict(x_train=IMAGES, y_train=np.arange(N) % 3, cond_tokens_train=TOKENS, cond_mask_train=MASK)
    data = load(save(tmp_path / "a.npz", **arrays))
    assert data.conditions.keys() == {"label", "tokens", "mask"} == data.test_conditions.keys()
    assert data.condition_sizes == {"tokens": 2, "label": 3} and data.conditions["mask"].dtype == torch.bool


def test_other_conditions_are_other_data(tmp_path: Path):
    a, b = (load(save(tmp_path / f"{k}.npz", x_train=POINTS, cond_vector_train=VECTOR + k)) for k in range(2))
    assert a.digest != b.digest


def test_a_function_may_return_conditions(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef load():\n    x = torch.randn(20, 2)\n"
        "    return {'x_train': x, 'cond_vector_train': 2 * x}\n"
    )
    data = load(f"{tmp_path}/mine.py:load")
    user = data.scaling.stored_to_user(data.train)
    torch.testing.assert_close(data.conditions["vector"], 2 * user, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(cond_vector_train=VECTOR[:7]), "cond_vector_train of .* (N, V) with N = 12.* shape (7, 3)"),
        (
            dict(cond_vector_train=TOKENS),
            "must be numbers of shape (N, V) .* got float32 of shape (12, 5, 2)",
        ),
        (dict(cond_vector_train=np.array(["a"] * N)), "must be numbers of shape (N, V)"),
        (dict(cond_vector_train=VECTOR * np.nan), "cond_vector_train of .* holds NaN or infinite values"),
        (dict(cond_vector_train=VECTOR * 1e300), "more than float32 can hold"),
        (dict(cond_tokens_train=VECTOR), "must be numbers of shape (N, L, D)"),
        (dict(cond_mask_train=MASK), "says which tokens are valid: give cond_tokens, too"),
        (dict(cond_tokens_train=TOKENS, cond_mask_train=MASK[:, :4]), "the shape (12, 5) of the tokens, got"),
        (dict(cond_tokens_train=TOKENS, cond_mask_train=MASK * 2), "must be true or false for each token"),
        (
            dict(cond_image_train=IMAGES[:, :3]),
            "size of the samples, (4, 6): .* got uint8 of shape (12, 3, 6)",
        ),
        (dict(cond_image_train=POINTS), "must be images of the size of the samples, (4, 6)"),
        (dict(cond_image_train=VECTOR[:, 0]), "must be images of the size of the samples"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arrays: dict[str, np.ndarray], message: str, tmp_path: Path):
    pattern = re.escape(message).replace(r"\.\*", ".*").replace(r"\ ", " ")
    with pytest.raises(UserError, match=pattern):
        load(save(tmp_path / "a.npz", x_train=IMAGES, **arrays))


def test_images_are_no_conditions_of_points(tmp_path: Path):
    with pytest.raises(UserError, match="must be images of the size of the samples"):
        load(save(tmp_path / "a.npz", x_train=POINTS, cond_image_train=POINTS))


def test_parts_have_the_same_sizes(tmp_path: Path):
    parts = dict(x_train=POINTS, x_test=POINTS, cond_vector_train=VECTOR)
    with pytest.raises(UserError, match="must have the same sizes in each part"):
        load(save(tmp_path / "a.npz", **parts, cond_vector_test=VECTOR[:, :2]))


def test_conditions_of_another_scale_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for scale, warned in ((1.0, False), (1e3, True), (1e-3, True)):
        warn_of_oddities(load(save(tmp_path / "a.npz", x_train=POINTS, cond_vector_train=VECTOR * scale)))
        assert ("root mean square of cond_vector" in capsys.readouterr().err) == warned
