from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, load, numbers


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8, ">u2"])
def test_arrays_of_any_integers(dtype: object, tmp_path: Path):
    bits = 5 if dtype == np.uint8 else 12
    values = np.random.default_rng(0).integers(0, 2**bits, (30, 5, 4)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    if dtype != np.uint8:
        with pytest.raises(UserError, match="whose range is not known: set --config.data.bits"):
            load(tmp_path / "a.npy")
    for keys in ({}, {"memory_gib": 0.0}):
        data = load(tmp_path / "a.npy", bits=bits, **keys)
        stored = torch.cat([data.train[:], data.test[:]])[:, 0].numpy()
        expected = {(v >> max(0, bits - 8)).astype(np.uint8).tobytes() for v in values}
        assert {image.tobytes() for image in stored} == expected and data.levels == 2 ** min(bits, 8)
    with pytest.raises(UserError, match="takes more than data.bits=4"):
        load(tmp_path / "a.npy", bits=4)
    assert int(load(tmp_path / "a.npy", bits=bits, image_size=(2, 2)).train.max()) < 2 ** min(bits, 8)
    np.save(tmp_path / "negative.npy", -values.astype(np.int64))
    with pytest.raises(UserError, match="grey levels are not negative"):
        load(tmp_path / "negative.npy", bits=bits)


def test_images_with_channels_first(tmp_path: Path):
    np.save(tmp_path / "a.npy", PIXELS.transpose(0, 3, 1, 2))
    with pytest.raises(UserError, match="C at most 4.*data.layout=channels_first"):
        load(tmp_path / "a.npy")
    data = load(tmp_path / "a.npy", layout="channels_first")
    assert numbers(data.train) | numbers(data.test) == set(range(24))
