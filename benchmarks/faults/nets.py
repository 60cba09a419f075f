"""Nets of realistic size, so that thresholds are not tuned to toys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Two convolutions and a shortcut (arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 at full width for small images: 11 M parameters, [N, 1, 16, 16] -> [N, 64]."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            _Block(64, 64, 1), _Block(64, 64, 1), _Block(64, 128, 2), _Block(128, 128, 1),
            _Block(128, 256, 2), _Block(256, 256, 1), _Block(256, 512, 2), _Block(512, 512, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 64),
        )  # fmt: skip


class RowTransformer(nn.Module):
    """A transformer encoder, 4 layers of 256 features, 8 heads: [N, 128] as 8 tokens -> [N, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(16, 256)
        self.positions = nn.Parameter(0.02 * torch.randn(8, 256))
        layer = nn.TransformerEncoderLayer(
            256, 8, 1024, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.view(len(x), 8, 16)) + self.positions
        return self.head(self.encoder(tokens).mean(dim=1))
