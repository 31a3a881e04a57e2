"""OSNet: omni-scale feature learning, plain, with instance norm (IBN) and with instance norm at searched places (AIN).

Zhou, Yang, Cavallaro, Xiang: "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019, arXiv 1905.00953;
"Learning Generalisable Omni-Scale Representations for Person Re-Identification", TPAMI 2021, arXiv 1910.06827.

A block runs four streams whose receptive fields grow from 3 to 9 pixels and weighs them, channel by channel, with one
gate that all four share. Here the three papers' networks are one class: only the norms differ.
"""

from functools import reduce
from operator import add

from torch import Tensor, nn

from reidlib.models.layers import SE, ConvNorm, InstanceNorm2d, init_weights


class LightConv(nn.Module):
    """The paper's "Lite 3x3": a pointwise convolution, then a depthwise one, norm and ReLU only after both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class OSBlock(nn.Module):
    """Omni-scale residual block.

    `norm`: "bn" is the plain block; "bn+in" adds an instance norm after the sum (IBN); "in" puts one at the end of
    the residual branch, in place of its batch norm (AIN).
    """

    def __init__(self, cin: int, cout: int, norm: str) -> None:
        super().__init__()
        middle = cout // 4
        self.conv1 = ConvNorm(cin, middle)
        self.streams = nn.ModuleList(nn.Sequential(*(LightConv(middle) for _ in range(t))) for t in (1, 2, 3, 4))
        self.gate = SE(middle, middle // 16)  # one for all streams
        self.conv3 = ConvNorm(middle, cout, norm="none" if norm == "in" else "bn", act=None)
        self.downsample = None if cin == cout else ConvNorm(cin, cout, act=None)
        self.IN = None if norm == "bn" else InstanceNorm2d(cout)
        self.norm_after_sum = norm == "bn+in"
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        x = self.conv3(reduce(add, (self.gate(stream(x)) for stream in self.streams)))
        if self.IN is None:
            x = x + shortcut
        elif self.norm_after_sum:
            x = self.IN(x + shortcut)
        else:
            x = self.IN(x) + shortcut
        return self.relu(x)


class OSNet(nn.Module):
    """The trunk: images (B, 3, H, W) to a map (B, 512 * width, H / 16, W / 16).

    `width` multiplies every channel count; `stem` is the first convolution's norm ("bn" or "in"); `blocks` the norm of
    the six blocks, two a stage, as in `OSBlock`.
    """

    def __init__(self, width: float = 1.0, *, stem: str = "bn", blocks: tuple[str, ...] = ("bn",) * 6) -> None:
        super().__init__()
        c1, c2, c3, c4 = (int(channels * width) for channels in (64, 256, 384, 512))
        self.conv1 = ConvNorm(3, c1, 7, stride=2, norm=stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(OSBlock(c1, c2, blocks[0]), OSBlock(c2, c2, blocks[1]), self._transition(c2))
        self.conv3 = nn.Sequential(OSBlock(c2, c3, blocks[2]), OSBlock(c3, c3, blocks[3]), self._transition(c3))
        self.conv4 = nn.Sequential(OSBlock(c3, c4, blocks[4]), OSBlock(c4, c4, blocks[5]))
        self.conv5 = ConvNorm(c4, c4)
        self.channels = c4
        self.apply(init_weights)

    @staticmethod
    def _transition(channels: int) -> nn.Sequential:
        return nn.Sequential(ConvNorm(channels, channels), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))  # (B, 64 w, H/4, W/4)
        return self.conv5(self.conv4(self.conv3(self.conv2(x))))  # halved after conv2 and conv3
