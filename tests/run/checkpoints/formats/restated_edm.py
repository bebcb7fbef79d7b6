"""EDM's networks and their pickles, restated from the paper and from the names of its files.

The modules have EDM's names, arguments and order of computation, so that a pickle of one has the content of a
network snapshot. They compute in the dtype of their weights.
"""

from __future__ import annotations

import pickle
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE = "raise SystemExit('the source code in a pickle was executed')"


def _reconstruct_persistent_obj(meta):
    raise SystemExit("a pickle was executed")


@contextmanager
def _persistence():
    """The module that EDM's pickles name, for as long as they are written."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = package.persistence = _reconstruct_persistent_obj
    before = _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = before
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


class Persistent(nn.Module):
    """A module that pickles with the source code of its class and the arguments it was built with."""

    def __init__(self, **arguments):
        super().__init__()
        self._init_args, self._init_kwargs = (), arguments

    def __reduce__(self):
        meta = dict(type="class", version=6, module_src=SOURCE, class_name=type(self).__name__)
        return _reconstruct_persistent_obj, (meta | dict(state=dict(self.__dict__)),)


def save(net: nn.Module, path: Path, protocol: int = 4, **more: object) -> None:
    """Writes a network snapshot."""
    with _persistence(), open(path, "wb") as file:
        pickle.dump(dict(ema=net, loss_fn=None, augment_pipe=None, dataset_kwargs=more), file, protocol)


class Linear(Persistent):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__(in_features=in_features, out_features=out_features, bias=bias)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(out_features)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Conv2d(Persistent):
    """A convolution behind resampling, or around it where both are fused."""

    def __init__(self, inputs, outputs, kernel, up=False, down=False, resample_filter=(1, 1), fused=False):
        super().__init__(in_channels=inputs, out_channels=outputs, kernel=kernel, up=up, down=down)
        self.up, self.down, self.fused = up, down, fused
        scale = (inputs * kernel**2) ** -0.5 if kernel else 0
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * scale) if kernel else None
        self.bias = nn.Parameter(0.1 * torch.randn(outputs)) if kernel else None
        f = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer(
            "resample_filter", (f[:, None] * f / f.sum() ** 2)[None, None] if up or down else None
        )

    def forward(self, x):
        margin = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.up or self.down:
            f = self.resample_filter.to(x).expand(x.shape[1], 1, -1, -1)
            pad = (f.shape[-1] - 1) // 2 + (margin if self.fused else 0)
            if self.up:
                x = F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=x.shape[1])
            elif not self.fused:
                x = F.conv2d(x, f, stride=2, padding=pad, groups=x.shape[1])
            else:  # the convolution first, the filter on its result
                x = F.conv2d(x, self.weight, padding=pad)
                f = f[:1].expand(x.shape[1], 1, -1, -1)
                return F.conv2d(x, f, stride=2, groups=x.shape[1]) + self.bias[:, None, None]
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=margin)


class GroupNorm(Persistent):
    def __init__(self, channels, eps):
        super().__init__(num_channels=channels, eps=eps)
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(channels))
        self.bias = nn.Parameter(0.1 * torch.randn(channels))

    def forward(self, x):
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class UNetBlock(Persistent):
    def __init__(self, inputs, outputs, emb, up=False, down=False, heads=0, adm=False, filter=(1, 1)):
        super().__init__(in_channels=inputs, out_channels=outputs, emb_channels=emb)
        self.in_channels, self.out_channels, self.heads, self.adm = inputs, outputs, heads, adm
        eps, how = (1e-5 if adm else 1e-6), dict(up=up, down=down, resample_filter=filter)
        self.norm0, self.conv0 = GroupNorm(inputs, eps), Conv2d(inputs, outputs, 3, **how)
        self.affine = Linear(emb, outputs * (2 if adm else 1))
        self.norm1, self.conv1 = GroupNorm(outputs, eps), Conv2d(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or up or down:
            self.skip = Conv2d(inputs, outputs, 1 if inputs != outputs or not adm else 0, **how)
        if heads:
            self.norm2 = GroupNorm(outputs, eps)
            self.qkv, self.proj = Conv2d(outputs, 3 * outputs, 1), Conv2d(outputs, outputs, 1)

    def forward(self, x, emb):
        rescale = 1.0 if self.adm else 0.5**0.5
        h = self.conv0(F.silu(self.norm0(x)))
        parameters = self.affine(emb)[:, :, None, None]
        if self.adm:
            scale, shift = parameters.chunk(2, 1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + parameters)
        h = (self.conv1(F.silu(h)) + (x if self.skip is None else self.skip(x))) * rescale
        if not self.heads:
            return h
        rows = (
            self.qkv(self.norm2(h)).flatten(2).unflatten(1, (self.heads, -1, 3))
        )  # (B, head, d, qkv, pixel)
        q, k, v = rows.unbind(3)
        weights = (torch.einsum("bhdq,bhdk->bhqk", q, k) / q.shape[2] ** 0.5).softmax(-1)
        return (self.proj(torch.einsum("bhqk,bhdk->bhdq", weights, v).reshape(h.shape)) + h) * rescale


class PositionalEmbedding(Persistent):
    def __init__(self, size, endpoint):
        super().__init__(num_channels=size, endpoint=endpoint)
        self.size, self.endpoint = size, endpoint

    def forward(self, x):
        k = torch.arange(self.size // 2, dtype=x.dtype) / (self.size // 2 - self.endpoint)
        return torch.cat([(x[:, None] * 1e-4**k).cos(), (x[:, None] * 1e-4**k).sin()], 1)


class FourierEmbedding(Persistent):
    def __init__(self, size):
        super().__init__(num_channels=size)
        self.register_buffer("freqs", torch.randn(size // 2) * 2)

    def forward(self, x):
        angles = 2 * torch.pi * x[:, None] * self.freqs
        return torch.cat([angles.cos(), angles.sin()], 1)


class _UNet(Persistent):
    """What SongUNet and DhariwalUNet share: the levels of encoder and decoder."""

    def __init__(self, song, defaults, **arguments):
        super().__init__(**arguments)
        a = types.SimpleNamespace(**defaults | arguments)
        self.a, self.song = None, song  # the arguments are not an attribute of EDM's
        emb, resolutions = a.model_channels * a.channel_mult_emb, a.attn_resolutions
        filter = a.resample_filter if song else (1, 1)

        def block(inputs, outputs, attention=False, **how):
            heads = (1 if song else outputs // 64) if attention else 0
            return UNetBlock(inputs, outputs, emb, heads=heads, adm=not song, filter=filter, **how)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, aux, last = a.in_channels, a.in_channels, len(a.channel_mult) - 1
        for level, mult in enumerate(a.channel_mult):
            side, name = a.img_resolution >> level, f"{a.img_resolution >> level}x{a.img_resolution >> level}"
            if level == 0:
                width = a.model_channels * (1 if song else mult)
                self.enc[f"{name}_conv"] = Conv2d(a.in_channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                if song and a.encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Conv2d(aux, aux, 0, down=True, resample_filter=filter)
                    self.enc[f"{name}_aux_skip"] = Conv2d(aux, width, 1)
                elif song and a.encoder_type == "residual":
                    down = dict(down=True, resample_filter=filter, fused=True)
                    self.enc[f"{name}_aux_residual"] = Conv2d(aux, width, 3, **down)
                    aux = width
            for i in range(a.num_blocks):
                self.enc[f"{name}_block{i}"] = block(width, a.model_channels * mult, side in resolutions)
                width = a.model_channels * mult
        skips = [m.weight.shape[0] if isinstance(m, Conv2d) else m.out_channels
                 for name, m in self.enc.items() if "aux" not in name]  # fmt: skip
        for level in range(last, -1, -1):
            side, name = a.img_resolution >> level, f"{a.img_resolution >> level}x{a.img_resolution >> level}"
            if level == last:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, up=True)
            for i in range(a.num_blocks + 1):
                attends = side in resolutions and (not song or i == a.num_blocks)
                inputs, width = width + skips.pop(), a.model_channels * a.channel_mult[level]
                self.dec[f"{name}_block{i}"] = block(inputs, width, attends)
            if song and (a.decoder_type == "skip" or level == 0):
                if a.decoder_type == "skip" and level < last:
                    up = dict(up=True, resample_filter=filter)
                    self.dec[f"{name}_aux_up"] = Conv2d(a.out_channels, a.out_channels, 0, **up)
                self.dec[f"{name}_aux_norm"] = GroupNorm(width, 1e-6)
                self.dec[f"{name}_aux_conv"] = Conv2d(width, a.out_channels, 3)
        if not song:
            self.out_norm, self.out_conv = GroupNorm(width, 1e-5), Conv2d(width, a.out_channels, 3)

    def forward(self, x, noise, labels=None):
        emb = F.silu(self.embed(noise, labels))
        skips, aux = [], x
        for name, module in self.enc.items():
            if "aux_down" in name:
                aux = module(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + module(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + module(aux)) / 2**0.5
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)
        image = 0
        for name, module in self.dec.items():
            if "aux_up" in name:
                image = module(image)
            elif "aux_norm" in name:
                normed = F.silu(module(x))
            elif "aux_conv" in name:
                image = image + module(normed)
            else:
                x = module(x if x.shape[1] == module.in_channels else torch.cat([x, skips.pop()], 1), emb)
        return image if self.song else self.out_conv(F.silu(self.out_norm(x)))


class SongUNet(_UNet):
    DEFAULTS = dict(
        label_dim=0, augment_dim=0, model_channels=128, channel_mult=[1, 2, 2, 2], channel_mult_emb=4,
        num_blocks=4, attn_resolutions=[16], embedding_type="positional", channel_mult_noise=1,
        encoder_type="standard", decoder_type="standard", resample_filter=[1, 1],
    )  # fmt: skip

    def __init__(self, **arguments):
        super().__init__(True, self.DEFAULTS, **arguments)
        a = types.SimpleNamespace(**self.DEFAULTS | arguments)
        size, emb = a.model_channels * a.channel_mult_noise, a.model_channels * a.channel_mult_emb
        fourier = a.embedding_type == "fourier"
        self.map_noise = FourierEmbedding(size) if fourier else PositionalEmbedding(size, endpoint=True)
        self.map_label = Linear(a.label_dim, size) if a.label_dim else None
        self.map_augment = Linear(a.augment_dim, size, bias=False) if a.augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(size, emb), Linear(emb, emb)

    def embed(self, noise, labels):
        cos, sin = self.map_noise(noise).chunk(2, 1)
        emb = torch.cat([sin, cos], 1)
        if self.map_label is not None:
            emb = emb + self.map_label(labels * labels.shape[1] ** 0.5)
        return self.map_layer1(F.silu(self.map_layer0(emb)))


class DhariwalUNet(_UNet):
    DEFAULTS = dict(
        label_dim=0, augment_dim=0, model_channels=192, channel_mult=[1, 2, 3, 4], channel_mult_emb=4,
        num_blocks=3, attn_resolutions=[32, 16, 8],
    )  # fmt: skip

    def __init__(self, **arguments):
        super().__init__(False, self.DEFAULTS, **arguments)
        a = types.SimpleNamespace(**self.DEFAULTS | arguments)
        emb = a.model_channels * a.channel_mult_emb
        self.map_noise = PositionalEmbedding(a.model_channels, endpoint=False)
        self.map_augment = Linear(a.augment_dim, a.model_channels, bias=False) if a.augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(a.model_channels, emb), Linear(emb, emb)
        self.map_label = Linear(a.label_dim, emb, bias=False) if a.label_dim else None

    def embed(self, noise, labels):
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise))))
        return emb if self.map_label is None else emb + self.map_label(labels)


class _Precond(Persistent):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise), Table 1 of the paper."""

    channels = 1  # of the network's output, in units of the image's

    def __init__(self, img_resolution, img_channels, label_dim=0, model_type="SongUNet", **arguments):
        own = {key: arguments.pop(key) for key in list(arguments) if key in self.OWN}
        shape = dict(img_resolution=img_resolution, label_dim=label_dim)
        super().__init__(**shape, img_channels=img_channels, model_type=model_type, **own, **arguments)
        self.n = types.SimpleNamespace(**self.OWN | own)
        channels = dict(in_channels=img_channels, out_channels=img_channels * self.channels)
        self.model = globals()[model_type](**shape, **channels, **arguments)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        c_skip, c_out, c_in = (torch.as_tensor(c).reshape(-1, 1, 1, 1) for c in (c_skip, c_out, c_in))
        return c_skip * x + c_out * self.model(c_in * x, c_noise, labels)[:, : x.shape[1]]


class EDMPrecond(_Precond):
    OWN = dict(sigma_data=0.5)

    def coefficients(self, sigma):
        total = self.n.sigma_data**2 + sigma**2
        c_out = sigma * self.n.sigma_data * total**-0.5
        return self.n.sigma_data**2 / total, c_out, total**-0.5, sigma.log() / 4


class VPPrecond(_Precond):
    OWN = dict(beta_d=19.9, beta_min=0.1, M=1000)

    def coefficients(self, sigma):
        b, d = self.n.beta_min, self.n.beta_d
        t = ((b**2 + 2 * d * (1 + sigma**2).log()).sqrt() - b) / d
        return 1.0, -sigma, (sigma**2 + 1) ** -0.5, (self.n.M - 1) * t


class VEPrecond(_Precond):
    OWN = dict(sigma_min=0.02, sigma_max=100)

    def coefficients(self, sigma):
        return 1.0, sigma, 1.0, (sigma / 2).log()


class iDDPMPrecond(_Precond):  # noqa: N801 - its name
    OWN = dict(C_1=0.001, C_2=0.008, M=1000)
    channels = 2

    def coefficients(self, sigma):
        j = torch.arange(self.n.M + 1, dtype=torch.float64)
        alpha_bar = (torch.pi / 2 * j / self.n.M / (1 + self.n.C_2)).sin() ** 2
        u = torch.zeros(self.n.M + 1, dtype=torch.float64)
        for i in range(self.n.M, 0, -1):
            u[i - 1] = ((u[i] ** 2 + 1) / (alpha_bar[i - 1] / alpha_bar[i]).clip(self.n.C_1) - 1) ** 0.5
        step = self.n.M - 1 - (u - sigma[:, None]).abs().argmin(1)
        return 1.0, -sigma, (sigma**2 + 1) ** -0.5, step.to(sigma)
