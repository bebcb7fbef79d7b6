from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from score_diffusion.run import main

ROOT = Path(main.__file__).parent.parent


def test_flips_are_of_the_seed_and_the_step(tmp_path: Path):
    """Half of the images, the same ones at the same step, and nothing else of the step changes."""
    import torch

    from score_diffusion.run.build import data_options
    from score_diffusion.run.build_training import build_trainer
    from score_diffusion.run.config import apply_overrides, load_config
    from score_diffusion.run.data.load import load_dataset

    config = apply_overrides(
        load_config(str(Path(__file__).parent / "tiny.py")),
        [("data.flip", "true"), ("training.batch_size", "64")],
    )
    trainer = build_trainer(config, load_dataset(data_options(config.data)), torch.device("cpu"))
    batches = trainer.batches
    draws = [batches.draw(step) for step in (3, 3, 4)]
    plain = replace(draws[0], mirrored=None, u=torch.zeros_like(draws[0].u))
    once, again, other = (batches.read(replace(plain, mirrored=draw.mirrored)).x_0 for draw in draws)
    batch = batches.read(plain).x_0
    assert torch.equal(once, again) and not torch.equal(once, other)
    flipped = [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(once, batch, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(once, batch, strict=True)]
    assert all(a or b for a, b in zip(flipped, kept, strict=True)) and 16 < sum(flipped) < 48
