"""score_sde_pytorch's .pth files give its networks' own outputs; what is not such a file is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.checkpoints.formats import score_sde_pytorch
from score_diffusion.run.errors import UserError
from tests.run.checkpoints.formats.golden import at_the_pixel, cases, images, weights
from tests.run.checkpoints.formats.restated_ddpm import ddpm

CASES = cases("score_sde_pytorch")


def checkpoint(case, ema_scale=1.0):
    """What score_sde_pytorch saves, learning rate as a NumPy number and Fourier frequencies included."""
    state = weights(case["tensors"])
    trained = [name for name in state if not (name.endswith("0.W") and state[name].ndim == 1)]
    return {
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(2e-4), "params": [0]}]},
        "model": {
            "module.sigmas": torch.ones(3, dtype=torch.float64),
            **{f"module.{name}": tensor for name, tensor in state.items()},
        },
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": [ema_scale * state[k] for k in trained]},
        "step": 12345,
    }


def network(case):
    return UNet(3, **case["network"]).double().eval()


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_its_own_code(name, tmp_path):
    case = CASES[name]
    torch.save(checkpoint(case), tmp_path / "checkpoint.pth")
    net = network(case)
    weights = score_sde_pytorch.read(net, tmp_path / "checkpoint.pth")
    net.load_state_dict(weights.ema)
    out = at_the_pixel(net(images(), torch.tensor(case["noise"], dtype=torch.float64)))
    torch.testing.assert_close(out, torch.tensor(case["output"], dtype=torch.float64), rtol=1e-7, atol=1e-7)
    assert weights.step == 12345


def test_averages_are_not_the_weights(tmp_path):
    case = CASES["ncsnpp"]
    torch.save(checkpoint(case, ema_scale=0.5), tmp_path / "checkpoint.pth")
    weights = score_sde_pytorch.read(network(case), tmp_path / "checkpoint.pth")
    model, averaged = weights.model, weights.ema
    frequencies = "embedding.embed.frequencies"  # are not trained, and not averaged
    torch.testing.assert_close(averaged[frequencies], model[frequencies])
    for key in set(model) - {frequencies}:
        torch.testing.assert_close(averaged[key], 0.5 * model[key])


@pytest.mark.parametrize("name", CASES)
def test_rules_read_back_what_they_write(name):
    net = network(CASES[name])
    rules = score_sde_pytorch.rules(net)
    written = rules.write(net.state_dict())
    assert {key: list(tensor.shape) for key, tensor in written.items()} == CASES[name]["tensors"]
    for key, tensor in rules.read(written, "there").items():
        torch.testing.assert_close(tensor, net.state_dict()[key].float())


DDPM = dict(
    channels=32, multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), heads=1, modulation="shift",
    decoder_attention="level", norm_eps=1e-6, embedding_scale=1.0, resampling="conv_asymmetric",
)  # fmt: skip


def test_narrow_ddpms_have_32_groups(tmp_path):
    """The model `ddpm` has 32 groups at any width, an `ncsnpp` of its form has not; they share all names."""
    torch.manual_seed(0)
    net, path = UNet(3, **DDPM, norm_groups=32).double(), tmp_path / "checkpoint.pth"
    state = {
        name: tensor.float() + 0.05 * torch.randn(tensor.shape)
        for name, tensor in score_sde_pytorch.rules(net).write(net.state_dict()).items()
    }
    content = {"model": state, "ema": {"shadow_params": list(state.values())}, "step": 1}
    torch.save(content, path)
    net.load_state_dict(score_sde_pytorch.read(net, path).model)
    x, steps = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([3.0, 700.0], dtype=torch.float64)
    double = {name: tensor.double() for name, tensor in state.items()}
    expected = ddpm(double, x, steps, (1, 2), 1, (1,))
    torch.testing.assert_close(net(x, steps), expected, rtol=1e-6, atol=1e-6)
    other = UNet(3, **DDPM).double()
    with pytest.raises(UserError, match="score_sde_pytorch:ddpm or --from score_sde_pytorch:ncsnpp"):
        score_sde_pytorch.read(other, path)
    weights = score_sde_pytorch.read(other, path, groups_are_known=True)
    assert "groups of the norms: one for four channels, at most 32" in weights.notes
    other.load_state_dict(weights.model)
    ncsnpp = ddpm_with_quarters(double, x, steps)
    torch.testing.assert_close(other(x, steps), ncsnpp, rtol=1e-6, atol=1e-6)
    assert (ncsnpp - expected).abs().max() > 0.01 * expected.abs().max()


def ddpm_with_quarters(state, x, steps):
    """The same with one group for four channels, at most 32."""
    group_norm = torch.nn.functional.group_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "group_norm",
            lambda h, _, *rest: group_norm(h, min(32, h.shape[1] // 4), *rest),
        )
        return ddpm(state, x, steps, (1, 2), 1, (1,))


def test_what_a_file_does_not_say_is_named(tmp_path):
    torch.save(checkpoint(CASES["ffhq"]), tmp_path / "checkpoint.pth")
    notes = score_sde_pytorch.read(network(CASES["ffhq"]), tmp_path / "checkpoint.pth").notes
    assert [note.partition(" (")[0] for note in notes] == [
        "activation: swish",
        "sums of two branches: divided by √2",
        "resampling filter: 1, 3, 3, 1",
        "output divided by σ for VE only",
        "groups of the norms: one for four channels, at most 32",
    ]


def test_wrappers_in_names_are_removed(tmp_path):
    """DataParallel and torch.compile, in either order, and a compiled part."""
    case = CASES["ddpm"]
    expected = score_sde_pytorch.read(network(case), _saved(checkpoint(case), tmp_path)).model
    for wrap in ("_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "{}", "module.module.{}"):
        content = checkpoint(case)
        content["model"] = {
            wrap.format(name.removeprefix("module.")): x for name, x in content["model"].items()
        }
        found = score_sde_pytorch.read(network(case), _saved(content, tmp_path)).model
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def _saved(content, folder):
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.slow
def test_refusals(tmp_path):
    case, path = CASES["ddpm"], tmp_path / "checkpoint.pth"
    net = network(case)

    def refused(content, match):
        torch.save(content, path)
        with pytest.raises(UserError, match=match):
            score_sde_pytorch.read(net, path)

    with pytest.raises(UserError, match="does not exist"):
        score_sde_pytorch.read(net, tmp_path / "missing.pth")
    refused({**checkpoint(case), "optimizer": Bomb()}, "is refused: it holds more than tensors and numbers")
    refused({"model": {}}, "expected a dictionary with model, ema and step")
    refused(checkpoint(CASES["ddpmpp"]), "does not fit the configured network")
    content = checkpoint(case)
    content["ema"]["shadow_params"].pop()
    refused(content, r"moving average has 171 tensors for 172 weights")
    for step in (-5, 0.5, "many", True, None, [1], float("nan")):
        refused({**checkpoint(case), "step": step}, "step must be a number of training steps")
    for model in ([], {}, None, {"a": 1}, {1: torch.zeros(1)}, torch.zeros(2)):
        refused({**checkpoint(case), "model": model}, "model must be a dictionary of tensors")
    for ema in ([], {}, None, {"shadow_params": {}}, {"shadow_params": [1]}, {"shadow_params": None}):
        refused({**checkpoint(case), "ema": ema}, "ema's average must be a list of tensors")
    refused([1, 2], "expected a dictionary with model, ema and step")
    content = checkpoint(case)
    content["ema"]["shadow_params"][7] = content["ema"]["shadow_params"][7] * float("nan")
    refused(content, "the average in .* holds NaN or infinity in all_modules")
    content = checkpoint(case)
    content["model"]["module.all_modules.0.bias"] = torch.zeros(64).to_sparse()
    refused(content, "must hold dense tensors of real numbers")
    content = checkpoint(case)
    content["model"]["module.all_modules.0.bias"] = torch.zeros(64, dtype=torch.int64)
    refused(content, "has dtype torch.int64")
    content = checkpoint(case)
    name, tensor = "module.all_modules.2.weight", content["model"]["module.all_modules.2.weight"]
    content["model"][name] = tensor[:, :1]
    refused(content, r"makes a tensor of shape \(16, 1, 3, 3\), conv_in.weight has \(16, 3, 3, 3\)")
    torch.save(checkpoint(case), path)
    for damaged in (path.read_bytes()[:-1000], b"", b"\x80\x02.", b"\x80\x02}q\x00.", bytes(1000)):
        path.write_bytes(damaged)  # among them a pickle that ends with an empty stack
        with pytest.raises(UserError, match="is damaged|holds more than tensors|expected a dictionary"):
            score_sde_pytorch.read(net, path)
