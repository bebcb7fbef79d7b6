"""`--config auto`: a network and a training that suit the data, by simple rules from their shape and number.

    points (D,)         a perceptron, wider for more columns
    images, signals,    a U-Net whose coarsest level has about 8 positions along the shortest side, with
    fields (C, *size)   attention where a level has at most 256 positions

The rules ask nothing of the machine, so that the same data give the same configuration everywhere; where the
memory does not suffice, `--dry_run` says so and what to lower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.autoencoders import load_autoencoder
from score_diffusion.run.config import Overrides, apply_overrides, load_config
from score_diffusion.run.console import warn
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.follow_run import follow_run

COARSEST_SIDE = 7  # of a level, at least: 28 pixels are halved twice, 32 too
MOST_ATTENDED = 256  # positions


def experiment(name: str, overrides: Overrides, mode: str = "train") -> ConfigDict:
    """The configuration of an experiment with overrides; locked.

    Args:
        name: A name or a path as for `load_config`. In training "auto" is fitted to the data.
        overrides: The keys that are set, see `apply_overrides`.
        mode: The mode that they are for.

    Raises:
        UserError: If there is no such experiment, or an override is wrong.
    """
    config = load_config(name)
    if name == "auto" and mode == "train":
        return fit_to_data(config, overrides)
    return follow_run(apply_overrides(config, overrides, mode), overrides)


def fit_to_data(config: ConfigDict, overrides: Overrides) -> ConfigDict:
    """The configuration `auto` with values that follow from the data, then the overrides; locked.

    Args:
        config: The configuration, whose section `data` the overrides complete.
        overrides: The keys that are set, see `apply_overrides`.

    Raises:
        UserError: If no data are named, they cannot be read, or an override is wrong.
    """
    of_data = [(name, value) for name, value in overrides if name.startswith("data.")]
    config = apply_overrides(config, of_data)
    if not config.data.path and ":" not in config.data.name:
        raise UserError(
            "--config auto is for your own data: name them with --config.data.path=PATH, or choose one of "
            "the other configurations"
        )
    # Streaming reads the sizes of all samples and decodes none.
    dataset = load_dataset(data_options(config.data), streamed=True)
    shape = dataset.shape
    if config.data.autoencoder:
        shape = load_autoencoder(expanded(config.data.autoencoder))[0].latent_shape(shape)
    chosen = settings_for(shape, len(dataset.train))
    if len(shape) > 1 and chosen["model.multipliers"] == (1,) and min(shape[1:]) > 16:
        warn(
            f"sides of {' x '.join(map(str, shape[1:]))} cannot be halved, and the network will be "
            "slow: --config.data.image_size=SIZE with a multiple of 8 makes it faster"
        )
    return apply_overrides(config, [*chosen.items(), *overrides])


def settings_for(shape: Sequence[int], num_train: int) -> dict[str, object]:
    """Configuration keys and their values for training samples of a shape, (D,) or (C, *size).

    Raises:
        UserError: If no network takes such data.
    """
    return _for_points(shape[0], num_train) if len(shape) == 1 else _for_images(shape, num_train)


def _for_points(dim: int, num_train: int) -> dict[str, object]:
    batch_size = 512 if num_train >= 512 else 64
    return {
        "model.name": "mlp",
        "model.prediction": "noise",
        "model.width": 128 if dim <= 4 else 256 if dim <= 64 else 512,
        "model.depth": 3 if dim <= 4 else 4,
        "training.batch_size": batch_size,
        "training.steps": 4000 if dim <= 64 else 8000,
        "training.learning_rate": 1e-3,
        "sampling.num_samples": 2000,
        "sampling.batch_size": 2000,
        "likelihood.num_images": 1000,
        "likelihood.batch_size": 1000,
        "likelihood.divergence": "exact" if dim <= 16 else "hutchinson",
    }


def _for_images(shape: Sequence[int], num_train: int) -> dict[str, object]:
    sides = shape[1:]
    halvings = _halvings(sides)
    positions = math.prod(sides)
    at_level = [positions // 2 ** (len(sides) * level) for level in range(halvings + 1)]
    small = [level for level, count in enumerate(at_level) if count <= MOST_ATTENDED]
    attended = tuple([level for level in small if level > 0] or small)  # the finest level only if it must
    batch_size = 64 if positions <= 64 * 64 else 16
    steps = math.ceil(max(2600 * 64, 20 * num_train) / batch_size)
    return {
        "model.name": "unet",
        "model.channels": 32 if positions <= 28 * 28 else 64,
        "model.multipliers": (1, 2, 2, 3, 4, 4, 4)[: halvings + 1],
        "model.blocks_per_level": 2,
        "model.attention_levels": attended,
        "model.dropout": 0.1 if num_train < 500 else 0.0,  # few samples are soon known by heart
        "training.batch_size": batch_size,
        "training.steps": steps,
        "training.learning_rate": 2e-3 if positions <= 64 else 1e-3 if positions <= 28 * 28 else 5e-4,
        "training.ema_decay": 0.999 if steps < 50_000 else 0.9999,
    }


def _halvings(sides: Sequence[int]) -> int:
    """How often all sides can be halved before the shortest is below `COARSEST_SIDE`; once for 8 to 13."""
    halvings = 0
    while all(side % 2 ** (halvings + 1) == 0 for side in sides) and halvings < 6:
        if min(sides) // 2 ** (halvings + 1) < COARSEST_SIDE and halvings:
            break
        halvings += 1
    return halvings
