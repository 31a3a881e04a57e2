"""Every model by its name, as declarations: trunk, head, and how they are wired.

A declaration is read, not run: nothing is built before `create_model`. `family` names the project whose published
files the model loads, and so the rename rules in `checkpoints.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from reidlib.models.architectures import Baseline
from reidlib.models.backbones import OSNet, ResNet
from reidlib.models.heads import Head

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    """A declaration: `wiring(backbone, head, sizes)` is the network. `input_size` is (height, width)."""

    backbone: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    family: str
    wiring: Callable[..., nn.Module] = Baseline
    input_size: tuple[int, int] = (256, 128)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_torchreid = partial(Model, family="torchreid")
_embed512 = partial(Head, embed=512)
_IBN = ("bn+in", "bn+in", "bn", "bn", "bn", "bn")
_AIN = ("in", "in", "bn", "in", "in", "bn")  # the places that the TPAMI paper's search chose

MODELS: dict[str, Model] = {
    # OSNet, plain and IBN: Zhou et al., ICCV 2019, arXiv 1905.00953; AIN: Zhou et al., TPAMI 2021, arXiv 1910.06827.
    # Reference: KaiyangZhou/deep-person-reid.
    "osnet_x1_0": _torchreid(OSNet, _embed512),
    "osnet_x0_75": _torchreid(partial(OSNet, width=0.75), _embed512),
    "osnet_x0_5": _torchreid(partial(OSNet, width=0.5), _embed512),
    "osnet_x0_25": _torchreid(partial(OSNet, width=0.25), _embed512),
    "osnet_ibn_x1_0": _torchreid(partial(OSNet, stem="in", blocks=_IBN), _embed512),
    "osnet_ain_x1_0": _torchreid(partial(OSNet, stem="in", blocks=_AIN), _embed512),
    # ResNet: He et al., CVPR 2016, arXiv 1512.03385. Reference: KaiyangZhou/deep-person-reid.
    "resnet50": _torchreid(ResNet, Head),
    "resnet50_fc512": _torchreid(partial(ResNet, last_stride=1), _embed512),
}
