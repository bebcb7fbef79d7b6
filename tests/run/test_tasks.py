"""The tasks: masks by name and by file, and what each operator measures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from score_diffusion.run.errors import UserError
from score_diffusion.run.tasks import RESTORERS, TASKS, method_of, named_mask, read_mask
from score_diffusion.samplers.inverse import InverseProblem
from score_diffusion.sde_lib import VPSDE, InputError


def images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape)).float()


def test_masks_by_name():
    center = named_mask("center", (3, 8, 6), 0)
    assert center.shape == (8, 6) and (~center).sum() == 4 * 3 and not center[2:6, 1:4].any()
    left = named_mask("left", (1, 4, 5), 0)
    assert not left[:, :2].any() and left[:, 2:].all()
    random = named_mask("random:0.9", (3, 20, 20), 0)
    assert random.sum() == 40 and torch.equal(random, named_mask("random:0.9", (3, 20, 20), 0))
    assert not torch.equal(random, named_mask("random:0.9", (3, 20, 20), 1))
    assert named_mask("left", (4,), 0).tolist() == [False, False, True, True]  # a point
    assert named_mask("left", (2, 6), 0).tolist() == [False] * 3 + [True] * 3  # a signal
    for name in ("right", "random", "random:", "random:0", "random:1", "random:nan", "random:x"):
        with pytest.raises(UserError, match="the mask must be center, left, random:SHARE"):
            named_mask(name, (1, 8, 8), 0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_a_mask_file_is_white_where_pixels_are_known(mode: str, tmp_path: Path):
    levels = np.zeros((4, 6), np.uint8)
    levels[1, 2:] = 255
    Image.fromarray(levels).convert(mode).save(tmp_path / "mask.png")
    known = read_mask(str(tmp_path / "mask.png"), (3, 4, 6))
    assert torch.equal(known, torch.from_numpy(levels > 0))
    task = TASKS["inpaint"]((3, 4, 6), 0, mask=str(tmp_path / "mask.png"))
    assert task.known is not None and torch.equal(task.known, known.expand(3, 4, 6))
    with pytest.raises(UserError, match="needs samples that are images"):
        read_mask(str(tmp_path / "mask.png"), (24,))


def test_what_is_measured():
    x = images(2, 3, 12, 12)
    blocks = x.reshape(2, 3, 4, 3, 4, 3).mean((3, 5))
    torch.testing.assert_close(TASKS["superres"]((3, 12, 12), 0, factor=3).operator(x), blocks)
    blurred = gaussian_filter(x.numpy().astype(np.float64), 1.2, radius=4, axes=(2, 3))
    torch.testing.assert_close(
        TASKS["deblur"]((3, 12, 12), 0, std=1.2).operator(x), torch.from_numpy(blurred).float()
    )
    colours = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    grey = np.asarray(Image.fromarray(colours).convert("L"), np.float64)
    mine = TASKS["colorize"]((3, 12, 12), 0).operator(
        torch.from_numpy(colours).permute(2, 0, 1)[None].double()
    )
    assert np.abs(mine[0, 0].numpy() - grey).max() <= 1  # Pillow rounds
    for task in ("denoise", "edit"):
        torch.testing.assert_close(TASKS[task]((3, 12, 12), 0).operator(x), x.flatten(1))
    ct = TASKS["ct"]((1, 12, 12), 0, angles=3)
    torch.testing.assert_close(ct.operator(x[:, :1]).sum(3)[:, 0], x[:, 0].sum((1, 2))[:, None].expand(2, 3))
    assert ct.picture is not None and ct.picture(ct.operator(x[:, :1])).abs().max() <= 1 + 1e-6
    jpeg = TASKS["jpeg"]((1, 8, 8), 0, quality=90)
    assert jpeg.picture is not None
    grey = x[:, :1, :8, :8]
    assert 0 < (jpeg.picture(jpeg.operator(grey)) - grey).abs().max() < 0.1
    assert not torch.equal(jpeg.operator(grey), TASKS["jpeg"]((1, 8, 8), 0).operator(grey))
    phase = TASKS["phase"]((1, 8, 8), 0)
    torch.testing.assert_close(phase.operator(grey), phase.operator(-grey))
    assert phase.picture is not None and phase.picture(phase.operator(grey)).shape == (2, 1, 16, 16)
    mri = TASKS["mri"]((3, 12, 12), 0, acceleration=4.0)
    assert mri.operator.output_shape == (3, 2, 12 * 3)
    assert mri.picture is not None and mri.picture(mri.operator(x)).shape == x.shape


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (5,), (2, 16), (1, 4, 4, 4)])
def test_every_task_with_every_method_works_or_says_why_not(task: str, shape: tuple[int, ...]):
    """Samples of any rank; whatever is refused is refused before the network is used."""
    try:
        built = TASKS[task](shape, 0, **({"factor": 4} if task == "superres" and len(shape) > 1 else {}))
    except ValueError as error:
        assert re.search("samples have shape|divides|input_shape must be|needs samples of shape", str(error))
        return
    y = built.operator(images(1, *shape))[0]
    for name, make in RESTORERS.items():
        small = {"particles": 4, "draws": 2} if name == "twisted" else {}
        try:
            draw = make(InverseProblem(VPSDE(), built.operator, y, 0.1), 7, **small)
        except InputError as error:
            assert task in ("jpeg", "phase") or name == "model"
            assert re.search("linear|pseudo-inverse|Downsample", str(error))
            continue
        samples = draw(lambda x, t, cond=None: -x, (2, *shape), seed=0).samples
        assert samples.shape == (2, *shape) and samples.isfinite().all()


def test_the_method_of_a_task():
    assert method_of("inpaint", "auto") == "moment_matching" and method_of("edit", "auto") == "sdedit"
    assert method_of("inpaint", "sdedit") == "sdedit" and method_of("phase", "auto") == "dps"
    with pytest.raises(UserError, match="has the method sdedit only"):
        method_of("edit", "ddrm")
