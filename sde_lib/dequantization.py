"""Noise within the bins of grey levels whose law depends on the image (Ho et al., 2019, "Flow++").

For any density q(u | k) of noise u in (0, 1)^D, on average over u ~ q,

    -log P(k) <= -log p(x(k, u)) - D log w + log q(u | k),     x(k, u) in the bin of width w of each level,

because P(k) is the integral of p over the bins. Uniform noise has log q = 0. The bound is tightest for q in
proportion to p within the bins, which is what a q that is trained to lower it comes near to.

Here q is the law of u = sigmoid(m + s logit(v)) for uniform v: of each element on its own, with a shift m and
a scale s that may depend on the whole image. m = 0 and s = 1 are uniform noise, so that the best q of this
family is no worse.

Reference:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design (Ho
        et al., 2019), https://arxiv.org/abs/1902.00275: Section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_noise(v: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """u = sigmoid(m + s logit(v)) and the logarithm of its density for uniform v.

    Args:
        v: Uniform noise in [0, 1), shape (B, *shape).
        shift: m, same shape.
        log_scale: log s, same shape.

    Returns:
        u, same shape, and log q(u) in nats, shape (B,), float64; both differentiable.
    """
    smallest = torch.finfo(v.dtype).eps
    v = v.clamp(smallest, 1 - smallest)
    logit = v.log() - (-v).log1p()
    y = shift + log_scale.exp() * logit
    # log du/dv = log s + log u (1 - u) - log v (1 - v)
    log_slope = log_scale + F.logsigmoid(y) + F.logsigmoid(-y) - F.logsigmoid(logit) - F.logsigmoid(-logit)
    return y.sigmoid(), -log_slope.double().flatten(1).sum(1)
