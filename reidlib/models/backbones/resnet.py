"""ResNet: torchvision's, with the edits that person re-identification makes to it as arguments.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.
The trunk ends at the last map; torchvision's pooling and classifier are left out. Keys are torchvision's.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from reidlib.models.layers import IBN, SE, NonLocal, SplitAttention

_LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNet(nn.Sequential):
    """The trunk: images (B, 3, H, W) to a map (B, 2048, H / 32, W / 32), or H / 16, W / 16 with `last_stride=1`.

    `last_stride=1` keeps the last stage at the resolution of the one before, for finer maps at no more parameters
    (Sun et al., "Beyond Part Models", ECCV 2018). The convolutions are not dilated for it.
    `stem_relu=False` leaves the stem's out, as reid-strong-baseline's code does and all that was built on it.
    `stem_pool="ceil"` pools without padding, to a size rounded up, as FastReID.
    `ibn="a"` puts `IBN` behind the first convolution of every block but the last stage's.
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
        last_stride: int = 2,
        stem_relu: bool = True,
        stem_pool: str = "padded",
        ibn: str | None = None,
        se: bool = False,
        non_local: tuple[int, int, int, int] = (0, 0, 0, 0),
        pyramid: bool = False,
        mid: bool = False,
    ) -> None:
        block = SEBottleneck if se else torchvision_resnet.Bottleneck
        net = torchvision_resnet.ResNet(block, list(_LAYERS[depth]), num_classes=1)
        if not stem_relu:
            net.relu = nn.Identity()
        if stem_pool == "ceil":
            net.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        first = net.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (last_stride, last_stride)
        if ibn == "a":
            for block in (*net.layer1, *net.layer2, *net.layer3):
                block.bn1 = IBN(block.bn1.num_features)
        stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        widths = [stage[-1].conv3.out_channels for stage in stages]
        stages = [_with_non_local(*each) for each in zip(stages, widths, non_local, strict=True)]
        parts = OrderedDict(conv1=net.conv1, bn1=net.bn1, relu=net.relu, maxpool=net.maxpool)
        if pyramid:
            parts["attention0"] = PyramidLevel(net.bn1.num_features)
        for number, (stage, width) in enumerate(zip(stages, widths, strict=True), start=1):
            parts[f"layer{number}"] = stage
            if pyramid:
                parts[f"attention{number}"] = PyramidLevel(width)
        super().__init__(parts)
        self.imagenet = "" if ibn or se else f"torchvision/resnet{depth}"
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


class SEBottleneck(torchvision_resnet.Bottleneck):
    """torchvision's, with squeeze and excitation before the sum."""

    def __init__(self, cin: int, width: int, *args: object, **kwargs: object) -> None:
        super().__init__(cin, width, *args, **kwargs)
        channels = width * self.expansion
        self.se = SE(channels, channels // 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.se(self.bn3(self.conv3(x))) + shortcut)


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
