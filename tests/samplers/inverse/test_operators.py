"""Measurement operators against their own matrices, NumPy, SciPy and PyTorch, and the identities of an
adjoint, a decomposition and a pseudo-inverse.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from score_diffusion.samplers.inverse import (
    Blur,
    Downsample,
    Fourier,
    FunctionOperator,
    JPEGQuantization,
    LinearFunctionOperator,
    Mask,
    MatrixOperator,
    PhaseRetrieval,
    Radon,
    RandomProjection,
    ToGrey,
    column_sampling,
    gaussian_kernel,
    uniform_kernel,
)

LUMA = (0.299, 0.587, 0.114)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(*shape, share=0.4, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


SPECTRAL = {
    "mask-1d": Mask(some(7)),
    "mask-2d": Mask(some(3, 5)),
    "mask-all-channels": Mask(some(1, 4, 6), (3, 4, 6)),
    "mask-4d": Mask(some(2, 3, 4, 2)),
    "downsample-1d": Downsample((12,), 3),
    "downsample-channels": Downsample((2, 8), 2),
    "downsample-2d": Downsample((3, 8, 4), 4),
    "downsample-3d": Downsample((1, 4, 6, 2), 2),
    "downsample-one-axis": Downsample((2, 4, 6), 3, axes=[2]),
    "blur-1d": Blur((9,), gaussian_kernel(5, 1.0, 1), "circular"),
    "blur-1d-reflect": Blur((9,), uniform_kernel(3, 1)),
    "blur-2d": Blur((2, 6, 7), gaussian_kernel(5, 0.8), "circular"),
    "blur-2d-reflect": Blur((2, 6, 7), gaussian_kernel(5, 0.8)),
    "blur-2d-motion": Blur((1, 5, 6), randn(3, 4), "circular"),
    "blur-3d-reflect": Blur((1, 4, 3, 5), uniform_kernel(3, 3)),
    "blur-negative-taps": Blur((1, 6, 6), uniform_kernel(5) - 0.7 * gaussian_kernel(5, 0.5)),
    "blur-columns": Blur((2, 5, 6), gaussian_kernel(3, 1.0, 1), axes=[1]),
    "grey": ToGrey((3, 4, 5)),
    "grey-luma": ToGrey((3, 4, 2, 2), LUMA),
    "random-projection": RandomProjection((2, 3, 4), 10),
    "fourier-1d": Fourier(some(9), channels=2),
    "fourier-2d": Fourier(some(6, 8)),
    "fourier-odd": Fourier(some(5, 7), channels=3),
    "fourier-columns": Fourier(column_sampling(8, 8, 2.0)),
    "fourier-all": Fourier(torch.ones(4, 6)),
    "fourier-3d": Fourier(some(4, 3, 2), channels=1),
    "fourier-complex": Fourier(some(6, 5), channels=4, complex_input=True),
    "radon": Radon(6, 5),
    "radon-few-cells": Radon(5, [0.3, 1.2], cells=4),
    "matrix-wide": MatrixOperator(randn(5, 12), (3, 4)),
    "matrix-tall": MatrixOperator(randn(12, 5), (5,), (3, 4)),
    "matrix-rank-2": MatrixOperator(randn(6, 2) @ randn(2, 8, seed=1)),
}
LINEAR = SPECTRAL | {
    "blur-motion-reflect": Blur((1, 5, 6), randn(3, 4)),
    "function": LinearFunctionOperator(lambda x: x.cumsum(-1)[..., ::2], (2, 7)),
}
NONLINEAR = {
    "jpeg": JPEGQuantization((3, 8, 16), 30),
    "phase": PhaseRetrieval((2, 4, 5)),
    "phase-1d": PhaseRetrieval((1, 6), 3),
    "saturation": FunctionOperator(lambda x: x.clamp(-0.5, 0.5).flatten(1), (2, 3)),
}
every = pytest.mark.parametrize
each_spectral = every("operator", SPECTRAL.values(), ids=SPECTRAL.keys())
each_linear = every("operator", LINEAR.values(), ids=LINEAR.keys())
each = every("operator", (LINEAR | NONLINEAR).values(), ids=(LINEAR | NONLINEAR).keys())


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@each_linear
def test_adjoint_identity(operator):
    """<A x, y> = <x, Aᵀ y>, and the adjoint's matrix is the transpose of A's."""
    x, y = randn(4, *operator.input_shape), randn(4, *operator.output_shape, seed=1)
    close((operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1))
    M = math.prod(operator.output_shape)
    adjoint = operator.adjoint(torch.eye(M, dtype=torch.float64).reshape(M, *operator.output_shape))
    close(adjoint.flatten(1), operator.matrix())


@each_linear
def test_matrix_is_the_operator(operator):
    x = randn(3, *operator.input_shape)
    close(operator(x).flatten(1), x.flatten(1) @ operator.matrix().T)
    close(operator.dense()(x), operator(x))


@each_spectral
def test_svd(operator):
    """A = U diag(s) Vᵀ with orthonormal columns and s > 0; A⁺ and (a A Aᵀ + b I)⁻¹ are the matrix's."""
    svd, A = operator.svd(), operator.matrix()
    R, B = len(svd.s), 3
    assert (svd.s > 0).all() and torch.linalg.matrix_rank(A) == R
    basis = torch.eye(R, dtype=torch.float64)
    U, V = svd.U(basis), svd.V(basis)
    assert U.shape == (R, *operator.output_shape) and V.shape == (R, *operator.input_shape)
    close(U.flatten(1) @ U.flatten(1).T, basis)
    close(V.flatten(1) @ V.flatten(1).T, basis)
    close(U.flatten(1).T @ svd.s.diag() @ V.flatten(1), A)
    x, y = randn(B, *operator.input_shape), randn(B, *operator.output_shape)
    close(svd.Ut(y), y.flatten(1) @ U.flatten(1).T)
    close(svd.Vt(x), x.flatten(1) @ V.flatten(1).T)
    pinv = torch.linalg.pinv(A, rtol=1e-12)
    close(operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ pinv.T)
    close(svd.project(x).flatten(1), x.flatten(1) @ (pinv @ A).T)
    a, b = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.0, 0.1, 3.0])
    for k in range(B):
        dense = a[k] * A @ A.T + b[k] * torch.eye(len(A))
        solution = torch.linalg.pinv(dense, rtol=1e-12) @ y[k].flatten()
        assert (svd.solve(y, a, b)[k].flatten() - solution).norm() < 1e-8 * solution.norm()


@each_spectral
def test_pseudo_inverse_identities(operator):
    """A A⁺ A = A and A⁺ A A⁺ = A⁺, in the dtype of the input."""
    x, y = randn(2, *operator.input_shape), randn(2, *operator.output_shape, seed=1)
    close(operator(operator.pseudo_inverse(operator(x))), operator(x))
    close(operator.pseudo_inverse(operator(operator.pseudo_inverse(y))), operator.pseudo_inverse(y), 1e-8)
    assert operator.pseudo_inverse(y.float()).dtype == torch.float32


@each
def test_a_sample_is_measured_alike_in_every_batch(operator):
    """Bit for bit, also where matrix products would sum in another order, and with the adjoint."""
    x = randn(40, *operator.input_shape).float()
    y = operator(x)
    assert y.dtype == torch.float32 and y.shape == (40, *operator.output_shape)
    for k in (0, 3, 39):
        assert torch.equal(operator(x[k : k + 1])[0], y[k])
        if operator in LINEAR.values():
            assert torch.equal(operator.adjoint(y[k : k + 1])[0], operator.adjoint(y)[k])
        if operator in SPECTRAL.values():
            assert torch.equal(operator.pseudo_inverse(y[k : k + 1])[0], operator.pseudo_inverse(y)[k])


@each
def test_wrong_shapes_are_refused(operator):
    with pytest.raises(ValueError, match="measures samples of shape"):
        operator(torch.zeros(2, *operator.input_shape, 1))
    with pytest.raises(ValueError, match="measures samples of shape"):
        operator(torch.zeros(operator.input_shape[:-1] + (operator.input_shape[-1] + 1,))[None])
    if operator in LINEAR.values():
        with pytest.raises(ValueError, match="has measurements of shape"):
            operator.adjoint(torch.zeros(1, 1, *operator.output_shape))


@each
def test_operators_are_differentiable(operator):
    """The gradient of <A(x), y> is Aᵀ y where A is linear, and the difference quotient where it is smooth."""
    x, y = randn(2, *operator.input_shape).requires_grad_(), randn(2, *operator.output_shape, seed=1)
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    if operator in LINEAR.values():
        close(gradient, operator.adjoint(y))
    elif not isinstance(operator, JPEGQuantization):
        v, h = randn(*x.shape, seed=2), 1e-6
        quotient = ((operator(x + h * v) - operator(x - h * v)) * y).sum() / (2 * h)
        close((gradient * v).sum(), quotient.detach(), 1e-6)


def test_measurement_noise():
    """The noise has standard deviation sigma_y and is that of (seed, k), whatever the batch."""
    operator = Downsample((1, 4, 4), 2)
    x = randn(500, 1, 4, 4)
    y = operator.measure(x, 0.3, seed=5)
    assert abs((y - operator(x)).std().item() - 0.3) < 0.01
    assert torch.equal(operator.measure(x[7:9], 0.3, seed=5, first=7), y[7:9])
    assert torch.equal(operator.measure(x, 0.0), operator(x))
    with pytest.raises(ValueError, match="sigma_y must be >= 0"):
        operator.measure(x, -0.1)


def test_mask_picks_the_known_elements():
    known = torch.tensor([[True, False], [False, True]])
    assert Mask(known[None], (2, 2, 2))(torch.arange(8.0).reshape(1, 2, 2, 2)).tolist() == [[0, 3, 4, 7]]
    assert Mask(known.int())(torch.arange(4.0).reshape(1, 2, 2)).tolist() == [[0, 3]]


def test_downsample_is_average_pooling():
    x = randn(2, 3, 8, 12)
    close(Downsample((3, 8, 12), 4)(x), torch.nn.functional.avg_pool2d(x, 4))
    close(Downsample((3, 12), 3)(x[:, 0, :3]), torch.nn.functional.avg_pool1d(x[:, 0, :3], 3))


def test_grey_of_colour():
    x = randn(2, 3, 4, 5)
    close(ToGrey((3, 4, 5))(x), x.mean(1, keepdim=True))
    close(ToGrey((3, 4, 5), LUMA)(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])


@every("boundary", ["circular", "reflect"])
@every("kernel", [gaussian_kernel(5, 1.3), randn(3, 5)], ids=["gaussian", "motion"])
def test_blur_is_scipys(boundary, kernel):
    x = randn(2, 3, 6, 7)
    mode = {"circular": "wrap", "reflect": "reflect"}[boundary]
    expected = scipy.ndimage.convolve(x.numpy(), kernel.numpy()[None, None], mode=mode)
    close(Blur((3, 6, 7), kernel, boundary)(x), torch.from_numpy(expected))


def test_kernels():
    close(gaussian_kernel(5, 1.5).sum(), torch.tensor(1.0, dtype=torch.float64))
    impulse = np.zeros(9)
    impulse[4] = 1
    line = scipy.ndimage.gaussian_filter1d(impulse, 0.9, truncate=4 / 0.9)
    close(gaussian_kernel(9, 0.9, 1), torch.from_numpy(line))
    assert uniform_kernel(3).tolist() == [[1 / 9] * 3] * 3


def test_fourier_is_numpys():
    sampled, x = some(6, 7), randn(2, 3, 6, 7)
    y = Fourier(sampled, channels=3)(x)
    expected = np.fft.fftn(x.numpy(), axes=(2, 3), norm="ortho")[:, :, sampled.numpy()]
    close(torch.complex(y[:, :, 0], y[:, :, 1]), torch.from_numpy(expected))
    y = Fourier(sampled, channels=2, complex_input=True)(x[:, :2])
    expected = np.fft.fftn(x[:, 0].numpy() + 1j * x[:, 1].numpy(), axes=(1, 2), norm="ortho")[
        :, sampled.numpy()
    ]
    close(torch.complex(y[:, 0, 0], y[:, 0, 1]), torch.from_numpy(expected))


def test_column_sampling():
    """Whole columns, the lowest frequencies always, as many as the acceleration leaves."""
    pattern = column_sampling(6, 16, 2.0, centre=3, seed=1)
    assert pattern.shape == (6, 16) and pattern[0].sum() == 8 and (pattern == pattern[:1]).all()
    assert pattern[0, [0, 1, 15]].all()
    assert not torch.equal(pattern, column_sampling(6, 16, 2.0, centre=3, seed=2))
    assert column_sampling(4, 8, 1.0).all()


def test_radon_conserves_mass_and_meets_the_integral_of_a_gaussian():
    """Each projection has the image's sum; that of a smooth blob is the Gaussian's own line integral."""
    operator = Radon(32, 7)
    x = randn(2, 1, 32, 32)
    close(operator(x).sum(3), x.sum((1, 2, 3))[:, None, None].expand(2, 1, 7))
    place = torch.arange(32, dtype=torch.float64) - 15.5
    mx, my, s = 3.0, -2.0, 4.0
    blob = torch.exp(-((place - mx) ** 2 + (-place[:, None] - my) ** 2) / (2 * s**2)) / (2 * math.pi * s**2)
    cells = operator.output_shape[2]
    u = torch.arange(cells, dtype=torch.float64) - (cells - 1) / 2
    for k, angle in enumerate(operator.angles):
        centre = mx * math.cos(angle) + my * math.sin(angle)
        line = torch.exp(-((u - centre) ** 2) / (2 * s**2)) / math.sqrt(2 * math.pi * s**2)
        close(operator(blob[None, None])[0, 0, k], line, 1e-3)


def test_radon_along_the_axes_sums_columns_and_rows():
    x = randn(1, 1, 5, 5)
    y = Radon(5, [0.0, math.pi / 2], cells=5)(x)[0, 0]
    close(y[0], x[0, 0].sum(0), 1e-5)
    close(y[1], x[0, 0].sum(1).flip(0), 1e-5)


def test_jpeg_loses_what_the_table_says():
    """Coefficients are whole multiples of the table's steps; decoding and coding again changes nothing."""
    x = torch.rand(2, 3, 16, 8, dtype=torch.float64) * 2 - 1
    errors = []
    for quality in (5, 50, 100):
        operator = JPEGQuantization((3, 16, 8), quality)
        y = operator(x)
        close(operator(operator.pseudo_inverse(y)), y)
        errors.append((operator.pseudo_inverse(y) - x).abs().max().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2 * 8 / 255
    y = JPEGQuantization((3, 16, 8), 50)(x)
    lowest = y.reshape(2, 3, 2, 8, 1, 8)[..., 0, :, 0] * 127.5 / 16
    close(lowest, lowest.round(), 1e-8)


def test_phase_retrieval_cannot_tell_shifts_and_sign():
    """Magnitudes do not change under a sign; within the padding not under a shift; and are NumPy's."""
    x = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    x[..., :4, :5] = randn(4, 5)
    operator = PhaseRetrieval((1, 6, 6))
    close(operator(-x), operator(x))
    close(operator(x.roll((1, 1), (2, 3))), operator(x))
    expected = np.abs(np.fft.fft2(x[0, 0].numpy(), (12, 12), norm="ortho"))
    close(operator(x)[0, 0], torch.from_numpy(expected))


def test_random_projection_is_seeded():
    one, again, other = (RandomProjection((8,), 3, seed).matrix() for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


@every(
    ("make", "message"),
    [
        (lambda: Mask(torch.zeros(3, 3)), "no known element"),
        (lambda: Mask(torch.ones(2, 3), (3, 4)), "must broadcast to the shape of a sample"),
        (lambda: Downsample((1, 8, 6), 4), "divides the lengths"),
        (lambda: Downsample((1, 8, 8), 2, axes=[3]), "distinct numbers in 0..2"),
        (lambda: Blur((1, 4, 4), uniform_kernel(5)), "none longer than the sample"),
        (lambda: Blur((1, 4, 4), uniform_kernel(3, 1)), "kernel must have 2 axes"),
        (lambda: Blur((1, 4, 4), uniform_kernel(3), "zero"), "boundary must be one of"),
        (lambda: Blur((1, 4, 4), randn(3, 3)).svd(), "their mirror images"),
        (lambda: ToGrey((3, 4, 4), (1.0, 2.0)), "weights must be 3 numbers"),
        (lambda: RandomProjection((4,), 5), "measurements must lie in 1..4"),
        (lambda: Fourier(torch.zeros(4, 4)), "no frequency is sampled"),
        (lambda: Fourier(torch.ones(4, 4), 3, complex_input=True), "channels must be positive, and even"),
        (lambda: column_sampling(8, 8, 4.0), "the acceleration or the centre"),
        (lambda: Radon(4, 0), "must be positive"),
        (lambda: MatrixOperator(randn(3, 4), (2, 3)), "maps 4 numbers to 3"),
        (lambda: MatrixOperator(randn(3, 4, 5)), "real of shape"),
        (lambda: MatrixOperator(torch.zeros(2, 2)).svd(), "the matrix is zero"),
        (lambda: FunctionOperator(lambda x: x.sum(), (3,)), "must return a real tensor of shape"),
        (lambda: LinearFunctionOperator(lambda x: x.square(), (3,)), "is not linear"),
        (lambda: LINEAR["function"].svd(), "no fast singular value decomposition"),
        (lambda: PhaseRetrieval((3,)), "needs samples of shape"),
        (lambda: PhaseRetrieval((1, 3)).svd(), "has no singular value decomposition"),
        (lambda: JPEGQuantization((1, 12, 8)), "multiples of 8"),
        (lambda: JPEGQuantization((1, 8, 8), 0), "quality must lie in 1..100"),
        (lambda: Downsample((), 2), "must be one or more positive integers"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
