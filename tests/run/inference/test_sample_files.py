"""Sample files: what they hold, and when one is used again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.builders.inference import load_trained, sample_request
from score_diffusion.run.config import apply_overrides, load_config, read_config
from score_diffusion.run.console import progress_bar
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference import sample_files
from score_diffusion.run.inference.sample_files import draw, draw_and_save, matching_file, read_sample_file
from score_diffusion.samplers import make_sampler

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "euler_maruyama", "ode", "adaptive_sde", "ald"])
def test_the_bar_ends_at_its_total(sampler: str, trained: Path, monkeypatch):
    """For samplers that choose their own steps, too, whose steps are parts of an unknown number."""
    bars = []

    def shown(*arguments: object, **options: object):
        bars.append(progress_bar(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(sample_files, "progress_bar", shown)
    model = load_trained(trained, read_config(trained), CPU)
    loose = {"rtol": 0.5, "atol": 0.5}
    options = {"ode": loose, "adaptive_sde": loose, "ald": {"n_steps_each": 1}}.get(sampler)
    nfe = None if sampler in ("ode", "adaptive_sde") else 9
    draw(model, make_sampler(sampler, model.sde, nfe, denoise=True, options=options), range(5), 0, 2)
    (bar,) = bars
    assert bar.n == bar.total > 0


def test_a_sample_depends_on_its_index_only(trained: Path):
    model = load_trained(trained, read_config(trained), CPU)
    sampler = make_sampler("euler_maruyama", model.sde, 5)
    ((whole, _),) = draw(model, sampler, range(6), 3, 6)
    parts = np.concatenate([x for x, _ in draw(model, sampler, range(2, 6), 3, 3)])
    np.testing.assert_array_equal(parts, whole[2:])


def test_a_file_is_found_by_what_decides_its_samples(trained: Path):
    section = read_config(trained).sampling
    request = sample_request(section)
    model = load_trained(trained, read_config(trained), CPU)
    files = draw_and_save(model, make_sampler("eabm", model.sde, 5), request, trained)
    name, settings = request.sampler, request.settings
    assert matching_file(trained, name, settings, model.step) == files.array
    assert matching_file(trained, name, settings, model.step + 1) is None
    assert matching_file(trained, name, "{}", model.step) is None
    file = read_sample_file(files.array)
    np.testing.assert_array_equal(file.samples, files.samples)
    files.array.write_bytes(b"")
    with pytest.raises(UserError, match="eabm.npz is damaged"):
        read_sample_file(files.array)


def test_settings_of_a_request_are_those_that_decide_the_samples():
    config = load_config("vpsde")

    def settings(*overrides: tuple[str, str]) -> str:
        return sample_request(apply_overrides(config, overrides).sampling).settings

    assert settings(("sampling.batch_size", "7")) == settings()
    for override in (("sampling.seed", "7"), ("sampling.steps", "9"), ("sampling.eabm.order", "3")):
        assert settings(override) != settings()
    pc, other = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    other.sampling.pc.snr = 0.5  # of a sampler that is not the chosen one
    assert sample_request(pc.sampling).settings == sample_request(other.sampling).settings
