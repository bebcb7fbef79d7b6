"""NCSNv2's networks with the names of its code, restated from its paper's appendix and RefineNet's figure."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

NAMES = {
    "NCSNv2": ("res1", "res2", "res3", "res4"),
    "NCSNv2Deeper": ("res1", "res2", "res3", "res4", "res5"),
    "NCSNv2Deepest": ("res1", "res2", "res3", "res31", "res4", "res5"),
}
WIDTHS = {4: (1, 2, 2, 2), 5: (1, 2, 2, 4, 4), 6: (1, 2, 2, 2, 4, 4)}
REFINES = {"NCSNv2": "1234", "NCSNv2Deeper": "12345", "NCSNv2Deepest": ("1", "2", "31", "3", "4", "5")}


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.alpha = nn.Parameter(1 + 0.2 * torch.randn(width))
        self.gamma = nn.Parameter(1 + 0.2 * torch.randn(width))
        self.beta = nn.Parameter(0.2 * torch.randn(width))

    def forward(self, x):
        means = x.mean((2, 3))
        contrast = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
        h = F.instance_norm(x) + (self.alpha * contrast)[..., None, None]
        return self.gamma[:, None, None] * h + self.beta[:, None, None]


class MeanPooled(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x):
        return F.avg_pool2d(self.conv(x), 2)


class Residual(nn.Module):
    def __init__(self, inputs, outputs, down=False, dilation=1):
        super().__init__()
        conv = dict(kernel_size=3, padding=dilation, dilation=dilation)
        middle = inputs if down else outputs
        self.normalize1, self.conv1 = Norm(inputs), nn.Conv2d(inputs, middle, **conv)
        self.normalize2, self.conv2 = Norm(middle), nn.Conv2d(middle, outputs, **conv)
        if down and dilation == 1:
            self.conv2, self.shortcut = MeanPooled(middle, outputs, 3), MeanPooled(inputs, outputs, 1)
        elif down:
            self.shortcut = nn.Conv2d(inputs, outputs, **conv)

    def forward(self, x):
        h = self.conv1(F.elu(self.normalize1(x)))
        h = self.conv2(F.elu(self.normalize2(h)))
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Units(nn.Module):
    def __init__(self, width, number):
        super().__init__()
        self.number = number
        for i in range(1, number + 1):
            for j in (1, 2):
                self.add_module(f"{i}_{j}_conv", nn.Conv2d(width, width, 3, padding=1, bias=False))

    def forward(self, x):
        for i in range(1, self.number + 1):
            h = getattr(self, f"{i}_1_conv")(F.elu(x))
            x = x + getattr(self, f"{i}_2_conv")(F.elu(h))
        return x


class Branches(nn.Module):
    def __init__(self, convs):
        super().__init__()
        self.convs = nn.ModuleList(convs)


class Refine(nn.Module):
    def __init__(self, inputs, outputs, end):
        super().__init__()
        self.adapt_convs = nn.ModuleList(Units(width, 2) for width in inputs)
        self.output_convs = Units(outputs, 3 if end else 1)
        if len(inputs) > 1:
            self.msf = Branches(nn.Conv2d(width, outputs, 3, padding=1) for width in inputs)
        self.crp = Branches(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, inputs):
        hs = [adapt(x) for adapt, x in zip(self.adapt_convs, inputs, strict=True)]
        h = hs[0]
        if len(hs) > 1:
            maps = [conv(h) for conv, h in zip(self.msf.convs, hs, strict=True)]
            size = dict(size=inputs[0].shape[2:], mode="bilinear", align_corners=True)
            h = sum(F.interpolate(x, **size) for x in maps)
        path = h = F.elu(h)
        for conv in self.crp.convs:
            path = conv(F.max_pool2d(path, 5, 1, 2))
            h = h + path
        return self.output_convs(h)


class Network(nn.Module):
    """s(x, σ_i) for images x in [0, 1]."""

    def __init__(self, kind="NCSNv2", ngf=8, channels=3, sigmas=(50.0, 5.0, 0.5, 0.05)):
        super().__init__()
        names = NAMES[kind]
        widths = [ngf * m for m in WIDTHS[len(names)]]
        self.register_buffer("sigmas", torch.tensor(sigmas))
        self.begin_conv = nn.Conv2d(channels, ngf, 3, padding=1)
        self.normalizer, self.end_conv = Norm(ngf), nn.Conv2d(ngf, channels, 3, padding=1)
        for k, (name, width) in enumerate(zip(names, widths, strict=True)):
            dilation = {len(names) - 2: 2, len(names) - 1: 4}.get(k, 1)
            first = Residual(widths[max(k - 1, 0)], width, k > 0, dilation)
            self.add_module(name, nn.Sequential(first, Residual(width, width, dilation=dilation)))
        for k, number in enumerate(REFINES[kind]):  # the coarsest first
            level = len(names) - 1 - k
            inputs = [widths[level]] * (1 if k == 0 else 2)
            self.add_module(f"refine{number}", Refine(inputs, widths[max(level - 1, 0)], end=level == 0))
        self.names, self.numbers = names, REFINES[kind]

    def forward(self, x, index):
        h, layers = self.begin_conv(2 * x - 1), []
        for name in self.names:
            h = getattr(self, name)(h)
            layers.append(h)
        h = getattr(self, f"refine{self.numbers[0]}")([layers[-1]])
        for layer, number in zip(layers[-2::-1], self.numbers[1:], strict=True):
            h = getattr(self, f"refine{number}")([layer, h])
        out = self.end_conv(F.elu(self.normalizer(h)))
        return out / self.sigmas[index][:, None, None, None]
