"""Divergences against linear and quadratic fields, whose Jacobians are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from score_diffusion.sde_lib import InputError, draw_probes, score_and_divergence

LAWS = ("rademacher", "gaussian", "sphere")


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_the_exact_divergence_of_a_quadratic_field(shape):
    """s = A x + ½ x²: divergence tr A + Σ x, at any rank, also where gradients are disabled."""
    D = math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(D, D, generator=generator, dtype=torch.float64)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)

    def field(x: Tensor, t: Tensor) -> Tensor:
        return (x.flatten(1) @ A.T + x.flatten(1) ** 2 / 2).reshape(x.shape) * t.reshape(
            -1, *[1] * len(shape)
        )

    t = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            s, divergence = score_and_divergence(field, x, t, None)
            torch.testing.assert_close(divergence, (t * (A.trace() + x.flatten(1).sum(1)))[None])
            torch.testing.assert_close(s, field(x, t))
            assert not s.requires_grad and not divergence.requires_grad


def test_hutchinson_is_the_quadratic_form_of_each_probe():
    A = torch.tensor([[1.0, 2.0], [5.0, -3.0]])
    x, probes = torch.randn(3, 2), torch.randn(5, 3, 2)
    _, estimates = score_and_divergence(lambda x: x @ A.T, x, None, probes)
    torch.testing.assert_close(estimates, torch.einsum("mbi,ij,mbj->mb", probes, A, probes))


def test_hutch_plus_plus_is_exact_for_a_full_basis_and_unbiased_for_any():
    """The matrix is -5 I, as a score at little noise, and a large remainder of rank 2 and a small one."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, 2, generator=generator).double()
    small = torch.randn(8, 8, generator=generator).double()
    A = a @ b.T + 0.3 * small - 5 * torch.eye(8).double()
    x = torch.zeros(4000, 8, dtype=torch.float64)
    probes, sketch = draw_probes(x, 2, generator=generator), draw_probes(x, 3, "gaussian", generator)
    whole = draw_probes(x[:5], 8, "gaussian", generator)
    _, exact = score_and_divergence(lambda x: x @ A.T, x[:5], None, probes[:, :5], sketch=whole)
    torch.testing.assert_close(exact, A.trace().expand(2, 5))
    _, multiple = score_and_divergence(lambda x: -5 * x, x[:5], None, probes[:, :5], sketch=probes[:1, :5])
    torch.testing.assert_close(multiple, torch.full_like(exact, -40.0))
    _, found = score_and_divergence(lambda x: x @ A.T, x, None, probes, sketch=sketch)
    _, plain = score_and_divergence(lambda x: x @ A.T, x, None, probes)
    error = found.mean(0).std().item() / len(x) ** 0.5
    assert found.mean().item() == pytest.approx(A.trace().item(), abs=4 * error)
    assert found.std() < plain.std()


@pytest.mark.parametrize("probes", [None, torch.ones(1, 3, 2)], ids=["exact", "hutchinson"])
def test_the_graph_reaches_the_parameters(probes):
    theta = torch.tensor([2.0, 3.0], requires_grad=True)
    x = torch.randn(3, 2)
    s, divergence = score_and_divergence(lambda x: theta * x**2, x, None, probes, create_graph=True)
    (gradient,) = torch.autograd.grad(divergence.sum() + s.sum(), theta)
    torch.testing.assert_close(gradient, (2 * x + x**2).sum(0))


@pytest.mark.parametrize("law", LAWS)
def test_probes_have_unit_second_moment(law: str) -> None:
    x = torch.zeros(1000, 3, dtype=torch.float64)
    v = draw_probes(x, 40, law, torch.Generator().manual_seed(0)).reshape(-1, 3)
    moment = torch.einsum("ni,nj->ij", v, v) / len(v)
    torch.testing.assert_close(moment, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.03)
    if law == "sphere":
        torch.testing.assert_close(v.norm(dim=1), torch.full((len(v),), math.sqrt(3), dtype=torch.float64))


def test_errors():
    x = torch.zeros(4, 2)
    for call, message in (
        (lambda: draw_probes(x, 0), "n_probes must be at least 1, got 0"),
        (lambda: draw_probes(x, probe="cube"), "probe must be one of rademacher, gaussian, sphere, got"),
        (lambda: score_and_divergence(lambda x: x.sum(1), x, None, None), r"the shape of x, \(4, 2\)"),
        (lambda: score_and_divergence(lambda x: x.detach(), x, None, None), "must be differentiable in x"),
    ):
        with pytest.raises(InputError, match=message):
            call()
