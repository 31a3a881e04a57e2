"""Every model by its name, as declarations: trunk, head, and how they are wired.

A declaration is read, not run: nothing is built before `create_model`. `family` names the project whose published
files the model loads, and so the rename rules in `checkpoints.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from reidlib.models.architectures import Baseline, Branches
from reidlib.models.backbones import (
    HACNN,
    MLFN,
    BypassSqueezeNet,
    DenseNet,
    MobileNetV2,
    NASNetMobile,
    OSNet,
    ResNet,
    SENet,
    ShuffleNet,
    SqueezeNet,
)
from reidlib.models.heads import Head, MeanHead, MidHead, ScoreHead

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
_2018 = "torchreid-2018"  # files of the zoo's first months, with other keys
_embed512 = partial(Head, embed=512)
_IBN = ("bn+in", "bn+in", "bn", "bn", "bn", "bn")
_AIN = ("in", "in", "bn", "in", "in", "bn")  # the places that the TPAMI paper's search chose

# Reference of all that follow: KaiyangZhou/deep-person-reid.
MODELS: dict[str, Model] = {
    # OSNet, plain and IBN: Zhou et al., ICCV 2019, arXiv 1905.00953; AIN: Zhou et al., TPAMI 2021, arXiv 1910.06827.
    "osnet_x1_0": _torchreid(OSNet, _embed512),
    "osnet_x0_75": _torchreid(partial(OSNet, width=0.75), _embed512),
    "osnet_x0_5": _torchreid(partial(OSNet, width=0.5), _embed512),
    "osnet_x0_25": _torchreid(partial(OSNet, width=0.25), _embed512),
    "osnet_ibn_x1_0": _torchreid(partial(OSNet, stem="in", blocks=_IBN), _embed512),
    "osnet_ain_x1_0": _torchreid(partial(OSNet, stem="in", blocks=_AIN), _embed512),
    # ResNet: He et al., CVPR 2016, arXiv 1512.03385; mid-level features: Yu et al., arXiv 1711.08106;
    # SE: Hu et al., CVPR 2018, arXiv 1709.01507.
    "resnet50": _torchreid(ResNet, Head),
    "resnet50_fc512": _torchreid(partial(ResNet, last_stride=1), _embed512),
    "resnet50mid": _torchreid(partial(ResNet, mid=True), partial(MidHead, embed=1024)),
    "se_resnet50_fc512": _torchreid(partial(SENet, "legacy_seresnet50", last_stride=1), _embed512),
    # MLFN: Chang et al., CVPR 2018, arXiv 1803.09132.
    "mlfn": _torchreid(MLFN, partial(MeanHead, embed=1024)),
    # HACNN: Li et al., CVPR 2018, arXiv 1802.08122.
    "hacnn": _torchreid(HACNN, _embed512, wiring=partial(Branches, normalise=True), input_size=(160, 64)),
    # DenseNet: Huang et al., CVPR 2017, arXiv 1608.06993.
    "densenet121": _torchreid(DenseNet, Head),
    "densenet121_fc512": _torchreid(DenseNet, _embed512),
    # Small ones. MobileNetV2: Sandler et al., CVPR 2018, arXiv 1801.04381; ShuffleNet: Zhang et al., CVPR 2018,
    # arXiv 1707.01083; SqueezeNet: Iandola et al., arXiv 1602.07360; NASNet: Zoph et al., CVPR 2018, arXiv 1707.07012.
    "mobilenetv2_x1_0": _torchreid(MobileNetV2, Head),
    "mobilenetv2_x1_4": _torchreid(partial(MobileNetV2, width=1.4), Head),
    "shufflenet": _torchreid(ShuffleNet, Head),
    "squeezenet1_0": _torchreid(partial(SqueezeNet, "1_0"), Head),
    "squeezenet1_1": _torchreid(partial(SqueezeNet, "1_1"), Head),
    "squeezenet1_0_fc512": _torchreid(partial(SqueezeNet, "1_0"), _embed512),
    "nasnsetmobile": _torchreid(NASNetMobile, partial(Head, dropout=0.5)),  # spelled so upstream
}

# The zoo of August 2018: most are today's networks.
MODELS |= {
    "v2018_ResNet50": replace(MODELS["resnet50"], family=_2018),
    "v2018_ResNet50M": replace(MODELS["resnet50mid"], head=partial(MidHead, embed=1024, mid_first=False), family=_2018),
    "v2018_DenseNet121": replace(MODELS["densenet121"], backbone=partial(DenseNet, last_relu=False), family=_2018),
    "v2018_HACNN": replace(MODELS["hacnn"], family=_2018),
    "v2018_MobileNetV2": replace(MODELS["mobilenetv2_x1_0"], family=_2018),
    "v2018_ShuffleNet": replace(MODELS["shufflenet"], family=_2018),
    "v2018_NasnetMobile": replace(MODELS["nasnsetmobile"], family=_2018),
    "v2018_SqueezeNet": Model(BypassSqueezeNet, partial(ScoreHead, dropout=0.5), family=_2018),
}

# The same networks, trained again by HWliiu/pytorch-reid-models.
MODELS |= {f"{name}_dpr": MODELS[name] for name in ("mlfn", "osnet_x1_0", "osnet_ibn_x1_0", "osnet_ain_x1_0")}

# Older and other spellings; `create_model` takes them, `list_models` leaves them out.
ALIASES = {
    "mobilenetv2_1dot0": "mobilenetv2_x1_0",
    "mobilenetv2_1dot4": "mobilenetv2_x1_4",
    "nasnetmobile": "nasnsetmobile",
}
