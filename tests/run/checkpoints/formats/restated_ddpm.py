"""score_sde_pytorch's model `ddpm`, restated as a function of the tensors of its file.

all_modules.{i}: two linear layers, a convolution, and then blocks, attention and resampling as they come
"""

from __future__ import annotations

from itertools import count

import torch
import torch.nn.functional as F


def ddpm(state, x, steps, multipliers, blocks, attention_levels, groups=32):
    """The network's output for images in [-1, 1]."""
    places = (f"all_modules.{i}" for i in count())

    def layer(name, h, **how):
        w, b = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.linear(h, w, b) if w.ndim == 2 else F.conv2d(h, w, b, **how)

    def norm(name, h):
        return F.group_norm(h, groups, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def nin(name, h):
        return torch.einsum("bihw,io->bohw", h, state[f"{name}.W"]) + state[f"{name}.b"][:, None, None]

    def block(h):
        name = next(places)
        out = layer(f"{name}.Conv_0", F.silu(norm(f"{name}.GroupNorm_0", h)), padding=1)
        out = out + layer(f"{name}.Dense_0", F.silu(emb))[:, :, None, None]
        out = layer(f"{name}.Conv_1", F.silu(norm(f"{name}.GroupNorm_1", out)), padding=1)
        return out + (nin(f"{name}.NIN_0", h) if f"{name}.NIN_0.W" in state else h)

    def attend(h):
        name = next(places)
        q, k, v = (nin(f"{name}.NIN_{j}", norm(f"{name}.GroupNorm_0", h)).flatten(2) for j in range(3))
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(2)  # (B, queries, keys)
        return h + nin(f"{name}.NIN_3", (v @ weights.transpose(1, 2)).reshape(h.shape))

    size = state["all_modules.0.weight"].shape[1]
    frequencies = 1e-4 ** (torch.arange(size // 2, dtype=x.dtype) / (size // 2 - 1))
    angles = steps[:, None] * frequencies
    emb = layer(next(places), torch.cat([angles.sin(), angles.cos()], 1))
    emb = layer(next(places), F.silu(emb))
    h = layer(next(places), x, padding=1)
    stack, last = [h], len(multipliers) - 1
    for level in range(last + 1):
        for _ in range(blocks):
            h = block(h)
            h = attend(h) if level in attention_levels else h
            stack.append(h)
        if level < last:
            h = layer(f"{next(places)}.Conv_0", F.pad(h, (0, 1, 0, 1)), stride=2)
            stack.append(h)
    h = block(attend(block(h)))
    for level in reversed(range(last + 1)):
        for _ in range(blocks + 1):
            h = block(torch.cat([h, stack.pop()], 1))
        h = attend(h) if level in attention_levels else h
        if level > 0:
            h = layer(f"{next(places)}.Conv_0", F.interpolate(h, scale_factor=2), padding=1)
    name = next(places)
    return layer(next(places), F.silu(norm(name, h)), padding=1)
