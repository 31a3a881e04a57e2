"""MuDeep: streams of several receptive fields, and a layer that weighs each channel of each stream.

Qian, Fu, Jiang, Xiang, Xue: "Multi-Scale Deep Learning Architectures for Person Re-Identification", ICCV 2017, arXiv
1709.05165. As torchreid has it: one image a forward, every convolution with a bias.
"""

from functools import partial

import torch
from torch import Tensor, nn

from reidlib.models.layers import ConvNorm, init_weights

_conv = partial(ConvNorm, bias=True)


class _Streams(nn.Module):
    """Several sequences of layers on the same map, named `stream1` and so on; gives a list of their maps."""

    def __init__(self, *streams: nn.Module) -> None:
        super().__init__()
        for number, stream in enumerate(streams, start=1):
            self.add_module(f"stream{number}", stream)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [stream(x) for stream in self.children()]


class _Fusion(nn.Module):
    """The streams' sum, each channel of each times a learned number `a1` to `a4`, averaged over 4 x 4 places."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        for number in range(1, count + 1):
            self.register_parameter(f"a{number}", nn.Parameter(torch.rand(1, channels, 1, 1)))
        self.pool = nn.AvgPool2d(4)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.pool(sum(a * x for a, x in zip(self.parameters(), maps, strict=True)))


class MuDeep(nn.Module):
    """The trunk: images of `input_size` (B, 3, H, W) to all numbers of the last map, (B, 256 * H / 16 * W / 16)."""

    def __init__(self, input_size: tuple[int, int]) -> None:
        super().__init__()
        pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.block1 = nn.Sequential()
        self.block1.conv1, self.block1.conv2 = _conv(3, 48, 3), _conv(48, 96, 3)
        self.block1.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.block2 = _Streams(
            nn.Sequential(_conv(96, 96), _conv(96, 24, 3)),
            nn.Sequential(pool, _conv(96, 24)),
            _conv(96, 24),
            nn.Sequential(_conv(96, 16), _conv(16, 24, 3), _conv(24, 24, 3)),
        )
        self.block3 = _Streams(
            nn.MaxPool2d(3, stride=2, padding=1),
            _conv(96, 96, 3, stride=2),
            nn.Sequential(_conv(96, 48), _conv(48, 56, 3), _conv(56, 64, 3, stride=2)),
        )
        wide, high = partial(_conv, kernel=(1, 3)), partial(_conv, kernel=(3, 1))
        self.block4 = _Streams(
            nn.Sequential(pool, _conv(256, 256)),
            nn.Sequential(_conv(256, 64), wide(64, 128), high(128, 256)),
            _conv(256, 256),
            nn.Sequential(_conv(256, 64), wide(64, 64), high(64, 128), wide(128, 128), high(128, 256)),
        )
        self.block5 = _Fusion(256, 4)
        self.channels, self.fixed_size = 256 * (input_size[0] // 16) * (input_size[1] // 16), tuple(input_size)
        self.apply(init_weights)

    @property
    def cam_layer(self) -> nn.Module:
        return self.block5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(self.block2(self.block1(x)), dim=1)  # (B, 96, H / 2, W / 2)
        x = torch.cat(self.block3(x), dim=1)  # (B, 256, H / 4, W / 4)
        return self.block5(self.block4(x)).flatten(1)
