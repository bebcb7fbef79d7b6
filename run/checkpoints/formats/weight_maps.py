"""Which tensors of another library's file correspond to which of a network's: rules that work both ways.

Libraries differ in names, in the layout of projections (matrices, 1x1 convolutions, transposed matrices),
in how attention stores q, k and v, in the order of sines and cosines, and in one redundancy: where a norm is
scaled and shifted by the noise, ours has no weights of its own, and theirs are folded into the noise's,

    (γ n + β)(1 + s) + b = (1 + s') n + b',    1 + s' = γ (1 + s),   b' = β (1 + s) + b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from score_diffusion.run.errors import UserError

Tensors = tuple[Tensor, ...]
PARTS = ("weight", "bias")
ROW_ORDERS = {  # of the rows of a matrix for q, k and v: the places of (qkv, head, d)
    "qkv head d": (0, 1, 2),
    "head qkv d": (1, 0, 2),
    "head d qkv": (1, 2, 0),
}


@dataclass(frozen=True)
class Rule:
    """Tensors of one side as a function of those of the other."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[..., Tensors]
    """Theirs to ours."""
    write: Callable[..., Tensors]
    """Ours to theirs."""


def _same(*tensors: Tensor) -> Tensors:
    return tensors


def _affine(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


class Rules:
    """A list of rules for one network.

    Args:
        net: The network, for the shapes of its tensors.
    """

    def __init__(self, net: nn.Module) -> None:
        self.shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        self.rules: list[Rule] = []

    def copy(self, ours: str, theirs: str) -> None:
        """One tensor."""
        self.rules.append(Rule((ours,), (theirs,), _same, _same))

    def layer(self, ours: str, theirs: str) -> None:
        """Weight and bias of a layer of the same layout."""
        for part in PARTS:
            self.copy(f"{ours}.{part}", f"{theirs}.{part}")

    def projection(
        self, ours: str, theirs: str, parts: tuple[str, str] = PARTS, transposed: bool = False
    ) -> None:
        """A matrix that ours stores as (out, in) or (out, in, 1, 1), and theirs in any of these layouts."""
        shape = self.shapes[f"{ours}.weight"]

        def read(weight: Tensor, bias: Tensor) -> Tensors:
            matrix = weight.flatten(1)
            return (matrix.T if transposed else matrix).reshape(shape).contiguous(), bias

        def write(weight: Tensor, bias: Tensor) -> Tensors:
            return (weight.flatten(1).T if transposed else weight.flatten(1)).contiguous(), bias

        self.rules.append(Rule(_affine(ours), tuple(f"{theirs}.{part}" for part in parts), read, write))

    def qkv(
        self, ours: str, theirs: Iterable[str], parts: tuple[str, str] = PARTS, transposed: bool = False
    ) -> None:
        """Three matrices that ours stacks."""
        names = tuple(f"{name}.{part}" for part in parts for name in theirs)

        def read(*tensors: Tensor) -> Tensors:
            matrices = [w.flatten(1).T if transposed else w.flatten(1) for w in tensors[:3]]
            return torch.cat(matrices), torch.cat(tensors[3:])

        def write(weight: Tensor, bias: Tensor) -> Tensors:
            matrices = [w.T.contiguous() if transposed else w.contiguous() for w in weight.chunk(3)]
            return (*matrices, *(b.contiguous() for b in bias.chunk(3)))

        self.rules.append(Rule(_affine(ours), names, read, write))

    def stacked_qkv(self, ours: str, theirs: str, heads: int, order: str) -> None:
        """One matrix whose rows are in an order of `ROW_ORDERS`; ours has "qkv head d"."""
        axes = ROW_ORDERS[order]
        sizes = [(3, heads, -1)[axis] for axis in axes]
        inverse = [axes.index(axis) for axis in range(3)]

        def permute(tensor: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
            rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
            rows = rows.unflatten(0, list(shape)).permute(*order, 3).flatten(0, 2)
            return rows if tensor.ndim > 1 else rows[:, 0]

        def read(*tensors: Tensor) -> Tensors:
            return tuple(permute(tensor, sizes, inverse) for tensor in tensors)

        def write(weight: Tensor, bias: Tensor) -> Tensors:
            weight, bias = (permute(tensor, (3, heads, -1), axes) for tensor in (weight, bias))
            return weight[..., None], bias

        self.rules.append(Rule(_affine(ours), _affine(theirs), read, write))

    def sine_cosine(self, ours: str, theirs: str) -> None:
        """The layer behind an embedding [cos, sin] where ours has [sin, cos]: its columns swap halves."""

        def swap(weight: Tensor, bias: Tensor) -> Tensors:
            return weight.roll(weight.shape[1] // 2, 1), bias

        self.rules.append(Rule(_affine(ours), _affine(theirs), swap, swap))

    def table(self, ours: str, theirs: str) -> None:
        """A row for each class, where theirs has a column: a linear layer without bias."""

        def transpose(weight: Tensor) -> Tensors:
            return (weight.T.contiguous(),)

        self.rules.append(Rule((ours,), (theirs,), transpose, transpose))

    def modulated_norm(self, ours: str, norm: str, linear: str) -> None:
        """A norm with weights of its own, scaled and shifted by the noise through a linear layer."""

        def read(gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
            (w_s, w_b), (c_s, c_b) = weight.chunk(2), bias.chunk(2)
            weight = torch.cat([gamma[:, None] * w_s, w_b + beta[:, None] * w_s])
            return weight, torch.cat([gamma * (1 + c_s) - 1, c_b + beta * (1 + c_s)])

        def write(weight: Tensor, bias: Tensor) -> Tensors:
            half = weight.new_ones(len(bias) // 2)
            return half, torch.zeros_like(half), weight, bias

        self.rules.append(Rule(_affine(ours), (*_affine(norm), *_affine(linear)), read, write))

    def residual(self, ours: str, theirs: str, names: Mapping[str, str]) -> None:
        """A residual block.

        Args:
            ours: The block.
            theirs: Its name there.
            names: Their names for norm1, conv1, scale_shift, norm2, conv2 and, if it is a layer of the same
                layout, shortcut.
        """
        its = {layer: f"{theirs}.{name}" for layer, name in names.items()}
        for layer in ("norm1", "conv1", "conv2"):
            self.layer(f"{ours}.{layer}", its[layer])
        if f"{ours}.norm2.weight" in self.shapes:
            self.layer(f"{ours}.scale_shift", its["scale_shift"])
            self.layer(f"{ours}.norm2", its["norm2"])
        else:
            self.modulated_norm(f"{ours}.scale_shift", its["norm2"], its["scale_shift"])
        if "shortcut" in its and f"{ours}.shortcut.weight" in self.shapes:
            self.layer(f"{ours}.shortcut", its["shortcut"])

    def read(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The network's tensors from a file's, in float32.

        Args:
            state: The tensors of the file by name.
            source: What to call the file in an error.

        Raises:
            UserError: If the file lacks a tensor, has one too many, one has another shape, or a number is not
                finite.
        """
        self._check_names(state, source)
        result: dict[str, Tensor] = {}
        for rule in self.rules:
            for name in rule.theirs:
                if not state[name].is_floating_point():
                    raise _misfit(source, f"{name} has dtype {state[name].dtype}")
            tensors = self._apply(rule, [state[name].float() for name in rule.theirs], source)
            result |= dict(zip(rule.ours, tensors, strict=True))
        for rule in self.rules:
            for name in rule.ours:
                if result[name].shape != self.shapes[name]:
                    raise _misfit(
                        source,
                        f"{rule.theirs[0]} makes a tensor of shape {tuple(result[name].shape)}, {name} has "
                        f"{tuple(self.shapes[name])}",
                    )
                if not result[name].isfinite().all():
                    raise UserError(f"{source} holds NaN or infinity in {rule.theirs[0]}: it cannot be used")
        return result

    def _check_names(self, state: Mapping[str, Tensor], source: str) -> None:
        theirs = [name for rule in self.rules for name in rule.theirs]
        missing = [name for name in theirs if name not in state]
        extra = sorted(set(state) - set(theirs))
        if missing or extra:
            lists = ((missing, "tensors are missing"), (extra, "are not the network's"))
            parts = [f"{len(names)} {what}, such as {names[0]}" for names, what in lists if names]
            raise _misfit(source, "; ".join(parts))

    def _apply(self, rule: Rule, tensors: list[Tensor], source: str) -> Tensors:
        try:
            return rule.read(*tensors)
        except (RuntimeError, ValueError, IndexError) as error:  # shapes that do not go together
            raise _misfit(source, f"{rule.theirs[0]} has shape {tuple(tensors[0].shape)}") from error

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors from the network's."""
        result: dict[str, Tensor] = {}
        for rule in self.rules:
            tensors = rule.write(*(state[name] for name in rule.ours))
            result |= {name: t.contiguous() for name, t in zip(rule.theirs, tensors, strict=True)}
        return result


def _misfit(source: str, reason: str) -> UserError:
    return UserError(
        f"{source} does not fit the configured network ({reason}): choose the configuration that it was "
        "trained with"
    )


def unet_blocks(levels: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a U-Net's encoder or decoder, level by level."""
    return [list(level.children()) for level in levels.children()]
