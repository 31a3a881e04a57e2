"""ShuffleNet: grouped 1x1 convolutions, with channels shuffled so that groups hear of each other.

Zhang, Zhou, Lin, Sun: "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018,
arXiv 1707.01083. With three groups and full width, "ShuffleNet 1x (g = 3)" of the paper.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 3
_STAGES = ((240, 4), (480, 8), (960, 4))  # channels and units of stage2 to stage4


class ShuffleUnit(nn.Module):
    """A residual unit; with other channels out than in, it halves the map and concatenates instead of adding."""

    def __init__(self, cin: int, cout: int, groups_first: int = _GROUPS) -> None:
        super().__init__()
        middle, self.down = cout // 4, cin != cout
        own = cout - cin if self.down else cout
        self.conv1 = nn.Conv2d(cin, middle, 1, groups=groups_first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.shuffle = nn.ChannelShuffle(_GROUPS)
        self.conv2 = nn.Conv2d(middle, middle, 3, 2 if self.down else 1, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, own, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if self.down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(F.relu(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        return F.relu(torch.cat([self.pool(x), y], dim=1) if self.pool is not None else x + y)


class ShuffleNet(nn.Sequential):
    """The trunk: images (B, 3, H, W) to a map (B, 960, H / 32, W / 32)."""

    def __init__(self) -> None:
        stem = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Sequential(stem, nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1))
        )
        cin = 24
        for number, (cout, units) in enumerate(_STAGES, start=2):
            groups = _GROUPS if number > 2 else 1  # the stem's 24 channels are too few to group
            first = ShuffleUnit(cin, cout, groups_first=groups)
            parts[f"stage{number}"] = nn.Sequential(first, *(ShuffleUnit(cout, cout) for _ in range(units - 1)))
            cin = cout
        super().__init__(parts)
        self.channels = cin
