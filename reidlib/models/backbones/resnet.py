"""ResNet: torchvision's, with the edits that person re-identification makes to it as arguments.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.
The trunk ends at the last map; torchvision's pooling and classifier are left out. Keys are torchvision's.
"""

from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

_LAYERS = {50: (3, 4, 6, 3)}


class ResNet(torchvision_resnet.ResNet):
    """The trunk: images (B, 3, H, W) to a map (B, 2048, H / 32, W / 32), or H / 16, W / 16 with `last_stride=1`.

    `last_stride=1` keeps the last stage at the resolution of the one before, for finer maps at no more parameters
    (Sun et al., "Beyond Part Models", ECCV 2018). The convolutions are not dilated for it.
    `mid=True` gives the maps after each of the last stage's three blocks, as a tuple (Yu et al., "The Devil is in the
    Middle", arXiv 1711.08106).
    """

    def __init__(self, depth: int = 50, *, last_stride: int = 2, mid: bool = False) -> None:
        super().__init__(torchvision_resnet.Bottleneck, list(_LAYERS[depth]), num_classes=1)
        del self.avgpool, self.fc
        first = self.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (last_stride, last_stride)
        channels = first.downsample[0].out_channels
        self.mid = mid
        self.channels = (channels,) * len(self.layer4) if mid else channels

    @property
    def cam_layer(self) -> nn.Module:
        return self.layer4[-1]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (B, 64, H/4, W/4)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 1024, H/16, W/16)
        if not self.mid:
            return self.layer4(x)
        maps = []
        for block in self.layer4:
            x = block(x)
            maps.append(x)
        return tuple(maps)
