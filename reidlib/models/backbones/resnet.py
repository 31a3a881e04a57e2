"""ResNet: torchvision's, with the edits that person re-identification makes to it as arguments.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.
The trunk ends at the last map; torchvision's pooling and classifier are left out. Keys are torchvision's.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from reidlib.models.backbones.vit import fit_positions
from reidlib.models.layers import IBN, SE, InstanceNorm2d, NonLocal, SplitAttention

_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNet(nn.Sequential):
    """The trunk: images (B, 3, H, W) to a map (B, 2048, H / 32, W / 32), or H / 16, W / 16 with `last_stride=1`.

    `depth` is 18 or 34, whose maps have 512 channels, 50, 101 or 152. `groups` and `group_width` make it a ResNeXt (Xie
    et al., CVPR 2017, arXiv 1611.05431).
    `last_stride=1` keeps the last stage at the resolution of the one before, for finer maps at no more parameters
    (Sun et al., "Beyond Part Models", ECCV 2018). The convolutions are not dilated for it.
    `stem_relu=False` leaves the stem's out, as reid-strong-baseline's code does and all that was built on it.
    `stem_pool="ceil"` pools without padding, to a size rounded up, as FastReID.
    `ibn="a"` puts `IBN` behind the first convolution of every block but the last stage's; `ibn="b"` an instance norm in
    the stem, and one behind the sum at the end of the first and second stage.
    `clip=True` is CLIP's (Radford et al., ICML 2021, arXiv 2103.00020): a stem of three convolutions, and average
    pooling wherever another ResNet has a stride.
    `se=True` ends each block's branch with `SE`. `non_local`: of each stage, how many last blocks `NonLocal` follows.
    `pyramid=True` puts `PyramidLevel` after the stem and after each stage (APNet).
    `mid=True` gives the maps after each of the last stage's three blocks, as a tuple (Yu et al., "The Devil is in the
    Middle", arXiv 1711.08106).
    """

    layer4: nn.Sequential

    def __init__(
        self,
        depth: int = 50,
        *,
        groups: int = 1,
        group_width: int = 64,
        last_stride: int = 2,
        stem_relu: bool = True,
        stem_pool: str = "padded",
        ibn: str | None = None,
        se: bool = False,
        clip: bool = False,
        non_local: tuple[int, int, int, int] = (0, 0, 0, 0),
        pyramid: bool = False,
        mid: bool = False,
    ) -> None:
        block = Bottleneck if depth >= 50 else torchvision_resnet.BasicBlock
        size = {"groups": groups, "width_per_group": group_width}
        net = torchvision_resnet.ResNet(block, list(_LAYERS[depth]), num_classes=1, **size)
        if not stem_relu:
            net.relu = nn.Identity()
        if stem_pool == "ceil":
            net.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        widths = [block.expansion * width for width in (64, 128, 256, 512)]
        if last_stride == 1:
            first = net.layer4[0]
            first.conv2.stride = first.downsample[0].stride = (1, 1)
        if ibn == "a":
            for block in (*net.layer1, *net.layer2, *net.layer3):
                block.bn1 = IBN(block.bn1.num_features)
        if ibn == "b":
            net.bn1 = InstanceNorm2d(64)
            net.layer1[-1].IN, net.layer2[-1].IN = InstanceNorm2d(widths[0]), InstanceNorm2d(widths[1])
        for block in (block for stage in stages if se for block in stage):
            block.se = SE(block.conv3.out_channels, block.conv3.out_channels // 16, bias=False)
        parts = OrderedDict(conv1=net.conv1, bn1=net.bn1, relu=net.relu, maxpool=net.maxpool)
        if clip:
            parts = _clip_stem()
            for stage in stages:
                _pool_for_stride(stage[0])
        stages = [_with_non_local(*each) for each in zip(stages, widths, non_local, strict=True)]
        if pyramid:
            parts["attention0"] = PyramidLevel(net.bn1.num_features)
        for number, (stage, width) in enumerate(zip(stages, widths, strict=True), start=1):
            parts[f"layer{number}"] = stage
            if pyramid:
                parts[f"attention{number}"] = PyramidLevel(width)
        super().__init__(parts)
        name = f"resnet{depth}" if groups == 1 else f"resnext{depth}_{groups}x{group_width}d"
        self.imagenet = "" if ibn or se or clip else f"torchvision/{name}"
        self.added = r"\bnon_local\d|^attention\d"
        self.mid = mid
        self.channels = (widths[-1],) * len(self.layer4) if mid else widths[-1]

    @property
    def cam_layer(self) -> nn.Module:
        last: Any = self[-1]  # the last stage, or the attention after it
        return last[-1]

    def cut(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The trunk as three in a row: to the end of the first stage, of the third, of the last."""
        *stem, layer1, layer2, layer3, layer4 = self
        return nn.Sequential(*stem, layer1), nn.Sequential(layer2, layer3), layer4

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.mid:
            return super().forward(x)
        maps = []
        for part in (*list(self)[:-1], *self.layer4):
            maps.append(x := part(x))
        return tuple(maps[-len(self.layer4) :])


class Bottleneck(torchvision_resnet.Bottleneck):
    """torchvision's, with places for pooling, for squeeze and excitation, and for a norm after the sum."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.pool: nn.Module = nn.Identity()
        self.se, self.IN = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        return self.relu(self.IN(self.se(self.bn3(self.conv3(x))) + shortcut))


def _clip_stem() -> OrderedDict[str, nn.Module]:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (cin, cout) in enumerate(((3, 32), (32, 32), (32, 64)), start=1):
        parts[f"conv{number}"] = nn.Conv2d(cin, cout, 3, stride=2 if number == 1 else 1, padding=1, bias=False)
        parts[f"bn{number}"], parts[f"relu{number}"] = nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
    parts["pool"] = nn.AvgPool2d(2)
    return parts


def _pool_for_stride(block: Bottleneck) -> None:
    """Average pooling in place of the strides of a stage's first block, behind the 3x3 convolution and the shortcut's
    1x1 (which keeps its keys, `downsample.0` and `.1`)."""
    if block.conv2.stride != (1, 1):
        conv, norm = block.downsample
        block.pool, block.conv2.stride, conv.stride = nn.AvgPool2d(2), (1, 1), (1, 1)
        block.downsample = nn.Sequential(OrderedDict([("pool", nn.AvgPool2d(2)), ("0", conv), ("1", norm)]))


class CLIPResNet(nn.Module):
    """CLIP's ResNet-50 with its attention pooling, its last stage at stride 1 as CLIP-ReID has it.

    Images of `input_size` (B, 3, H, W) to the mean of the map before the last stage (B, 1024), the last map (B, 2048,
    H / 16, W / 16), and this map pooled by attention (B, 1024). It has no embedding of the camera.
    """

    def __init__(self, input_size: tuple[int, int], num_cameras: int | None = None) -> None:
        from timm.layers import AttentionPool2d

        super().__init__()
        self.trunk = ResNet(50, clip=True, last_stride=1)
        self.channels = (self.trunk.channels, 1024)
        grid = (input_size[0] // 16, input_size[1] // 16)
        self.attention = AttentionPool2d(self.trunk.channels, grid, 1024, head_dim=64, qkv_separate=True)

    def fit_positions(self, table: Tensor, ratio: float | None = None) -> Tensor:
        """A pretraining's position embeddings for this map; see `vit.fit_positions`."""
        return fit_positions(table, self.attention.feat_size, prefix=1, ratio=ratio)

    @property
    def cam_layer(self) -> nn.Module:
        return self.trunk.cam_layer

    def forward(self, x: Tensor, camids: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        *parts, layer4 = self.trunk
        for part in parts:
            x = part(x)
        last = layer4(x)
        return torch.mean(x, (2, 3)), last, self.attention(last)


class PyramidLevel(nn.Sequential):
    """One level of APNet: attention between the halves of the channels, batch norm, attention to each channel.

    Chen, Gu, Lu, Bao, Zhou: "Person Re-identification via Attention Pyramid", TIP 2021, arXiv 2108.05340.
    """

    def __init__(self, channels: int) -> None:
        split, norm = SplitAttention(channels), nn.BatchNorm2d(channels)
        super().__init__(OrderedDict(split=split, norm=norm, se=SE(channels, 8, bias=False)))


def _with_non_local(stage: nn.Sequential, channels: int, last: int) -> nn.Sequential:
    """`stage` with a `NonLocal` behind each of its last `last` blocks, named after the block."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, block in enumerate(stage):
        parts[str(number)] = block
        if number >= len(stage) - last:
            parts[f"non_local{number - len(stage) + last}"] = NonLocal(channels)
    return nn.Sequential(parts)
