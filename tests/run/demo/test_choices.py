"""What the page offers is what the run can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion import load_run
from score_diffusion.run.demo.choices import choices_of, held_out_bits
from score_diffusion.run.python.run import Run
from score_diffusion.samplers import SAMPLERS
from score_diffusion.samplers.inverse import METHODS


def test_every_sampler_that_serves_the_sde_is_offered_with_what_it_costs(points: Run):
    found = choices_of(points)
    assert found.methods == [] and "this run has points" in found.missing
    assert [choice.name for choice in found.samplers] == list(SAMPLERS)
    for choice in found.samplers:
        if choice.nfe is None:
            assert SAMPLERS[choice.name].nfe_per_step is None
        else:
            assert points.sample(2, sampler=choice.name).nfe == choice.nfe, choice.name


def test_a_run_without_classes_offers_none_and_no_guidance(images: Run):
    found = choices_of(images)
    assert (found.labels, found.labels_of_images, found.has_prompt, found.prompts) == ([], [], False, [])
    assert [guidance.name for guidance in found.guidances] == ["none"]
    assert found.methods[0] == "moment_matching" and sorted(found.methods) == sorted(METHODS)
    assert found.missing == "" and found.size == (1, 4, 4)


def test_the_likelihood_of_held_out_images_is_that_of_these_weights(images: Run):
    def write(name: str, text: str) -> None:
        (images.path / name).write_text(text)

    assert held_out_bits(images) is None
    write("likelihood-2.json", '{"bits_per_dim": 2.5, "standard_error": 0.1, "training_steps": 6}')
    write("likelihood-3.json", '{"nats": 1.0, "standard_error": 0.1, "training_steps": 7}')
    write("likelihood-4.json", "damaged")
    assert held_out_bits(images) is None
    write("likelihood-5.json", '{"bits_per_dim": 2.25, "standard_error": null, "training_steps": 7}')
    assert held_out_bits(images) == (2.25, None)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_a_conditional_run_offers_its_classes_and_guidance(dropout: float, cli: Callable, tmp_path: Path):
    conditional = ("--config.training.conditional=True", f"--config.training.condition_dropout={dropout}")
    assert cli("train", tmp_path / "run", *conditional, "--config.training.steps=2") == 0
    found = choices_of(load_run(tmp_path / "run"))
    classes = [(str(k), str(k)) for k in range(10)]
    knows_none = dropout > 0
    assert found.labels == [("", "each class in turn"), *classes, *([("-1", "no class")] * knows_none)]
    assert found.labels_of_images == [*([("", "not known")] * knows_none), *classes]
    assert ["none", *["cfg"] * knows_none] == [guidance.name for guidance in found.guidances]


@pytest.mark.slow
def test_a_run_with_captions_offers_prompts(cli: Callable, tmp_path: Path):
    data = ("--config.data.name=captioned_digits", "--config.training.conditional=True")
    assert cli("train", tmp_path / "run", *data, "--config.training.steps=2") == 0
    run = load_run(tmp_path / "run")
    found = choices_of(run)
    assert found.has_prompt and len(found.prompts) > 5
    assert run.sample(1, settings={"prompt": found.prompts[0]}).names == [found.prompts[0]]
