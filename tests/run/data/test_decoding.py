from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.build import data_options
from score_diffusion.run.config import apply_overrides, differing_keys, load_config, read_config, save_config
from score_diffusion.run.data.decoding import (
    ALPHA_MODES,
    GREY_MODES,
    MODES,
    ORIENTATION,
    ImagePreparation,
    middle,
)
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9, 1), np.uint8)


def reopened(image: Image.Image, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return Image.open(buffer)


def test_images_are_kept_as_they_are():
    assert np.array_equal(ImagePreparation()(Image.fromarray(COLOUR)), COLOUR.transpose(2, 0, 1))
    assert np.array_equal(ImagePreparation()(Image.fromarray(COLOUR[..., 0])), COLOUR[None, ..., 0])


def test_sixteen_bits_give_their_high_byte():
    levels = np.array([[0, 255, 256, 1000, 65279, 65535]], np.uint16)
    for image, bits in (
        (Image.fromarray(levels), 0),
        (Image.fromarray(levels.astype(np.int32)), 16),  # of 32 bits, which say nothing
        (reopened(Image.fromarray(levels)), 0),
    ):
        assert ImagePreparation(bits=bits)(image).tolist() == [[[0, 0, 1, 3, 254, 255]]]
        assert ImagePreparation(channels=3, bits=bits)(image)[2].tolist() == [[0, 0, 1, 3, 254, 255]]


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        ImagePreparation()(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_transparent_images_are_laid_on_white():
    image = Image.fromarray(np.concatenate([COLOUR, ALPHA], 2))
    a = ALPHA / 255
    on_white = a * COLOUR + (1 - a) * 255
    assert np.abs(ImagePreparation()(image) - on_white.transpose(2, 0, 1)).max() <= 1
    grey = Image.fromarray(np.concatenate([COLOUR[..., :1], ALPHA], 2), "LA")
    assert np.abs(ImagePreparation()(grey)[0] - on_white[..., 0]).max() <= 1
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    laid = ImagePreparation()(reopened(palette, transparency=0))
    assert laid[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


def test_alpha_is_kept_where_it_is_asked_for():
    both = np.concatenate([COLOUR, ALPHA], 2)
    assert np.array_equal(ImagePreparation(channels=4)(Image.fromarray(both)), both.transpose(2, 0, 1))
    grey = np.concatenate([COLOUR[..., :1], ALPHA], 2)
    assert np.array_equal(ImagePreparation(channels=2)(Image.fromarray(grey, "LA")), grey.transpose(2, 0, 1))
    assert (ImagePreparation(channels=4)(Image.fromarray(COLOUR))[3] == 255).all()


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "mode", sorted({*GREY_MODES, *ALPHA_MODES, "RGB", "P", "CMYK", "YCbCr"} - {"La", "I;16N"})
)
def test_the_header_tells_the_shape(mode: str, channels: int):
    image, bits = Image.new(mode, (9, 6)), 16 if mode == "I" else 0
    for size in (None, (4, 5)):
        prepare = ImagePreparation(size, "none", channels, bits)
        assert prepare(image.copy()).shape == prepare.shape(image)
        assert prepare(image.copy()).dtype == np.uint8


def test_the_camera_says_which_way_is_up():
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the top of the scene is on the right of the stored image
    turned = reopened(Image.fromarray(COLOUR), exif=exif)
    assert ImagePreparation().shape(turned) == (3, 9, 6)
    assert np.array_equal(ImagePreparation()(turned), np.rot90(COLOUR, -1).transpose(2, 0, 1))


def test_reduced_images_are_averaged_and_not_picked_from():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    reduced = ImagePreparation((16, 8))(Image.fromarray(stripes))
    assert np.abs(reduced[0, 4:-4, 2:-2] - 127.5).max() < 3  # picked, they would be black or white


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((8, 4), (5, 5), (2, 0, 6, 4)),
        ((4, 8), (5, 5), (0, 2, 4, 6)),
        ((12, 12), (6, 4), (0, 2, 12, 10)),
        ((30, 20), (6, 4), (0, 0, 30, 20)),
        ((100, 1), (1, 100), (49, 0, 50, 1)),
    ],
)
def test_the_largest_part_of_the_aspect_ratio_is_cropped(size: tuple, target: tuple, box: tuple):
    assert middle(size, target) == box


def test_sizes_are_one_number_or_two():
    def shape(text: str) -> tuple[int, ...]:
        config = apply_overrides(load_config("vpsde"), [("data.image_size", text)])
        return ImagePreparation.of(data_options(config.data))(Image.fromarray(COLOUR)).shape

    assert shape("0") == (3, 6, 9) and shape("4") == (3, 4, 4)
    assert shape("4,7") == shape("(4, 7)") == (3, 4, 7)
    for text in ("-1", "4,0"):
        with pytest.raises(UserError, match="one number or height,width"):
            shape(text)
    for text in ("4.5", "big", "4,b", "1,2,3"):
        with pytest.raises(UserError, match="data.image_size"):
            shape(text)


def test_a_configuration_file_may_give_a_pair_and_a_run_keeps_it(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from score_diffusion.run.configs import vpsde\n"
        "def get_config():\n"
        "    config = vpsde.get_config()\n"
        "    config.data.image_size = (4, 7)\n"
        "    return config\n"
    )
    config = apply_overrides(load_config(str(tmp_path / "mine.py")), [])
    save_config(config, tmp_path)
    kept = read_config(tmp_path)
    assert not differing_keys(kept, config)
    for found in (config, kept):
        assert ImagePreparation.of(data_options(found.data)).size == (4, 7)


def test_channels_are_checked():
    assert list(MODES) == [1, 2, 3, 4]
    with pytest.raises(UserError, match="data.channels must be 0 .* or 1 to 4, got 5"):
        DataOptions(channels=5)
