"""Trunks that torchvision and timm have: their modules and keys, ended at the last map, with the edits that differ.

Huang, Liu, van der Maaten, Weinberger: "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993.
Iandola et al.: "SqueezeNet", arXiv 1602.07360.
Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507.
Zoph, Vasudevan, Shlens, Le: "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018,
arXiv 1707.07012.

timm is imported where it is used: it takes seconds.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet as torchvision_densenet
from torchvision.models import squeezenet as torchvision_squeezenet

from reidlib.models.layers import init_weights


class DenseNet(torchvision_densenet.DenseNet):
    """DenseNet-121: images (B, 3, H, W) to a map (B, 1024, H / 32, W / 32). `last_relu` follows the last norm."""

    def __init__(self, *, last_relu: bool = True) -> None:
        super().__init__(32, (6, 12, 24, 16), 64, num_classes=1)
        del self.classifier
        self.last_relu = last_relu
        self.channels = self.features.norm5.num_features

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return F.relu(x) if self.last_relu else x


class SqueezeNet(torchvision_squeezenet.SqueezeNet):
    """Images (B, 3, H, W) to a map (B, 512, about H / 16, about W / 16); `version` is "1_0" or "1_1"."""

    def __init__(self, version: str) -> None:
        super().__init__(version, num_classes=1)
        del self.classifier
        self.channels = 512

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class SENet(nn.Sequential):
    """timm's `variant`: images (B, 3, H, W) to a map (B, 2048, H / 32, W / 32), or H / 16, W / 16 with `last_stride=1`.

    Its stem pools in ceil mode without padding, and `legacy_seresnet50` strides in the first 1x1 convolution.
    """

    def __init__(self, variant: str = "legacy_seresnet50", *, last_stride: int = 2) -> None:
        from timm import create_model

        net = create_model(variant, num_classes=0)
        parts = ("layer0", "pool0", "layer1", "layer2", "layer3", "layer4")
        super().__init__(OrderedDict((part, getattr(net, part)) for part in parts))
        first = self.layer4[0]
        for conv in (first.conv1, first.conv2, first.downsample[0]):
            conv.stride = tuple(min(side, last_stride) for side in conv.stride)
        self.channels = net.num_features


class NASNetMobile(nn.Module):
    """NASNet-A (4 @ 1056): images (B, 3, H, W) to a map (B, 1056, H / 32, W / 32).

    timm's large one, narrowed, with four instead of six cells between reductions. In two things torchreid differs: the
    average pools of stride 2 do not count the padding, and the cell after a reduction takes the output of the cell
    before it, not of the one before that.
    """

    def __init__(self) -> None:
        from timm.models.nasnet import NASNetALarge

        super().__init__()
        net = NASNetALarge(num_classes=0, stem_size=32, num_features=1056)
        self.conv0 = nn.Sequential(OrderedDict(conv=net.conv0.conv, bn=nn.BatchNorm2d(32, eps=1e-3)))
        left_out = {f"cell_{number}" for number in (4, 5, 10, 11, 16, 17)}
        self.cells = nn.ModuleDict({name: getattr(net, name) for name in net.layer_names[1:] if name not in left_out})
        for name, cell in self.cells.items():
            if "stem" in name or "reduction" in name:
                cell.comb_iter_2_left = _AvgPoolSame()
        self.channels = net.num_features
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv0(x)
        x = self.cells["cell_stem_0"](before)
        x, before = self.cells["cell_stem_1"](before, x), x
        for cell in list(self.cells.values())[2:]:  # each cell takes the outputs of the two before it
            x, before = cell(x, before), x
        return F.relu(x)


class _AvgPoolSame(nn.Module):
    """3x3, stride 2, padded as TensorFlow's "SAME" pads; the padding is not counted."""

    def forward(self, x: Tensor) -> Tensor:
        padding = (x.shape[2] % 2, x.shape[3] % 2)
        return F.avg_pool2d(x, 3, 2, padding, ceil_mode=True, count_include_pad=False)
