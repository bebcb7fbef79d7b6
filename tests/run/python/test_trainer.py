"""`Trainer`: the engine of `--mode train` for one's own network and data."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from score_diffusion import Trainer, load_run, train
from score_diffusion.models import MLP
from score_diffusion.run.build import build_model, build_sde
from score_diffusion.run.config import load_config
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import VESDE, VPSDE, ScoreModel, generator_for

SETTINGS = {"training.batch_size": 16, "training.preview_samples": 0, "training.schedule": "constant"}


class Net(nn.Module):
    """The smallest network with this call."""

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(dimensions + 1, dimensions)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([x.flatten(1), noise[:, None]], 1)).view_as(x)


def points(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).normal([5.0, -1.0], [2.0, 0.1], (n, 2))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def weights(workdir: Path) -> dict[str, bytes]:
    newest = sorted((workdir / "checkpoints").iterdir())[-1]
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def test_it_is_the_engine_of_the_command(tmp_path: Path):
    np.savez(tmp_path / "points.npz", x_train=points())
    settings = {**SETTINGS, "training.steps": 5}
    train("toy2d", tmp_path / "command", {**settings, "data.path": str(tmp_path / "points.npz")})
    config = load_config("toy2d")
    torch.manual_seed(generator_for(0, "weights").initial_seed())
    model = build_model(config.model, build_sde(config.sde), (2,))
    rate = {"training.learning_rate": config.training.learning_rate}
    run = Trainer(model, points(), workdir=tmp_path / "own", settings={**SETTINGS, **rate}).fit(steps=5)
    assert weights(tmp_path / "own") == weights(tmp_path / "command")
    command = load_run(tmp_path / "command")
    assert np.array_equal(run.sample(7, nfe=5).samples, command.sample(7, nfe=5).samples)
    assert run.data.scaling == command.data.scaling and run.data.digest == command.data.digest


def test_a_new_trainer_resumes_bit_for_bit(tmp_path: Path):
    data = {"x_train": points(), "x_test": points(8)}
    whole = Trainer(net(), data, VESDE(), workdir=tmp_path / "whole", settings=SETTINGS).fit(steps=6)
    Trainer(net(), data, VESDE(), workdir=tmp_path / "parts", settings=SETTINGS).fit(steps=4)
    resumed = Trainer(net(seed=1), data, VESDE(), workdir=tmp_path / "parts", settings=SETTINGS)
    assert resumed.fit(steps=6).step == whole.step == 6
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert resumed.fit(steps=6).step == 6  # nothing is left to do


def test_a_folder_of_its_own_goes_with_the_trainer():
    trainer = Trainer(net(), points(), settings=SETTINGS)
    folder = trainer.workdir
    run = trainer.fit(steps=2)
    assert isinstance(run.sde, VPSDE) and (folder / "log.jsonl").exists()
    del trainer
    gc.collect()
    assert not folder.exists()
    assert run.sample(3, nfe=4).values.shape == (3, 2)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_pixels_of_an_array_or_a_torch_data_set(as_tensor: bool, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    labels = np.arange(20) % 3
    data: object = {"x_train": pixels, "y_train": labels}
    if as_tensor:
        data = TensorDataset(torch.from_numpy(pixels), torch.from_numpy(labels))
    trainer = Trainer(Net(16), data, settings=SETTINGS)
    assert trainer.dataset.shape == (1, 4, 4) and trainer.dataset.levels == 256
    assert trainer.dataset.classes == ("0", "1", "2") and len(trainer.dataset.train) < 20
    samples = trainer.fit(steps=1).sample(2, nfe=4)
    assert samples.values.shape == (2, 4, 4) and samples.values.dtype == np.uint8


def test_a_conditional_network_of_ones_own(tmp_path: Path):
    data = {"x_train": points(), "y_train": np.arange(60) % 2}
    network = MLP(2, width=8, depth=1, num_classes=2)
    settings = {**SETTINGS, "training.conditional": True}
    run = Trainer(network, data, workdir=tmp_path / "run", settings=settings).fit(steps=2)
    samples = run.sample(4, nfe=4, label=[1, 0])
    assert samples.labels is not None and samples.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(UserError, match="holds another training: training.conditional is True there"):
        Trainer(network, data, workdir=tmp_path / "run", settings=SETTINGS).fit(steps=3)


def test_other_trainings_in_the_directory_are_refused(tmp_path: Path, trained: Path):
    Trainer(net(), points(), workdir=tmp_path / "run", settings=SETTINGS).fit(steps=1)
    for other, sentence in (
        (Trainer(MLP(2), points(), workdir=tmp_path / "run", settings=SETTINGS), "of Net of 8 weights for v"),
        (
            Trainer(net(), points(), VESDE(), workdir=tmp_path / "run", settings=SETTINGS),
            "not of Net .*VESDE",
        ),
        (Trainer(net(), points(40), workdir=tmp_path / "run", settings=SETTINGS), "on other data"),
        (Trainer(net(), points(), workdir=trained, settings=SETTINGS), "of an experiment"),
    ):
        with pytest.raises(UserError, match=sentence):
            other.fit(steps=2)
    with pytest.raises(UserError, match="make its Trainer again"):
        load_run(tmp_path / "run")


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="leave out sde and prediction"):
        Trainer(ScoreModel(Net(), VPSDE()), points(), VPSDE())
    with pytest.raises(UserError, match="model.channels is not for a network of your own"):
        Trainer(Net(), points(), settings={"model.channels": 3})
    with pytest.raises(UserError, match="unknown configuration key 'training.bach_size'"):
        Trainer(Net(), points(), settings={"training.bach_size": 3})
    with pytest.raises(UserError, match="the data must be an array"):
        Trainer(Net(), 3)
