"""Trunks: modules that turn normalised images (B, 3, H, W) into a map (B, channels, h, w).

Each has an attribute `channels`. A trunk may give several maps, as a tuple; then `channels` is one too, and
`cam_layer` is the module whose output is a map. `imagenet` names the library's weights that one may begin with,
`added` the entries that these do not have. Only the modules in this folder import timm's or torchvision's models.
"""

from reidlib.models.backbones.hacnn import HACNN
from reidlib.models.backbones.library import (
    DenseNet,
    MobileNetV3,
    NASNetMobile,
    ResNeSt,
    SENet,
    SqueezeNet,
    imagenet_state,
    timm_trunk,
)
from reidlib.models.backbones.mlfn import MLFN
from reidlib.models.backbones.mobilenet import MobileNetV2
from reidlib.models.backbones.osnet import OSNet
from reidlib.models.backbones.resnet import ResNet
from reidlib.models.backbones.shufflenet import ShuffleNet
from reidlib.models.backbones.squeezenet import BypassSqueezeNet
from reidlib.models.backbones.vit import ViT
from reidlib.models.backbones.wrapped import TimmTrunk, Wrapped, check_timm_name, output_shape, timm_facts, timm_names

__all__ = [
    "HACNN",
    "MLFN",
    "BypassSqueezeNet",
    "DenseNet",
    "MobileNetV2",
    "MobileNetV3",
    "NASNetMobile",
    "OSNet",
    "ResNeSt",
    "ResNet",
    "SENet",
    "ShuffleNet",
    "SqueezeNet",
    "TimmTrunk",
    "ViT",
    "Wrapped",
    "check_timm_name",
    "imagenet_state",
    "output_shape",
    "timm_facts",
    "timm_names",
    "timm_trunk",
]
