"""Trunks that torchvision and timm have: their modules and keys, ended at the last map, with the edits that differ.

Huang, Liu, van der Maaten, Weinberger: "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993.
Iandola et al.: "SqueezeNet", arXiv 1602.07360.
Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507.
Zoph, Vasudevan, Shlens, Le: "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018,
arXiv 1707.07012.
Zhang et al.: "ResNeSt: Split-Attention Networks", CVPR workshops 2022, arXiv 2004.08955.
Ma, Zhang, Zheng, Sun: "ShuffleNet V2", ECCV 2018, arXiv 1807.11164.
Howard et al.: "Searching for MobileNetV3", ICCV 2019, arXiv 1905.02244.
Szegedy et al.: "Rethinking the Inception Architecture", CVPR 2016, arXiv 1512.00567; "Inception-v4, Inception-ResNet",
AAAI 2017, arXiv 1602.07261. Liu et al.: "A ConvNet for the 2020s", CVPR 2022, arXiv 2201.03545.

timm is imported where it is used: it takes seconds.
"""

from collections import OrderedDict
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet as torchvision_densenet
from torchvision.models import get_model, get_model_weights, mobilenet_v3_large
from torchvision.models import squeezenet as torchvision_squeezenet

from reidlib.models.layers import SE, init_weights

_DENSENETS = {  # channels that each layer adds, layers of each block, channels of the stem
    121: (32, (6, 12, 24, 16), 64),
    161: (48, (6, 12, 36, 24), 96),
    169: (32, (6, 12, 32, 32), 64),
    201: (32, (6, 12, 48, 32), 64),
}


class DenseNet(torchvision_densenet.DenseNet):
    """DenseNet-121, -161, -169 or -201: images (B, 3, H, W) to a map (B, channels, H / 32, W / 32), 1024 of them for
    the first. `last_relu` follows the last norm.

    With `last_stride=1` the last transition does not pool, and the map has H / 16, W / 16.
    """

    def __init__(self, depth: int = 121, *, last_stride: int = 2, last_relu: bool = True) -> None:
        super().__init__(*_DENSENETS[depth], num_classes=1)
        del self.classifier
        if last_stride == 1:
            self.features.transition3.pool = nn.Identity()
        self.last_relu, self.imagenet = last_relu, f"torchvision/densenet{depth}"
        self.channels = self.features.norm5.num_features

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return F.relu(x) if self.last_relu else x

    def cut(self) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
        """The trunk as three in a row: to the first transition, to the third, to the last norm."""
        parts = list(self.features)
        return nn.Sequential(*parts[:6]), nn.Sequential(*parts[6:10]), nn.Sequential(*parts[10:])


class SqueezeNet(torchvision_squeezenet.SqueezeNet):
    """Images (B, 3, H, W) to a map (B, 512, about H / 16, about W / 16); `version` is "1_0" or "1_1"."""

    def __init__(self, version: str) -> None:
        super().__init__(version, num_classes=1)
        del self.classifier
        self.channels, self.imagenet = 512, f"torchvision/squeezenet{version}"

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class SENet(nn.Sequential):
    """timm's `variant`: images (B, 3, H, W) to a map (B, 2048, H / 32, W / 32), or H / 16, W / 16 with `last_stride=1`.

    Its stem pools in ceil mode without padding, and `legacy_seresnet50` strides in the first 1x1 convolution.
    """

    def __init__(self, variant: str = "legacy_seresnet50", *, last_stride: int = 2) -> None:
        from timm import create_model

        net: Any = create_model(variant, num_classes=0)
        parts = ("layer0", "pool0", "layer1", "layer2", "layer3", "layer4")
        super().__init__(OrderedDict((part, getattr(net, part)) for part in parts))
        first = net.layer4[0]
        for conv in (first.conv1, first.conv2, first.downsample[0]):
            conv.stride = tuple(min(side, last_stride) for side in conv.stride)
        for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4):
            block.se_module = SE(block.conv3.out_channels, block.se_module.fc1.out_channels)
        self.channels, self.imagenet = net.num_features, f"timm/{variant}"


class ResNeSt(nn.Sequential):
    """ResNeSt-50: images (B, 3, H, W) to a map (B, 2048, H / 16, W / 16), the last stage dilated.

    timm's, but for the first block of the last stage: as FastReID has it, it pools once more after its convolution, and
    not in its shortcut.
    """

    def __init__(self) -> None:
        from timm import create_model

        net: Any = create_model("resnest50d", num_classes=0, output_stride=16)
        first = net.layer4[0]
        first.avd_last = nn.AvgPool2d(3, stride=1, padding=1)
        first.downsample[0] = nn.Identity()
        parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
        super().__init__(OrderedDict((part, getattr(net, part)) for part in parts))
        self.channels, self.imagenet = net.num_features, "timm/resnest50d"


class MobileNetV3(nn.Sequential):
    """MobileNetV3-large: images (B, 3, H, W) to a map (B, 1280, H / 32, W / 32).

    torchvision's, but for the epsilon of the norms, and with a last convolution of FastReID's in place of the paper's.
    """

    def __init__(self) -> None:
        features = mobilenet_v3_large(norm_layer=nn.BatchNorm2d).features
        cin, channels = features[-1].out_channels, 1280
        conv = nn.Sequential(nn.Conv2d(cin, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        super().__init__(OrderedDict(features=features, conv=conv))
        self.channels, self.imagenet, self.added = channels, "torchvision/mobilenet_v3_large", r"^conv\."


class ShuffleNetV2(nn.Sequential):
    """torchvision's: images (B, 3, H, W) to a map (B, 1024, H / 32, W / 32), 2048 channels at a width of 2."""

    def __init__(self, width: str) -> None:
        net: Any = get_model(f"shufflenet_v2_x{width}", weights=None, num_classes=1)
        super().__init__(OrderedDict((name, part) for name, part in net.named_children() if name != "fc"))
        self.channels, self.imagenet = net.fc.in_features, f"torchvision/shufflenet_v2_x{width}"


def timm_trunk(variant: str, *, min_size: int = 32, **kwargs: object) -> nn.Module:
    """timm's `variant`, as it is, to its last map; `min_size` is the smallest side of an image that it takes."""
    from timm import create_model

    net: Any = create_model(variant, num_classes=0, global_pool="", **kwargs)
    net.channels, net.min_size, net.imagenet = net.num_features, min_size, f"timm/{variant}"
    return net


def imagenet_state(source: str, **options: object) -> dict[str, Tensor]:
    """Give a library's trained weights, downloading them if they are not in its cache.

    Args:
        source: "torchvision/resnet50", "timm/convnext_tiny" or likewise.
        options: How timm builds the model: `img_size` resizes position embeddings.

    Raises:
        OSError: There is no network; the libraries raise other kinds of error too.
    """
    library, _, name = source.partition("/")
    if library == "torchvision":
        weights = get_model_weights(name)["IMAGENET1K_V1"]  # the first, which all published work began with
        try:
            return weights.get_state_dict(check_hash=True, weights_only=True)  # its models would run code in the file
        except UnpicklingError as error:
            raise OSError(f"the file of {weights.url} in torch's cache holds more than weights: delete it") from error
    from timm import create_model

    with torch.random.fork_rng(devices=()):
        return create_model(name, pretrained=True, **options).state_dict()


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
