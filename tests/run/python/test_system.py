"""A system from Python: the samples of the command line, and the runs of its stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from score_diffusion import load_run, load_system
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main

pytestmark = pytest.mark.slow

SYSTEM = str(Path(__file__).parents[1] / "tiny_system.py")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "system"
    few = ("--config.training.steps=2", "--config.training.preview_samples=0")
    assert main(["--mode", "train", "--config", SYSTEM, "--workdir", str(workdir), *few]) == 0
    return workdir


def test_samples_are_those_of_the_command_line(workdir: Path):
    flags = ("--label=3,7", "--config.sampling.num_samples=4", "--config.x8.sampling.augment_noise=0.3")
    assert main(["--mode", "sample", "--workdir", str(workdir), *flags]) == 0
    samples = load_system(workdir).sample(4, label=[3, 7], settings={"x8.augment_noise": 0.3})
    assert samples.after is not None and list(samples.after) == ["base", "x8"]
    with np.load(workdir / "samples/cascade.npz") as arrays:
        assert np.array_equal(samples.samples, arrays["samples"])
        assert np.array_equal(samples.after["base"], arrays["after_base"])
        assert samples.labels is not None and np.array_equal(samples.labels, arrays["label"])
    assert samples.values.shape == (4, 8, 8) and samples.names == ["3", "7", "3", "7"]


def test_a_stage_is_a_run(workdir: Path):
    system = load_system(workdir)
    assert system.stages == ("base", "x8") and "cascade of base, x8" in repr(system)
    run = system.stage("x8")
    small = np.zeros((1, 4, 4), np.uint8)
    restored = run.restore(small, "superres", method="model", measured=True, nfe=3, num_samples=2)
    assert restored.samples.shape == (1, 2, 1, 8, 8)
    for refused in (run.log_likelihood, run.encode):
        with pytest.raises(UserError, match="this model enlarges images, and knows no p"):
            refused(np.zeros((1, 8, 8), np.uint8))


def test_what_is_no_system_or_no_stage_is_named(workdir: Path):
    with pytest.raises(UserError, match="holds no system of several runs: load one run with load_run"):
        load_system(workdir / "base")
    with pytest.raises(UserError, match="has no stage 'x16'; choose one of base, x8"):
        load_system(workdir).stage("x16")
    with pytest.raises(UserError, match="holds a system of several runs, and one run is needed here"):
        load_run(workdir)
