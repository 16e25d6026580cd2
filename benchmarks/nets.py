"""The nets whose accuracy is measured, as PyTorch modules: small versions of four usual kinds.

They are written as the originals are, so that exporters and Torch-Pruning meet nothing unusual.
Only the torch venv can import this.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CLASSES = 10
SIDE = 32


def norm(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> Any:
    """Convolution and BatchNorm."""
    pad = kernel // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):  # type: ignore[misc]
    """relu(b(relu(a(x))) + skip(x)): He et al. 2015, with a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = norm(inputs, outputs, stride), norm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else norm(inputs, outputs, stride, kernel=1)

    def forward(self, x: Any) -> Any:
        """x (n, c, h, w)."""
        return functional.relu(self.b(functional.relu(self.a(x))) + self.skip(x))


class Inverted(nn.Module):  # type: ignore[misc]
    """Pointwise to a multiple of the width, depthwise, pointwise: Sandler et al. 2018."""

    def __init__(self, inputs: int, outputs: int, stride: int, times: int = 6) -> None:
        super().__init__()
        wide = times * inputs
        self.a, self.c = norm(inputs, wide, kernel=1), norm(wide, outputs, kernel=1)
        self.b = norm(wide, wide, stride, wide)
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Any) -> Any:
        """x (n, c, h, w)."""
        y = self.c(functional.relu6(self.b(functional.relu6(self.a(x)))))
        return x + y if self.adds else y


class Attention(nn.Module):  # type: ignore[misc]
    """Self-attention with packed projections, as timm writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        """x (n, tokens, width)."""
        n, tokens, _ = x.shape
        packed = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        mixed = (weights @ v).transpose(1, 2)
        return self.proj(mixed.reshape(n, tokens, self.num_heads * self.head_dim))


class Encoder(nn.Module):  # type: ignore[misc]
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, times: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, times * width), nn.Linear(times * width, width)

    def forward(self, x: Any) -> Any:
        """x (n, tokens, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):  # type: ignore[misc]
    """Patches of 4 x 4, learned positions, the mean of the tokens: Beyer et al. 2022."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 3, times: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // 4) ** 2, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads, times) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Any) -> Any:
        """x (n, 3, h, w)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


def resnet20() -> Any:
    """ResNet-20: widths 16, 32 and 64, three blocks each."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    pairs = pairwise(widths)
    blocks = [Residual(a, b, 2 if a != b else 1) for a, b in pairs]
    return nn.Sequential(norm(3, 16), nn.ReLU(), *blocks, *_tail(64))


def vgg_bn() -> Any:
    """VGG with BatchNorm: two convolutions at each of four widths."""
    layers: list[Any] = []
    before = 3
    for width in (32, 64, 128, 256):
        for size in (width, width):
            layers += [*norm(before, size), nn.ReLU()]
            before = size
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_tail(before))


def mobilenet_v2() -> Any:
    """Eight inverted residuals of six times the width, and a wide last convolution."""
    widths = [16, 24, 24, 32, 32, 32, 64, 64, 64]
    pairs = pairwise(widths)
    blocks = [Inverted(a, b, 2 if a != b else 1) for a, b in pairs]
    last = [norm(64, 256, kernel=1), nn.ReLU6()]
    return nn.Sequential(norm(3, 16), nn.ReLU6(), *blocks, *last, *_tail(256))


def _tail(width: int) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


NETS: dict[str, Callable[[], Any]] = {
    "resnet20": resnet20,
    "vgg_bn": vgg_bn,
    "mobilenet_v2": mobilenet_v2,
    "vit": Vit,
}
