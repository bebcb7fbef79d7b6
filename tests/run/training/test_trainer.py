"""Single steps: what they draw, what they change, in every way that they can be taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.resolve_auto import resolve_conditions
from score_diffusion.run.training.averages import Averages
from score_diffusion.run.training.batches import Batch, BatchSource
from score_diffusion.run.training.loaders import make_loader
from score_diffusion.run.training.objectives import Objective
from score_diffusion.run.training.statistics import TrainingStatistics
from score_diffusion.run.training.trainer import StepSettings, Trainer
from score_diffusion.sde_lib import quantize
from tests.run.conftest import TINY

CPU = torch.device("cpu")


@pytest.fixture
def make(tiny: str) -> Callable[..., Trainer]:
    """A trainer of the tiny experiment with keys changed, without dropout."""

    def build(**keys: object) -> Trainer:
        texts = {"model.dropout": 0.0, **{key.replace("__", "."): value for key, value in keys.items()}}
        config = apply_overrides(load_config(tiny), [(key, str(value)) for key, value in texts.items()])
        return build_trainer(config, load_dataset(data_options(config.data)), CPU)

    return build


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a step changes and that is not a count of steps, as it is now."""
    saved = trainer.checkpoint(0.0)
    tensors = {f"model/{k}": v for k, v in saved.model.items()} | {
        f"ema/{k}": v for k, v in saved.ema.items()
    }
    tensors |= {f"times/{k}": v for k, v in saved.times.items()} | saved.averages
    for k, entries in saved.optimizer["state"].items():
        tensors |= {f"optimizer/{k}/{name}": value for name, value in entries.items()}
    return {key: value.clone() for key, value in tensors.items()}


def test_the_loss_of_a_step_depends_only_on_seed_and_step(make: Callable):
    trainer = make(data__flip="true")
    losses = [trainer.backward(trainer.batches.read(trainer.batches.draw(step))) for step in (3, 4)]
    torch.manual_seed(99)
    torch.rand(7)
    again = [trainer.backward(trainer.batches.read(trainer.batches.draw(step))) for step in (3, 4)]
    assert all(map(torch.equal, losses, again)) and not torch.equal(*losses)


@pytest.mark.slow
@pytest.mark.parametrize("times", ["continuous", "importance"])
def test_micro_batches_are_equal_to_the_batch(times: str, make: Callable):
    whole, parts = (make(training__accumulate=n, training__times=times) for n in (1, 4))
    for step in range(6):
        assert torch.equal(whole.batches.draw(step).times.t, parts.batches.draw(step).times.t)
        whole.advance()
        parts.advance()
    a, b = state(whole), state(parts)
    for key in a:  # Adam makes of the rounding of a small gradient up to 1 % of its steps of 5e-4
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=5e-6)
    assert whole.statistics.summary().loss == pytest.approx(parts.statistics.summary().loss, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(precision: str, broken: str, make: Callable):
    keys = dict(training__extra_ema_decays="0.9", training__ema_sigma_rels="0.1")
    trainer = make(training__precision=precision, training__times="importance", **keys)
    for _ in range(3):
        trainer.advance()
    before, updates = state(trainer), trainer.averages.updates.clone()
    batch = trainer.batches.read(trainer.batches.draw(trainer.step))
    trainer.optimizer.zero_grad()
    losses = trainer.backward(batch)
    if broken == "loss":
        losses[1] = math.inf
    else:
        next(trainer.model.parameters()).grad.view(-1)[0] = math.nan
    trainer.finish(batch, losses)
    after = state(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before) and trainer.averages.updates == updates
    means = trainer.statistics.summary()
    assert (means.skipped, means.longest_skipped_streak, trainer.step) == (1, 1, 4) and math.isfinite(
        means.loss
    )
    trainer.advance()
    assert not torch.equal(state(trainer)["model/net.conv_in.weight"], before["model/net.conv_in.weight"])


def test_fp16_finds_its_loss_scale_and_keeps_it_in_checkpoints(make: Callable, tmp_path):
    trainer = make(training__precision="fp16")
    trainer.advance()
    trainer.scaler.update(new_scale=2.0**120)  # every gradient overflows
    for _ in range(3):
        trainer.advance()
    assert trainer.scaler.get_scale() == 2.0**117 and trainer.statistics.summary().skipped == 3
    other = make(training__precision="fp16")
    other.restore(trainer.checkpoint(0.0), tmp_path)
    assert other.scaler.state_dict() == trainer.scaler.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("keys", [dict(precision="bf16"), dict(precision="fp16"), dict(channels_last="true")])
def test_precisions_and_formats_agree_with_float32(keys: dict, make: Callable):
    plain, other = make(), make(**{f"training__{key}": value for key, value in keys.items()})
    dtypes = []
    other.model.net.conv_out.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    for _ in range(4):
        plain.advance()
        other.advance()
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(keys.get("precision"), torch.float32)
    assert set(dtypes) == {expected}
    assert all(p.dtype == torch.float32 for p in other.model.parameters())
    assert other.statistics.summary().loss == pytest.approx(plain.statistics.summary().loss, rel=0.02)
    saved = other.checkpoint(0.0)
    assert saved.model.keys() == plain.model.state_dict().keys()  # the names are those of any precision


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [dict(precision="bf16"), dict(precision="fp16", channels_last="true"), dict(accumulate=4)]
)
def test_every_kind_of_step_resumes_to_the_same_bits(keys: dict, make: Callable, tmp_path):
    keys = {f"training__{key}": value for key, value in keys.items()} | {"model__dropout": 0.1}
    straight, stopped, resumed = (make(**keys) for _ in range(3))
    for _ in range(4):
        straight.advance()
    for _ in range(2):
        stopped.advance()
    checkpoint.save(tmp_path, stopped.checkpoint(0.0), keep=1)
    resumed.restore(checkpoint.latest(tmp_path), tmp_path)
    for _ in range(2):
        resumed.advance()
    a, b = state(straight), state(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = straight.statistics.state_dict(), resumed.statistics.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_compiled_network_trains_the_same_weights(make: Callable, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def compiled(net: nn.Module) -> Callable:  # the compiler itself is PyTorch's to test, and slow
        return lambda *args: calls.append(net) or net(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    plain, other = make(), make(training__compile="true")
    for trainer in (plain, other):
        trainer.advance()
    assert calls == [other.model.net]
    assert all(torch.equal(a, b) for a, b in zip(state(plain).values(), state(other).values(), strict=True))


def test_an_objective_may_have_parameters_of_its_own(make: Callable, tmp_path):
    trainer, other = (make(training__objective="uncertainty") for _ in range(2))
    for _ in range(2):
        trainer.advance()
    checkpoint.save(tmp_path, trainer.checkpoint(0.0), keep=1)
    saved = checkpoint.latest(tmp_path)
    assert saved.objective and not set(saved.objective) & set(saved.model)
    other.restore(saved, tmp_path)
    for each in (trainer, other):
        each.advance()
    now = trainer.objective.state_dict()
    assert all(torch.equal(now[name], value) for name, value in other.objective.state_dict().items())
    assert any(not torch.equal(now[name], value) for name, value in saved.objective.items())


def test_the_gradients_of_model_and_objective_are_bounded_each(make: Callable):
    """A steep objective does not slow the model down."""
    trainer = make(training__objective="uncertainty", training__grad_clip=1e-3)
    trainer.advance()
    for module in (trainer.model, trainer.objective):
        gradients = [weights.grad for weights in module.parameters() if weights.grad is not None]
        assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-3)


def test_what_a_converted_checkpoint_lacks_starts_afresh(make: Callable, tmp_path):
    """A checkpoint of another library has weights, an average and an optimizer."""
    source = make()
    source.advance()
    saved = source.checkpoint(0.0)
    names = ("step", "model", "ema", "optimizer", "seconds", "ema_updates")
    bare = Checkpoint(**{name: getattr(saved, name) for name in names})
    trainer = make(training__extra_ema_decays="0.5", training__precision="fp16")
    trainer.restore(bare, tmp_path)
    (further,) = trainer.averages.exponential.values()
    assert all(torch.equal(further.module.state_dict()[name], saved.ema[name]) for name in saved.ema)
    trainer.advance()
    assert (trainer.step, int(trainer.averages.updates), trainer.statistics.summary().skipped) == (2, 2, 0)


def test_the_held_out_loss_is_that_of_the_average_on_fixed_samples(make: Callable, tiny: str):
    trainer = make(training__held_out=20, training__times="importance")
    losses = [trainer.held_out_loss()]
    for _ in range(30):
        trainer.advance()
    losses += [trainer.held_out_loss(), trainer.held_out_loss()]
    assert losses[1] == losses[2] < losses[0]
    held_out = load_dataset(data_options(load_config(tiny).data)).test[:20]
    assert torch.equal(quantize(trainer.held_out.x_0, 17).to(torch.uint8), held_out)
    trainer.average.load_state_dict(trainer.model.state_dict())
    assert trainer.held_out_loss() != losses[1]
    assert make(training__held_out=0).held_out_loss() is None


class Classifier(nn.Module):
    """Logits of the classes of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Classification(Objective[nn.Module]):
    uses_times = False

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.times is None and batch.noise is None
        return nn.functional.cross_entropy(model(batch.x_0), batch.conditions["label"], reduction="none")


@pytest.mark.slow
def test_conditions_of_any_kind_resume_to_the_same_bits_and_micro_batches_agree(tmp_path: Path):
    digits, generator = load_digits(), torch.Generator().manual_seed(0)

    def with_others(labels: torch.Tensor) -> dict[str, torch.Tensor]:
        n, draw = len(labels), partial(torch.randn, generator=generator)
        tokens = {"tokens": draw(n, 3, 2), "mask": draw(n, 3) > 0}
        return {"label": labels, "vector": draw(n, 4), "image": draw(n, 1, 8, 8)} | tokens

    parts = map(with_others, (digits.labels, digits.test_labels))
    data = replace(digits, **dict(zip(("conditions", "test_conditions"), parts, strict=True)))
    keys = {"model.dropout": 0.0, "training.conditional": "true", "training.condition_dropout": 0.4}
    config = apply_overrides(load_config(TINY), [(key, str(value)) for key, value in keys.items()])
    config = resolve_conditions(config, data)
    whole, straight, resumed = (
        build_trainer(apply_overrides(config, [("training.accumulate", str(n))]), data, CPU)
        for n in (1, 4, 4)
    )
    first = whole.held_out_loss()
    for _ in range(4):
        straight.advance()
        whole.advance()
        if straight.step == 2:
            checkpoint.save(tmp_path, straight.checkpoint(0.0), keep=1)
    resumed.restore(checkpoint.latest(tmp_path), tmp_path)
    for _ in range(2):
        resumed.advance()
    a, b, c = state(straight), state(resumed), state(whole)
    for key in a:
        assert torch.equal(a[key], b[key])
        torch.testing.assert_close(a[key], c[key], rtol=0, atol=1e-6)
    assert straight.held_out_loss() == resumed.held_out_loss() != first


def classifier_trainer(micro_batches: int = 1, dtype: torch.dtype = torch.float32) -> Trainer:
    digits = load_digits()
    torch.manual_seed(0)
    model = Classifier()
    loader = make_loader(digits.train, 16, 0, CPU)
    batches = BatchSource(
        loader, digits.conditions, lambda k, u: (k + u) / 8.5 - 1, None, digits.shape, 0, CPU
    )
    return Trainer(
        model,
        Classification(),
        batches,
        Averages(model, 0.9),
        TrainingStatistics(16),
        StepSettings(lambda step: 0.01, micro_batches, dtype=dtype),
        seed=0,
        held_out=batches.held_out(digits.test, digits.test_conditions),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_objective_with_labels_and_without_times_trains_in_the_same_steps(dtype: torch.dtype, tmp_path):
    """A classifier, in micro-batches, with a held-out loss, resumed to the same bits."""
    whole, parts, resumed = (classifier_trainer(n, dtype) for n in (1, 4, 4))
    first = parts.held_out_loss()
    for _ in range(40):
        whole.advance()
        parts.advance()
        if parts.step == 20:
            checkpoint.save(tmp_path, parts.checkpoint(0.0), keep=1)
    summary = parts.statistics.summary()
    assert summary.level_losses == summary.level_edges == [] and math.isfinite(summary.loss)
    assert whole.held_out_loss() == pytest.approx(parts.held_out_loss(), rel=1e-2)
    assert parts.held_out_loss() < first / 2 and first == pytest.approx(math.log(10), rel=0.2)
    resumed.restore(checkpoint.latest(tmp_path), tmp_path)
    for _ in range(20):
        resumed.advance()
    a, b = state(parts), state(resumed)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_labels_of_a_batch_reach_a_network_with_classes(make: Callable):
    """With training.conditional the loss depends on them, and without it not."""
    keys = dict(model__num_classes=10, training__condition_dropout=0.0)
    for conditional in (True, False):
        trainer = make(training__conditional=conditional, **keys)
        for weights in trainer.average.parameters():  # at first the output is 0
            nn.init.normal_(weights, std=0.3)
        batch = trainer.batches.read(trainer.batches.draw(0))
        other = replace(batch, conditions={"label": (batch.conditions["label"] + 1) % 10})
        none = replace(batch, conditions={})
        losses = [trainer.objective(trainer.average, each) for each in (batch, other, none)]
        assert torch.equal(losses[0], losses[1]) != conditional
        assert torch.equal(losses[0], losses[2]) != conditional
