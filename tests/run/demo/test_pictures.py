"""Pictures to the page and back: pixel by pixel, and what is no image is refused."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.demo.pictures import are_images, data_url, known_pixels, returned, sheet, uploaded
from score_diffusion.run.errors import UserError


def info(shape: tuple[int, ...], levels: int | None = 256) -> DataInfo:
    return DataInfo("own", shape, Scaling(levels), 10, 10)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_survive_the_way_to_the_page_and_back(levels: int, channels: int, pixels):
    data = info((channels, 5, 7), levels)
    stored = np.random.default_rng(0).integers(levels, size=(6, channels, 5, 7))
    values = (2 * stored / (levels - 1) - 1).astype(np.float32)
    message = sheet(values, data).message()
    shown = pixels(message)
    assert message["columns"] == 3 and shown.shape == (6, 5, 7, 3)
    for sample, picture in zip(stored, shown, strict=True):
        url = data_url(encoded(picture))  # as the page's canvas gives it: in colour, with alpha or without
        back = (returned(url, data) + 1) / 2 * (levels - 1)
        np.testing.assert_array_equal(back.round()[0], sample)


def test_points_signals_and_fields_have_pictures_too():
    noise = np.random.default_rng(0)
    for shape in ((2,), (1,), (1, 30), (1, 6, 8, 8)):
        data = info(shape, None)
        found = sheet(noise.normal(size=(5, *shape)).astype(np.float32), data)
        assert found.count == (5 if len(shape) == 4 else 1)
        assert not are_images(data)
        assert len(np.unique(np.asarray(Image.open(io.BytesIO(found.png)).convert("L")))) > 5
    assert are_images(info((3, 8, 8))) and not are_images(info((4, 8, 8)))


def test_an_upload_is_cropped_and_resized_as_data_are():
    image = np.zeros((20, 40), np.uint8)
    image[:, 10:30] = 255  # the middle square is white
    found, words = uploaded(encoded(image), info((1, 5, 5)), DataOptions())
    np.testing.assert_array_equal(found, np.ones((1, 1, 5, 5), np.float32))
    assert words == "your image, cropped and resized from 20x40 to 5x5"
    same, words = uploaded(encoded(image[:5, :5], "BMP"), info((1, 5, 5)), DataOptions())
    np.testing.assert_array_equal(same, -np.ones((1, 1, 5, 5), np.float32))
    assert words == "your image"
    colour, _ = uploaded(encoded(np.full((8, 8, 3), (255, 0, 0), np.uint8)), info((3, 4, 4)), DataOptions())
    np.testing.assert_array_equal(colour[0, :, 2, 2], [1, -1, -1])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "not of a format that is read"),
        (b"<svg onload='alert(1)'/>", "not of a format that is read"),
        (encoded(np.zeros((9, 9), np.uint8))[:45], "cannot be read"),
        (encoded(np.zeros((2000, 2000), np.uint8)), "4 megapixels, above data.max_megapixels=1"),
    ],
    ids=["empty", "svg", "cut off", "too many pixels"],
)
def test_what_is_no_image_is_refused(file: bytes, message: str):
    with pytest.raises(UserError, match="choose another file") as refusal:
        uploaded(file, info((1, 8, 8)), DataOptions(max_megapixels=1.0))
    assert message in str(refusal.value)


def test_what_comes_back_must_be_a_sample_of_the_run():
    data = info((1, 4, 4))
    smaller = data_url(encoded(np.zeros((3, 5), np.uint8)))
    with pytest.raises(UserError, match="3x5 .* those of this run are 4x4"):
        returned(smaller, data)
    huge = data_url(encoded(np.zeros((500, 500), np.uint8)))
    for url in ("", "http://elsewhere/a.png", "data:image/png;base64,%%%", smaller[:40], huge):
        with pytest.raises(UserError, match="cannot be read"):
            returned(url, data)
    text = base64.b64encode(encoded(np.zeros((4, 4), np.uint8), "GIF")).decode()
    assert returned(f"data:image/png;base64,{text}", data).shape == (1, 1, 4, 4)


def test_a_mask_says_which_pixels_are_missing():
    known = known_pixels("100001", info((1, 2, 3)))
    np.testing.assert_array_equal(known, [[False, True, True], [True, True, False]])
    for mask in ("", "10000", "1000012", "10000x"):
        with pytest.raises(UserError, match="6 digits"):
            known_pixels(mask, info((1, 2, 3)))
