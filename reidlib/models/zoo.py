"""Every model by its name, as declarations: trunk, head, and how they are wired.

A declaration is read, not run: nothing is built before `create_model`. `family` names the project whose published
files the model loads, and so the rename rules in `checkpoints.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

from torch import nn

from reidlib.errors import unknown_name
from reidlib.models.backbones.hacnn import HACNN
from reidlib.models.backbones.library import (
    DenseNet,
    MobileNetV3,
    NASNetMobile,
    ResNeSt,
    SENet,
    ShuffleNetV2,
    SqueezeNet,
    timm_trunk,
)
from reidlib.models.backbones.mlfn import MLFN
from reidlib.models.backbones.mobilenet import MobileNetV2
from reidlib.models.backbones.mudeep import MuDeep
from reidlib.models.backbones.osnet import OSNet
from reidlib.models.backbones.resnet import CLIPResNet, ResNet
from reidlib.models.backbones.shufflenet import ShuffleNet
from reidlib.models.backbones.squeezenet import BypassSqueezeNet
from reidlib.models.backbones.swin import Swin
from reidlib.models.backbones.vit import ViT
from reidlib.models.backbones.wrapped import TimmTrunk, check_timm_name, timm_facts
from reidlib.models.checkpoints import RENAMES
from reidlib.models.heads import AttentionHead, Head, MeanHead, MidHead, ScoreHead, StripHead, TokenHead
from reidlib.models.own import own_factory, own_network
from reidlib.models.wirings import ABD, MGN, Baseline, Branches, CLIPReID, LightMBN, Sized, TransReID

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Model:
    """A declaration: `wiring(backbone, head, sizes)` is the network.

    Attributes:
        backbone: Factory of the trunk, which has an attribute `channels`.
        head: Factory of the head, called with the channels and the number of classes.
        family: The project whose files the model loads: a key of `checkpoints.RENAMES`.
        recipe: Name of the training settings that it was published with.
        wiring: Class of `wirings` that puts the two together.
        input_size: (height, width) of the images.
        mean, std: Of the RGB channels in [0, 1].
        interpolation: How images were resized for the published weights, at test time.
        mirrored: Whether its project ranks by the mean of the features of an image and of its mirror image.
        unit_parts: Into how many parts, of every so-many-th number, its project cuts this feature, to scale each to
            length 1 before ranking. The network gives the raw feature; `extract_features` does both.
    """

    backbone: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    family: str = "own"
    recipe: str = "torchreid_softmax"
    wiring: Callable[..., nn.Module] = Baseline
    input_size: tuple[int, int] = (256, 128)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    mirrored: bool = False
    unit_parts: int = 1


_torchreid = partial(Model, family="torchreid")
_2018 = "torchreid-2018"  # files of the zoo's first months, with other keys
_osnet = partial(Model, head=partial(Head, embed=512), family="torchreid", recipe="osnet_softmax")
_embed512 = partial(Head, embed=512)
_IBN = ("bn+in", "bn+in", "bn", "bn", "bn", "bn")
_AIN = ("in", "in", "bn", "in", "in", "bn")  # the places that the TPAMI paper's search chose

# Reference of all that follow: KaiyangZhou/deep-person-reid.
MODELS: dict[str, Model] = {
    # OSNet, plain and IBN: Zhou et al., ICCV 2019, arXiv 1905.00953; AIN: Zhou et al., TPAMI 2021, arXiv 1910.06827.
    "osnet_x1_0": _osnet(OSNet),
    "osnet_x0_75": _osnet(partial(OSNet, width=0.75)),
    "osnet_x0_5": _osnet(partial(OSNet, width=0.5)),
    "osnet_x0_25": _osnet(partial(OSNet, width=0.25)),
    "osnet_ibn_x1_0": _osnet(partial(OSNet, stem="in", blocks=_IBN)),
    "osnet_ain_x1_0": _osnet(partial(OSNet, stem="in", blocks=_AIN)),
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

# The rest of torchreid's factory; re-identification weights were never published for these.
_resnext = partial(ResNet, groups=32)
_inception = partial(timm_trunk, min_size=75)
MODELS |= {
    **{f"resnet{depth}": _torchreid(partial(ResNet, depth), Head) for depth in (18, 34, 101, 152)},
    # ResNeXt: Xie et al., CVPR 2017, arXiv 1611.05431.
    "resnext50_32x4d": _torchreid(partial(_resnext, 50, group_width=4), Head),
    "resnext101_32x8d": _torchreid(partial(_resnext, 101, group_width=8), Head),
    # IBN-Net: Pan et al., ECCV 2018, arXiv 1807.09441.
    **{f"resnet50_ibn_{kind}": _torchreid(partial(ResNet, ibn=kind), Head) for kind in "ab"},
    **{f"se_resnet{depth}": _torchreid(partial(SENet, f"legacy_seresnet{depth}"), Head) for depth in (50, 101, 152)},
    "se_resnext50_32x4d": _torchreid(partial(SENet, "legacy_seresnext50_32x4d"), Head),
    "se_resnext101_32x4d": _torchreid(partial(SENet, "legacy_seresnext101_32x4d"), Head),
    "senet154": _torchreid(partial(SENet, "legacy_senet154"), Head),
    **{f"densenet{depth}": _torchreid(partial(DenseNet, depth), Head) for depth in (161, 169, 201)},
    # Inception-v4 and Inception-ResNet-v2: Szegedy et al., arXiv 1602.07261; Xception: Chollet, arXiv 1610.02357.
    "inceptionv4": _torchreid(partial(_inception, "inception_v4"), Head),
    "inceptionresnetv2": _torchreid(partial(_inception, "inception_resnet_v2"), Head),
    "xception": _torchreid(partial(timm_trunk, "legacy_xception"), Head),
    **{
        f"shufflenet_v2_x{width}": _torchreid(partial(ShuffleNetV2, width), Head)
        for width in ("0_5", "1_0", "1_5", "2_0")
    },
    **{
        f"osnet_ain_x{name}": _osnet(partial(OSNet, width, stem="in", blocks=_AIN))
        for name, width in (("0_75", 0.75), ("0_5", 0.5), ("0_25", 0.25))
    },
    "mudeep": _torchreid(MuDeep, partial(Head, embed=4096), wiring=Sized),
    # PCB: Sun et al., ECCV 2018, arXiv 1711.09349; at the size of its paper, which torchreid's default is not.
    **{
        f"pcb_p{parts}": _torchreid(
            partial(ResNet, last_stride=1), partial(StripHead, parts=parts), input_size=(384, 128)
        )
        for parts in (4, 6)
    },
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

# BoT, a strong baseline: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification", CVPR
# workshops 2019, arXiv 1903.07071. Reference: michuanhaohao/reid-strong-baseline.
_bot = partial(Model, head=partial(Head, neck="bn"), family="reid-strong-baseline", recipe="bot")
MODELS |= {
    "resnet50_bot": _bot(partial(ResNet, last_stride=1, stem_relu=False)),
    "resnet50_ibn_a_bot": _bot(partial(ResNet, last_stride=1, ibn="a")),
    "se_resnet50_bot": _bot(partial(SENet, "legacy_seresnet50", last_stride=1)),
    "se_resnext50_bot": _bot(partial(SENet, "legacy_seresnext50_32x4d", last_stride=1)),
    "senet154_bot": _bot(partial(SENet, "legacy_senet154", last_stride=1)),
}

# AGW: Ye et al., "Deep Learning for Person Re-Identification: A Survey and Outlook", TPAMI 2021, arXiv 2001.04193.
# Reference: mangye16/ReID-Survey.
MODELS["resnet50_agw"] = Model(
    partial(ResNet, last_stride=1, stem_relu=False, non_local=(0, 2, 3, 0)),
    partial(Head, pool="gem", neck="bn"),
    family="AGW",
    recipe="agw",
)

# FastReID: He et al., "FastReID: A Pytorch Toolbox for General Instance Re-identification", ACM MM 2023,
# arXiv 2006.02631. Reference: JDAI-CV/fast-reid. Its four recipes differ in the head, its two ResNets with attention in
# the trunk; ResNeSt ignores both IBN and non-local blocks.
_R50 = partial(ResNet, last_stride=1, stem_pool="ceil")
_R50_IBN = partial(_R50, ibn="a")
_R101_IBN = partial(_R50_IBN, 101)
_NL50, _NL101 = {"non_local": (0, 2, 3, 0)}, {"non_local": (0, 2, 9, 0)}
_BAGTRICKS = partial(Head, neck="bn")
_AGW = partial(Head, pool="gem3", neck="bn")
_SBS = partial(Head, pool="gem", neck="bn", metric_feats="after", classifier="cosine")
_fastreid = partial(Model, family="fast-reid", recipe="fastreid_bot", interpolation="bicubic")
_fastreid_agw, _fastreid_sbs = partial(_fastreid, recipe="fastreid_agw"), partial(_fastreid, recipe="sbs")
MODELS |= {
    "bagtricks_R50_fastreid": _fastreid(_R50, _BAGTRICKS),
    "bagtricks_R50_ibn_fastreid": _fastreid(_R50_IBN, _BAGTRICKS),
    "bagtricks_R101_ibn_fastreid": _fastreid(_R101_IBN, _BAGTRICKS),
    "bagtricks_SeR50_fastreid": _fastreid(partial(_R50, se=True), _BAGTRICKS),
    "bagtricks_S50_fastreid": _fastreid(ResNeSt, _BAGTRICKS),
    "bagtricks_osnet_x1_0_fastreid": _fastreid(OSNet, _BAGTRICKS),
    "bagtricks_osnet_ibn_x1_0_fastreid": _fastreid(partial(OSNet, stem="in", blocks=_IBN), _BAGTRICKS),
    "bagtricks_mobilenet_v3_large_fastreid": _fastreid(MobileNetV3, _BAGTRICKS),
    "bagtricks_densenet121_fastreid": _fastreid(DenseNet, _BAGTRICKS),
    "bagtricks_convnext_tiny_fastreid": _fastreid(partial(timm_trunk, "convnext_tiny", output_stride=16), _BAGTRICKS),
    "bagtricks_inception_v3_fastreid": _fastreid(partial(timm_trunk, "inception_v3", min_size=75), _BAGTRICKS),
    "bagtricks_inception_v4_fastreid": _fastreid(partial(timm_trunk, "inception_v4", min_size=75), _BAGTRICKS),
    "bagtricks_inception_resnet_v2_fastreid": _fastreid(
        partial(timm_trunk, "inception_resnet_v2", min_size=75), _BAGTRICKS
    ),
    "agw_R50_fastreid": _fastreid_agw(partial(_R50, **_NL50), _AGW),
    "agw_R50_ibn_fastreid": _fastreid_agw(partial(_R50_IBN, **_NL50), _AGW),
    "agw_R101_ibn_fastreid": _fastreid_agw(partial(_R101_IBN, **_NL101), _AGW),
    "agw_S50_fastreid": _fastreid_agw(ResNeSt, _AGW),
    "sbs_R50_fastreid": _fastreid_sbs(partial(_R50, **_NL50), _SBS),
    "sbs_R50_ibn_fastreid": _fastreid_sbs(partial(_R50_IBN, **_NL50), _SBS),
    "sbs_R101_ibn_fastreid": _fastreid_sbs(partial(_R101_IBN, **_NL101), _SBS),
    "sbs_S50_fastreid": _fastreid_sbs(ResNeSt, _SBS),
}

# MGN: Wang et al., ACM MM 2018, arXiv 1804.01438, with FastReID's trunks (no non-local blocks) and pools.
for _recipe, _head in (
    ("mgn", partial(_BAGTRICKS, reduce=256)),
    ("mgn_agw", partial(_AGW, reduce=256)),
    ("mgn_sbs", partial(_SBS, reduce=256)),
):
    for _name, _trunk in (("R50", _R50), ("R50_ibn", _R50_IBN), ("S50", ResNeSt), ("S50_ibn", ResNeSt)):
        MODELS[f"{_recipe}_{_name}_fastreid"] = _fastreid(_trunk, _head, wiring=MGN, recipe=_recipe)

# APNet: Chen et al., "Person Re-identification via Attention Pyramid", TIP 2021, arXiv 2108.05340.
# Reference: CHENGY12/APNet.
MODELS["resnet50_ap"] = Model(
    partial(ResNet, last_stride=1, stem_relu=False, pyramid=True),
    partial(Head, neck="bn"),
    family="APNet",
    recipe="apnet",
)

# ABD-Net: Chen et al., ICCV 2019, arXiv 1908.01114. Reference: VITA-Group/ABD-Net.
_abd = partial(
    Model, head=(partial(Head, embed=1024, dropout=0.5), AttentionHead), family="ABD-Net", recipe="abd", wiring=ABD
)
MODELS |= {
    "resnet50_abd": _abd(partial(ResNet, last_stride=1)),
    "densenet121_abd": _abd(partial(DenseNet, last_stride=1)),
}

# TransReID: He et al., ICCV 2021, arXiv 2102.04378. Reference: damo-cv/TransReID.
_transreid = partial(
    Model,
    head=partial(Head, neck="bn", feats="before"),
    family="TransReID",
    recipe="transreid",
    mean=HALF,
    std=HALF,
)
MODELS["vit_base_transreid"] = _transreid(ViT, wiring=TransReID)
_overlapping = partial(ViT, stride=12, camera_weight=3.0)
MODELS |= {
    "vit_transreid": _transreid(_overlapping, wiring=partial(TransReID, parts=4)),
    "deit_transreid": _transreid(
        partial(_overlapping, imagenet="timm/deit_base_distilled_patch16_224"), wiring=partial(TransReID, parts=4)
    ),
}

# TransReID-SSL: Luo et al., arXiv 2111.12084. Reference: damo-cv/TransReID-SSL. Its networks trained without labels
# ("usl") come from the code of cluster-contrast, rank by the normalised feature after the neck, and resize bicubically.
_ssl = partial(_transreid, family="TransReID-SSL", recipe="transreid_ssl", wiring=TransReID)
_SMALL, _BASE = partial(ViT, width=384, imagenet=""), partial(ViT, imagenet="")
_usl = partial(_ssl, interpolation="bicubic")
_UNIT_NECK = {"head": partial(Head, neck="bn"), "wiring": partial(TransReID, normalise=True)}
_SMALL_ICS = partial(_SMALL, conv_stem=True)
MODELS |= {
    "transreid_ssl_vit_small": _ssl(_SMALL),
    "transreid_ssl_vit_small_ics": _ssl(_SMALL_ICS),
    "transreid_ssl_vit_base_ics_384": _ssl(partial(_BASE, conv_stem=True), input_size=(384, 128)),
    "transreid_ssl_usl_vit_small": _usl(_SMALL, **_UNIT_NECK),
    "transreid_ssl_usl_vit_small_ics": _usl(_SMALL_ICS, **_UNIT_NECK),
}

# PersonViT: Hu et al., arXiv 2408.05398. Reference: hustvl/PersonViT. The networks are TransReID-SSL's.
_personvit = partial(_ssl, family="PersonViT")
MODELS |= {"personvit_vit_small": _personvit(_SMALL), "personvit_vit_base": _personvit(_BASE)}

# PASS: Zhu et al., ECCV 2022, arXiv 2203.03931. Reference: CASIA-IVA-Lab/PASS-reID.
_pass = partial(_ssl, head=TokenHead, family="PASS", recipe="pass")
_PASS_SMALL, _PASS_BASE = partial(_SMALL, part_tokens=3), partial(_BASE, part_tokens=3)
for _name, _trunk in (("small", _PASS_SMALL), ("base", _PASS_BASE)):
    MODELS[f"pass_vit_{_name}"] = _pass(_trunk)
    MODELS[f"pass_vit_{_name}_384"] = _pass(_trunk, input_size=(384, 128))
for _join in ("cat", "mean"):
    _after = partial(TokenHead, join=_join, feats="after", normalise=True)
    for _name, _necks in (("single", 1), ("multi", 4)):
        MODELS[f"pass_usl_vit_small_{_join}_{_name}neck"] = _pass(
            _PASS_SMALL, head=partial(_after, necks=_necks), interpolation="bicubic"
        )

# CLIP-ReID: Li, Sun, Li, AAAI 2023, arXiv 2211.13977. Reference: Syliz517/CLIP-ReID. Its baselines are the same
# networks, trained without the text side.
_clipreid = partial(_transreid, family="CLIP-ReID", recipe="clipreid_baseline", wiring=CLIPReID)
_CLIP_VIT = partial(_BASE, project=512, drop_path=0.0)
MODELS |= {
    "clipreid_vit_b16": _clipreid(_CLIP_VIT),
    "clipreid_vit_b16_sie_olp": _clipreid(partial(_CLIP_VIT, stride=12, camera_weight=1.0, camera_tokens="class")),
    "clipreid_rn50": _clipreid(CLIPResNet, mean=IMAGENET_MEAN, std=IMAGENET_STD),
}
MODELS |= {f"clipreid_baseline_{name}": MODELS[f"clipreid_{name}"] for name in ("rn50", "vit_b16")}

# SOLIDER: Chen et al., CVPR 2023, arXiv 2303.17602. Reference: tinyvision/SOLIDER-REID.
_solider = partial(_transreid, family="SOLIDER", recipe="solider", wiring=Sized, input_size=(384, 128))
MODELS |= {f"solider_swin_{size}": _solider(partial(Swin, size=size)) for size in ("tiny", "small", "base")}

# LightMBN: Herzog et al., ICIP 2021, arXiv 2101.10774. Reference: jixunbo/LightMBN.
_lmbn = partial(Model, head=partial(Head, neck="bn"), family="LightMBN", recipe="lightmbn")
_lmbn = partial(_lmbn, input_size=(384, 128), mirrored=True, unit_parts=7)
_on_resnet = partial(LightMBN, stage="layer3", global_stride=2, pool="max")
MODELS |= {
    "lmbn_n": _lmbn(OSNet, wiring=LightMBN),
    "lmbn_r": _lmbn(partial(ResNet, last_stride=1), wiring=_on_resnet),
}

# Older and other spellings; `create_model` takes them, `list_models` leaves them out.
ALIASES = {
    "mobilenetv2_1dot0": "mobilenetv2_x1_0",
    "mobilenetv2_1dot4": "mobilenetv2_x1_4",
    "nasnetmobile": "nasnsetmobile",
}


TIMM = "timm/"  # before the name of a model of timm
# A mean, not GeM: the maps of many of these trunks end in a norm, and GeM drops what is below zero.
_BNNECK = partial(Head, neck="bn")


def canonical_name(name: str) -> str:
    """Give today's name of a model.

    Args:
        name: A key of MODELS, one of ALIASES, or "timm/" and a name of timm's.

    Raises:
        ValueError: There is none of that name; the nearest ones are given.
    """
    if name.startswith(TIMM):
        check_timm_name(name.removeprefix(TIMM))
        return name
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return name


def declaration(name: str) -> Model:
    """Give the declaration behind a model's name; arguments and errors as for `canonical_name`."""
    name = canonical_name(name)
    return timm_model(name) if name.startswith(TIMM) else as_model(name, MODELS[name])


@cache
def timm_model(name: str) -> Model:
    """Declare a model of timm: its trunk, with the standard BNNeck head on its map or vector, trained as BoT.

    Args:
        name: "timm/" and one of `timm.list_models()`, with or without the tag of its weights. Mean and std are theirs.

    Raises:
        ValueError: There is no such model.
    """
    variant = name.removeprefix(TIMM)
    facts = timm_facts(variant)
    trunk = partial(TimmTrunk, variant)
    return Model(trunk, _BNNECK, "timm", "bot", Sized, facts.input_size, facts.mean, facts.std, facts.interpolation)


def as_model(name: str, thing: object) -> Model:
    """Make a declaration of what a user may put into MODELS.

    Args:
        name: The model's name.
        thing: A `Model`, or a function or class `build(num_classes, input_size)` that gives a network; see `own`.

    Raises:
        ValueError: It is neither, or belongs to an unknown family.
    """
    if isinstance(thing, Model):
        if thing.family not in RENAMES:
            raise unknown_name(f"family of the network {name}", thing.family, RENAMES)
        return thing
    return Model(own_factory(name, thing), _BNNECK, recipe="bot", wiring=own_network)
