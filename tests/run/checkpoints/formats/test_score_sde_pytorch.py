"""score_sde_pytorch's .pth files give its networks' own outputs; what is not such a file is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.checkpoints.formats import score_sde_pytorch
from score_diffusion.run.errors import UserError
from tests.run.checkpoints.formats.golden import at_the_pixel, cases, images, weights

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
    _, averaged, step = score_sde_pytorch.read(net, tmp_path / "checkpoint.pth")
    net.load_state_dict(averaged)
    out = at_the_pixel(net(images(), torch.tensor(case["noise"], dtype=torch.float64)))
    torch.testing.assert_close(out, torch.tensor(case["output"], dtype=torch.float64), rtol=1e-7, atol=1e-7)
    assert step == 12345


def test_averages_are_not_the_weights(tmp_path):
    case = CASES["ncsnpp"]
    torch.save(checkpoint(case, ema_scale=0.5), tmp_path / "checkpoint.pth")
    model, averaged, _ = score_sde_pytorch.read(network(case), tmp_path / "checkpoint.pth")
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


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


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
    content = checkpoint(case)
    name, tensor = "module.all_modules.2.weight", content["model"]["module.all_modules.2.weight"]
    content["model"][name] = tensor[:, :1]
    refused(content, r"makes a tensor of shape \(16, 1, 3, 3\), conv_in.weight has \(16, 3, 3, 3\)")
    torch.save(checkpoint(case), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is damaged"):
        score_sde_pytorch.read(net, path)
