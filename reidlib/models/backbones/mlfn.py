"""MLFN: latent factors of appearance at every level, each switched on or off by an image's own gates.

Chang, Hospedales, Xiang: "Multi-Level Factorisation Net for Person Re-Identification", CVPR 2018, arXiv 1803.09132.
A ResNeXt whose groups are the factor modules: a small branch of each block (the factor selection module) gives one
gate in (0, 1) for each group. The gates of all blocks are a second description of the person, beside the last map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.models.layers import init_weights

# Blocks, channels out, and the two hidden widths of the selection module, for each of the four stages.
_STAGES = ((3, 256, 128, 64), (4, 512, 256, 128), (6, 1024, 512, 128), (3, 2048, 512, 128))


class MLFNBlock(nn.Module):
    """`fsm(x)` is the gates (B, groups, 1, 1); `forward(x, gates)` the residual block under them."""

    def __init__(self, cin: int, cout: int, stride: int, hidden: tuple[int, int], groups: int) -> None:
        super().__init__()
        middle = cout // 2
        self.fm_conv1 = nn.Conv2d(cin, middle, 1, bias=False)
        self.fm_bn1 = nn.BatchNorm2d(middle)
        self.fm_conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=groups, bias=False)
        self.fm_bn2 = nn.BatchNorm2d(middle)
        self.fm_conv3 = nn.Conv2d(middle, cout, 1, bias=False)
        self.fm_bn3 = nn.BatchNorm2d(cout)
        self.fsm = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(cin, hidden[0], 1), nn.BatchNorm2d(hidden[0]), nn.ReLU(inplace=True)),
            *(nn.Conv2d(hidden[0], hidden[1], 1), nn.BatchNorm2d(hidden[1]), nn.ReLU(inplace=True)),
            *(nn.Conv2d(hidden[1], groups, 1), nn.BatchNorm2d(groups), nn.Sigmoid()),
        )
        self.downsample = None
        if cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.fm_bn1(self.fm_conv1(x)))
        x = F.relu(self.fm_bn2(self.fm_conv2(x)))
        x = x * gates.repeat_interleave(x.shape[1] // gates.shape[1], dim=1)  # one gate for all channels of a group
        return F.relu(shortcut + F.relu(self.fm_bn3(self.fm_conv3(x))))


class MLFN(nn.Module):
    """The trunk: images (B, 3, H, W) to a map (B, 2048, H / 32, W / 32) and the gates (B, 16 * groups, 1, 1)."""

    def __init__(self, groups: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature = nn.ModuleList()
        cin = 64
        for stage, (blocks, cout, *hidden) in enumerate(_STAGES):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                self.feature.append(MLFNBlock(cin, cout, stride, tuple(hidden), groups))
                cin = cout
        self.channels = (cin, groups * len(self.feature))
        self.apply(init_weights)

    @property
    def cam_layer(self) -> nn.Module:
        return self.feature[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))  # (B, 64, H/4, W/4)
        factors = []
        for block in self.feature:
            factors.append(block.fsm(x))
            x = block(x, factors[-1])
        return x, torch.cat(factors, dim=1)
