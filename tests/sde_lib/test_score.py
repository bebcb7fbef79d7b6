"""ScoreModel: every prediction type turns the exact quantity into the exact score."""

from __future__ import annotations

import math
import types

import pytest
import torch
from torch import nn

from score_diffusion.samplers import DDIMSampler, log_snr_grid
from score_diffusion.sde_lib import DDPM, EDMSDE, VESDE, VPSDE, InputError, ScoreModel, expand, linear_betas
from score_diffusion.sde_lib.score import NOISE_INPUTS, PREDICTIONS
from tests.problems import SDES, ring

SIGMA_DATA = 0.5
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


class ExactNet(nn.Module):
    """A network that outputs what its prediction type asks for, of an exact law, from its inputs only."""

    def __init__(self, law, sde, prediction):
        super().__init__()
        self.law, self.sde, self.prediction = law, sde, prediction

    def time(self, noise):
        if self.prediction in ("vp", "iddpm"):
            first, second = self.sde.discrete_times()[:2]
            return first + noise * (second - first)
        log_noise_level = {"edm": 4 * noise, "ve": noise + math.log(2)}.get(self.prediction, noise)
        return self.sde.time_at_log_noise_level(log_noise_level)

    def forward(self, x_in, noise, cond=None):
        t = self.time(noise)
        alpha, sigma = expand(self.sde.alpha(t), x_in), expand(self.sde.sigma(t), x_in)
        scale = (alpha**2 + sigma**2).sqrt()
        level = sigma / alpha
        c_in = {"edm": (level**2 + SIGMA_DATA**2).rsqrt() / alpha, "ve": 1.0}.get(self.prediction, 1 / scale)
        x = x_in / c_in
        D = self.law.denoiser(self.sde)(x, t)
        eps = (x - alpha * D) / sigma
        y = x / alpha  # Table 1's variable, whose noise level is σ/α
        c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
        c_out = level * SIGMA_DATA * (level**2 + SIGMA_DATA**2).rsqrt()
        return {
            "noise": eps,
            "x0": D,
            "v": (alpha * eps - sigma * D) / scale,
            "score": -eps / sigma,
            "edm": (D - c_skip * y) / c_out,
            "vp": (D - y) / -level,
            "iddpm": (D - y) / -level,
            "ve": (D - y) / level,
        }[self.prediction]


@every_sde
@every_prediction
def test_exact_output_gives_the_exact_score(sde, prediction):
    law = ring()
    model = ScoreModel(ExactNet(law, sde, prediction), sde, prediction)
    t = sde.discrete_times()[[49, 200, 499, 999]]  # where iddpm's nearest step is exact
    x = law.sample(4) + torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) * expand(
        sde.sigma(t), law.sample(4)
    )
    torch.testing.assert_close(model(x, t), law.score(sde)(x, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.denoise(x, t), law.denoiser(sde)(x, t), rtol=1e-5, atol=1e-5)


@every_sde
def test_network_sees_unit_variance(sde):
    """For data of unit variance the input has unit variance at every noise level; log(σ/α) is the noise."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x, noise, cond=None):
            seen.append((x, noise, cond))
            return x

    n = 20_000
    generator = torch.Generator().manual_seed(0)
    for t in (1e-3, 0.3, 1.0):
        times = torch.full((n,), t)
        mean, std = sde.marginal_prob(torch.randn(n, 1, generator=generator), times)
        ScoreModel(Spy(), sde)(
            mean + std[:, None] * torch.randn(n, 1, generator=generator), times, cond=times
        )
        x, noise, cond = seen[-1]
        assert x.var().item() == pytest.approx(1, abs=0.03)
        torch.testing.assert_close(noise, (sde.sigma(times) / sde.alpha(times)).log())
        assert cond is times


def test_noise_inputs_are_the_labels_of_the_papers():
    """The labels that score_sde_pytorch prints for VP and VE, continuous and discrete; EDM's Table 1."""
    t = torch.tensor([1.0, 0.5, 1e-3])

    def label(name, sde):
        return NOISE_INPUTS[name](sde, t)

    torch.testing.assert_close(label("position", VPSDE()), torch.tensor([999.0, 499.5, 0.999]))
    torch.testing.assert_close(label("step", DDPM(linear_betas(1000))), torch.tensor([999.0, 499.0, 0.0]))
    torch.testing.assert_close(label("reversed_step", VESDE()), torch.tensor([0.0, 500.0, 998.0]))
    # For data in [-1, 1] all σ are twice those for [0, 1], whose logarithm is the noise input.
    torch.testing.assert_close(
        label("log_half_noise_level", VESDE(0.02, 100.0)), torch.tensor([50, 0.707107, 0.0100855]).log()
    )
    torch.testing.assert_close(label("quarter_log_noise_level", VESDE()), VESDE().sigma(t).log() / 4)


@every_sde
def test_edm_with_unit_sigma_data_is_minus_v(sde):
    class Net(nn.Module):
        def forward(self, x, noise, cond=None):
            return torch.sin(3 * x) + noise[:, None]

    class MinusNet(Net):
        def forward(self, x, noise, cond=None):
            return -super().forward(x, noise)

    edm = ScoreModel(Net(), sde, "edm", sigma_data=1.0, noise_input="log_noise_level")
    x, t = torch.randn(4, 2), torch.tensor([0.1, 0.4, 0.7, 1.0])
    torch.testing.assert_close(edm(x, t), ScoreModel(MinusNet(), sde, "v")(x, t))


@every_sde
@every_prediction
def test_the_target_is_the_papers(sde, prediction):
    """What training asks of the network at x_t = α x_0 + σ ε, as the papers write it."""
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    t = sde.T * torch.tensor([0.01, 0.3, 0.8, 1.0], dtype=torch.float64)
    alpha, sigma = expand(sde.alpha(t), x_0), expand(sde.sigma(t), x_0)
    x_t = alpha * x_0 + sigma * noise
    angle = torch.atan2(sigma, alpha)  # φ of Salimans & Ho (2022), Appendix D
    s, y = sigma / alpha, x_t / alpha  # σ and x of Karras et al. (2022), Table 1
    c_skip, c_out = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s * SIGMA_DATA / (s**2 + SIGMA_DATA**2).sqrt()
    expected = {
        "noise": noise,  # Ho et al. (2020), eq. 14
        "x0": x_0,
        "v": angle.cos() * noise - angle.sin() * x_0,
        "score": -(x_t - alpha * x_0) / sigma**2,  # ∇ log N(x_t; α x_0, σ² I), Vincent (2011)
        "edm": (x_0 - c_skip * y) / c_out,  # eq. 8
        "vp": (x_0 - y) / -s,  # Table 1: c_skip = 1, c_out = -σ
        "iddpm": (x_0 - y) / -s,
        "ve": (x_0 - y) / s,  # c_skip = 1, c_out = σ
    }[prediction]
    model = ScoreModel(Given(lambda x, noise: output), sde, prediction)
    output = model.target(x_t, noise, t)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model(x_t, t), -noise / sigma, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model.denoise(x_t, t), x_0, rtol=1e-6, atol=1e-6)


def test_predictions_of_the_data_are_exact_at_small_noise():
    """In float32 at σ = 2e-6 the score keeps the digits of x_t - x_0; the denoiser is the output itself."""
    sde, t = EDMSDE(), torch.tensor([2e-6])
    x_0 = torch.tensor([[0.7, -0.3]])
    x_t = x_0 + 2e-6 * torch.tensor([[1.0, -1.5]])
    model = ScoreModel(Given(lambda x, noise: x_0), sde, "x0")
    assert torch.equal(model.denoise(x_t, t), x_0)
    assert torch.equal(model(x_t, t), -(x_t - x_0) / t / t)


class Given(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, noise):
        return self.function(x, noise)


def test_any_network_is_a_score_model():
    """Functions of (x, noise), with and without a condition, and networks whose output is an object."""
    sde, (x, t) = VPSDE(), (torch.randn(4, 2), torch.rand(4) + 0.01)
    expected = -torch.sin(x) / expand(sde.sigma(t), x)

    class Needs(nn.Module):
        def forward(self, x, noise, cond):
            return torch.sin(x) if cond is None else cond * x

    class Output(nn.Module):
        def forward(self, sample, timestep, class_labels=None, return_dict=True):
            return types.SimpleNamespace(sample=torch.sin(sample))

    class Frozen(nn.Module):  # as DistributedDataParallel and compiled modules declare theirs
        def forward(self, *args, **kwargs):
            return torch.sin(args[0])

    for net in (Given(lambda x, noise: x.sin()), lambda x, noise: x.sin(), Needs(), Output(), Frozen()):
        model = ScoreModel(net, sde)
        torch.testing.assert_close(model(x, t), expected)
        assert model.device == torch.device("cpu")
        samples = DDIMSampler(sde, log_snr_grid(sde, 3))(model, (4, 2)).samples
        assert samples.shape == (4, 2)
    label = torch.full((4, 1), 3.0)
    torch.testing.assert_close(ScoreModel(Needs(), sde)(x, t, label), -3 * x / expand(sde.sigma(t), x))


def test_a_diffusers_network_is_a_score_model():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    sde, x, t = VPSDE(), torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 1.0])
    with torch.no_grad():
        theirs = net(x, sde.chain_position(t)).sample
        torch.testing.assert_close(ScoreModel(net, sde, "vp")(x, t), -theirs / expand(sde.sigma(t), x))


@every_sde
def test_one_time_for_all_samples(sde):
    model = ScoreModel(lambda x, noise: x * noise[:, None], sde)
    x, t = torch.randn(3, 2), torch.full((3,), 0.4, dtype=torch.float64)
    for one in (0.4, t[0], t[:1]):
        assert torch.equal(model(x, one), model(x, t))
        assert torch.equal(ring().score(sde)(x, one), ring().score(sde)(x, t))


def test_network_runs_in_its_own_dtype():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, noise, cond=None):
            assert x.dtype == noise.dtype == torch.float32
            return self.layer(x)

    score = ScoreModel(Linear(), VPSDE())(
        torch.randn(3, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    )
    assert score.dtype == torch.float64


# Options.


def test_score_model_with_learned_variance():
    sde = DDPM(linear_betas(100))
    doubling = Given(lambda x, noise: torch.cat([x, torch.full_like(x, 2 * 0.3 - 1)], dim=1))  # v = 0.3
    model = ScoreModel(doubling, sde, prediction="x0", learned_variance=True)
    x, t = torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor([0.2, 0.7])
    score, v = model.score_and_fraction(x, t)
    torch.testing.assert_close(v, torch.full_like(x, 0.3))
    torch.testing.assert_close(score, model(x, t))
    torch.testing.assert_close(model.denoise(x, t), x)
    with pytest.raises(ValueError, match=r"must return twice the channels of its input, \(2, 6, 4, 4\)"):
        ScoreModel(_Echo(), sde, learned_variance=True)(x, t)


class _Echo(nn.Module):
    seen: torch.Tensor

    def forward(self, x, noise, cond=None):
        self.seen = x
        return x


@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_unscaled_input(prediction):
    """scale_input=False shows the network x_t itself and does not change the meaning of its output."""
    sde, x, t = VESDE(), 30 * torch.rand(2, 3), torch.tensor([0.9, 1.0])
    net = _Echo()
    ScoreModel(net, sde, prediction)(x, t)
    assert net.seen.abs().max() < 2
    raw = ScoreModel(net, sde, prediction, scale_input=False)
    raw(x, t)
    torch.testing.assert_close(net.seen, x)

    class Zero(nn.Module):
        def forward(self, x, noise, cond=None):
            return 0 * x

    torch.testing.assert_close(
        ScoreModel(Zero(), sde, prediction)(x, t),
        ScoreModel(Zero(), sde, prediction, scale_input=False)(x, t),
    )


def test_errors():
    with pytest.raises(
        ValueError, match="prediction must be one of 8 names, such as noise, x0, v, score, edm, got"
    ):
        ScoreModel(nn.Identity(), VPSDE(), "epsilon")

    with pytest.raises(ValueError, match="noise_input must be one of .* log_noise_level, .*, got 'sigma'"):
        ScoreModel(nn.Identity(), VPSDE(), noise_input="sigma")
    with pytest.raises(ValueError, match="sigma_data must be positive, got 0.0"):
        ScoreModel(nn.Identity(), VPSDE(), "edm", sigma_data=0.0)

    class Shrinks(nn.Module):
        def forward(self, x, noise, cond=None):
            return x[:, :1]

    with pytest.raises(ValueError, match="must return the shape of its input"):
        ScoreModel(Shrinks(), VPSDE())(torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="t must have shape"):
        ScoreModel(Shrinks(), VPSDE())(torch.zeros(3, 2), torch.ones(3, 1))
    x, t = torch.zeros(3, 2), torch.ones(3)
    for net, message in (
        (lambda x: x, r"called as net\(x, noise\) or net\(x, noise, cond\); <lambda> takes \(x\)"),
        (nn.Linear(2, 2), r"Linear takes \(input: .*\)"),
        (lambda x, noise: (x, x), "return a tensor like its input, .* <lambda> returned a tuple"),
        (lambda x, noise: None, "returned a NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            ScoreModel(net, VPSDE())(x, t)
    with pytest.raises(InputError, match="Given takes no condition, it is called as"):
        ScoreModel(Given(lambda x, noise: x), VPSDE())(x, t, torch.zeros(3))
    with pytest.raises(InputError, match="must be real"):
        ScoreModel(Given(lambda x, noise: x), VPSDE())(x.to(torch.complex64), t)
