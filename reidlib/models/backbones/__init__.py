"""Trunks: modules that turn normalised images (B, 3, H, W) into a map (B, channels, h, w).

Each has an attribute `channels`. Only the modules in this folder import timm's or torchvision's models.
"""

from reidlib.models.backbones.osnet import OSNet
from reidlib.models.backbones.resnet import ResNet

__all__ = ["OSNet", "ResNet"]
