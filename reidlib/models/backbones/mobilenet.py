"""MobileNetV2: inverted residuals with linear bottlenecks, as torchreid builds it.

Sandler, Howard, Zhu, Zhmoginov, Chen: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv 1801.04381. Unlike the paper's (and torchvision's), the first block has an expanding convolution too, and widths
are cut to whole numbers, not rounded to multiples of eight.
"""

from collections import OrderedDict

from torch import Tensor, nn

from reidlib.models.layers import ConvNorm, init_weights

# Expansion, channels, blocks, stride of the first block; conv2 to conv8.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project without activation."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = cin * expansion
        self.conv1 = ConvNorm(cin, middle, act=nn.ReLU6)
        self.dwconv2 = ConvNorm(middle, middle, 3, stride=stride, groups=middle, act=nn.ReLU6)
        self.conv3 = nn.Sequential(nn.Conv2d(middle, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.dwconv2(self.conv1(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Sequential):
    """The trunk: images (B, 3, H, W) to a map (B, 1280, H / 32, W / 32); `width` > 1 widens that last map too."""

    def __init__(self, width: float = 1.0) -> None:
        cin = int(32 * width)
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv1=ConvNorm(3, cin, 3, stride=2, act=nn.ReLU6))
        for number, (expansion, channels, blocks, stride) in enumerate(_STAGES, start=2):
            cout = int(channels * width)
            first = InvertedResidual(cin, cout, expansion, stride)
            others = (InvertedResidual(cout, cout, expansion, 1) for _ in range(blocks - 1))
            parts[f"conv{number}"] = nn.Sequential(first, *others)
            cin = cout
        channels = int(1280 * max(width, 1.0))
        parts["conv9"] = ConvNorm(cin, channels, act=nn.ReLU6)
        super().__init__(parts)
        self.channels = channels
        self.apply(init_weights)
