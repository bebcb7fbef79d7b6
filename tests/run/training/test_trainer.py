"""Single steps: what they draw, what they change, in every way that they can be taken."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from score_diffusion.run.build import data_options
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.batches import BatchOrder
from score_diffusion.run.training.precision import precision
from score_diffusion.run.training.trainer import Trainer, learning_rate, total_steps
from score_diffusion.sde_lib import quantize

CPU = torch.device("cpu")


@pytest.fixture
def make(tiny: str) -> Callable[..., Trainer]:
    """A trainer of the tiny experiment with keys changed, without dropout."""

    def build(**keys: object) -> Trainer:
        texts = {"model.dropout": 0.0, **{key.replace("__", "."): value for key, value in keys.items()}}
        config = apply_overrides(load_config(tiny), [(key, str(value)) for key, value in texts.items()])
        return Trainer(config, load_dataset(data_options(config.data)), CPU)

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


def test_the_loss_of_a_step_depends_on_seed_and_step_alone(make: Callable):
    trainer = make(data__flip="true")
    losses = [trainer.backward(trainer.read(trainer.draw(step))) for step in (3, 4)]
    torch.manual_seed(99)
    torch.rand(7)
    again = [trainer.backward(trainer.read(trainer.draw(step))) for step in (3, 4)]
    assert all(map(torch.equal, losses, again)) and not torch.equal(*losses)


def test_parts_of_a_draw_are_the_whole(make: Callable):
    draw = make(data__flip="true", training__times="discrete").draw(5)
    parts = [draw.part(r, 4) for r in range(4)]
    assert [place for part in parts for place in part.places] == list(draw.places)
    for name in ("mirrored", "u", "noise"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(draw, name))
    for name in ("t", "weights", "k"):
        assert torch.equal(
            torch.cat([getattr(part.times, name) for part in parts]), getattr(draw.times, name)
        )


@pytest.mark.parametrize("times", ["continuous", "importance"])
def test_micro_batches_are_equal_to_the_batch(times: str, make: Callable):
    whole, parts = (make(training__accumulate=n, training__times=times) for n in (1, 4))
    for step in range(6):
        assert torch.equal(whole.draw(step).times.t, parts.draw(step).times.t)
        whole.advance()
        parts.advance()
    a, b = state(whole), state(parts)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-6)
    assert whole.running.means().loss == pytest.approx(parts.running.means().loss, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(precision: str, broken: str, make: Callable):
    keys = dict(training__extra_ema_decays="0.9", training__ema_sigma_rels="0.1")
    trainer = make(training__precision=precision, training__times="importance", **keys)
    for _ in range(3):
        trainer.advance()
    before, updates = state(trainer), trainer.averages.updates.clone()
    batch = trainer.read(trainer.draw(trainer.step))
    trainer.optimizer.zero_grad()
    losses = trainer.backward(batch)
    if broken == "loss":
        losses[1] = math.inf
    else:
        next(trainer.model.parameters()).grad.view(-1)[0] = math.nan
    trainer.finish(batch, losses)
    after = state(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before) and trainer.averages.updates == updates
    means = trainer.running.means()
    assert (means.skipped, means.longest, trainer.step) == (1, 1, 4) and math.isfinite(means.loss)
    trainer.advance()
    assert not torch.equal(state(trainer)["model/net.conv_in.weight"], before["model/net.conv_in.weight"])


def test_fp16_finds_its_loss_scale_and_keeps_it_in_checkpoints(make: Callable, tmp_path):
    trainer = make(training__precision="fp16")
    trainer.advance()
    trainer.scaler.update(new_scale=2.0**120)  # every gradient overflows
    for _ in range(3):
        trainer.advance()
    assert trainer.scaler.get_scale() == 2.0**117 and trainer.running.means().skipped == 3
    other = make(training__precision="fp16")
    other.restore(trainer.checkpoint(0.0), tmp_path)
    assert other.scaler.state_dict() == trainer.scaler.state_dict()


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
    assert other.running.means().loss == pytest.approx(plain.running.means().loss, rel=0.02)
    saved = other.checkpoint(0.0)
    assert saved.model.keys() == plain.model.state_dict().keys()  # the names are those of any precision


def test_auto_precision_is_bf16_for_images_that_are_worth_it(monkeypatch):
    cpu = torch.device("cpu")
    for has in (True, False):
        able = {"avx512_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert precision("auto", cpu, (3, 16, 16)) == (torch.bfloat16 if has else torch.float32)
        assert precision("auto", cpu, (1, 8, 8)) == precision("auto", cpu, (2,)) == torch.float32
        assert precision("bf16", cpu, (2,)) == torch.bfloat16
    with pytest.raises(UserError, match="unknown training.precision 'half'; choose one of"):
        precision("half", cpu, (2,))


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
    a, b = straight.running.state_dict(), resumed.running.state_dict()
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


def test_what_a_foreign_checkpoint_lacks_begins_anew(make: Callable, tmp_path):
    """A checkpoint of another library has weights, an average and an optimizer."""
    source = make()
    source.advance()
    saved = source.checkpoint(0.0)
    names = ("step", "model", "ema", "optimizer", "seconds", "ema_updates")
    bare = Checkpoint(**{name: getattr(saved, name) for name in names})
    trainer = make(training__extra_ema_decays="0.5", training__precision="fp16")
    trainer.restore(bare, tmp_path)
    (further,) = trainer.averages.further.values()
    assert all(torch.equal(further.module.state_dict()[name], saved.ema[name]) for name in saved.ema)
    trainer.advance()
    assert (trainer.step, int(trainer.averages.updates), trainer.running.means().skipped) == (2, 2, 0)


def test_losses_by_noise_level(make: Callable):
    trainer = make(training__batch_size=64)
    t, losses = [], []
    for step in range(2):
        draw = trainer.draw(step)
        value = torch.rand(64, generator=torch.Generator().manual_seed(step))
        trainer.running.add(step, torch.tensor(True), value.mean(), value[0], draw.times.t, value)
        t.append(draw.times.t)
        losses.append(value)
    trainer.running.add(2, torch.tensor(False), value.mean() * math.nan, value[0], draw.times.t, value)
    means = trainer.running.means()
    levels, losses = trainer.sde.noise_level(torch.cat(t)), torch.cat(losses)
    edges = [-math.inf, *means.level_edges, math.inf]
    for low, high, mean in zip(edges[:-1], edges[1:], means.level_losses, strict=True):
        inside = losses[(levels > low) & (levels <= high)]
        assert mean == pytest.approx(inside.mean().item(), rel=1e-5) if len(inside) else math.isnan(mean)
    assert means.loss == pytest.approx(losses.mean().item(), rel=1e-5) and means.skipped == 1
    trainer.running.reset()
    assert math.isnan(trainer.running.means().loss)


def test_the_held_out_loss_is_that_of_the_average_on_fixed_samples(make: Callable):
    trainer = make(training__held_out=20, training__times="importance")
    losses = [trainer.held_out_loss()]
    for _ in range(30):
        trainer.advance()
    losses += [trainer.held_out_loss(), trainer.held_out_loss()]
    assert losses[1] == losses[2] < losses[0]
    held_out = load_dataset(data_options(trainer.config.data)).test[:20]
    assert torch.equal(quantize(trainer._held_out.x_0, 17).to(torch.uint8), held_out)
    trainer.ema.module.load_state_dict(trainer.model.state_dict())
    assert trainer.held_out_loss() != losses[1]
    assert make(training__held_out=0).held_out_loss() is None


def test_the_warmup_and_the_cosine():
    section = load_config("vpsde").training
    section.update(steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(step, section) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.001
    assert max(rates) == pytest.approx(2.0)
    section.warmup_steps = 0
    assert learning_rate(0, section) == 2.0
    section.images = 50 * section.batch_size - 1  # ends training before the steps do, and the cosine with it
    assert total_steps(section) == 50 and learning_rate(25, section) == pytest.approx(1.0)
    section.update(schedule="constant", warmup_steps=10)
    assert (
        learning_rate(4, section) == 1.0 and learning_rate(10, section) == learning_rate(99, section) == 2.0
    )


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (3, 7)])
def test_every_epoch_holds_every_sample_once(n: int, batch_size: int):
    batches = BatchOrder(n, batch_size, 0, CPU)
    drawn = torch.cat([batches(step) for step in range(3 * n)])
    epochs = drawn[: len(drawn) // n * n].reshape(-1, n)
    assert (epochs.sort(1).values == torch.arange(n)).all()
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(BatchOrder(n, batch_size, 0, CPU)(5), batches(5))  # without the batches before it


def test_settings_that_do_not_fit_are_refused(make: Callable):
    with pytest.raises(UserError, match="must divide training.batch_size=8"):
        make(training__accumulate=3)
    with pytest.raises(UserError, match="cosine, constant"):
        make(training__schedule="linear")
    with pytest.raises(UserError, match="float32, bf16, fp16"):
        make(training__precision="fp8")
