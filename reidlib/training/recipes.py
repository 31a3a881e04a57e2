"""What a training run does, as data: one frozen declaration, checked before anything starts, and the published ones.

A recipe is independent of the model, which declares what belongs to the network: last stride, neck, the feature that is
ranked by. Each model of the zoo names the recipe that it was published with.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from reidlib.errors import unknown_name

_KNOWN = {
    "optimizer": ("adam", "adamw", "amsgrad", "sgd"),
    "schedule": ("cosine", "steps"),
    "open_layers": ("heads", "classifiers"),
    "softmax": ("plain", "circle", "arcface", "cosface"),
    "mining": ("hard", "weighted"),
    "metric": ("cosine", "euclidean"),
}


@dataclass(frozen=True)
class Recipe:
    """Settings of one run; the defaults train a small network from random weights.

    Lengths are in epochs; a batch holds `people` × `images` pictures on each process. Raises ValueError on building for
    a value that makes no sense or contradicts another, naming it.
    """

    height: int = 0  # pixels that pictures are resized to; 0: as the model was published
    width: int = 0
    epochs: int = 8
    people: int = 8  # P: different people in a batch
    images: int = 4  # K: pictures of each
    pk: bool = True  # False: batches of people × images pictures drawn from all, no triplets
    optimizer: str = "adam"
    lr: float = 3e-3
    backbone_lr: float = 1.0  # times `lr`, for all but the heads
    bias_lr: float = 1.0  # times `lr`, for biases
    weight_decay: float = 5e-4
    bias_decay: float = 1.0  # times `weight_decay`, for biases
    schedule: str = "cosine"
    delay: float = 0.0  # epochs before the cosine begins to fall
    final: float = 0.0  # share of the rate that the cosine ends with
    milestones: tuple[int, ...] = ()  # epochs after which "steps" multiplies the rate by `gamma`
    gamma: float = 0.1
    warmup: float = 0.5  # epochs in which the rate rises linearly from `warmup_from`
    warmup_from: float = 0.1  # share of the rate
    freeze: int = 0  # first epochs in which only `open_layers` are trained
    open_layers: str = "heads"  # norms elsewhere go on adapting; "classifiers": nothing else moves
    cross_entropy_weight: float = 1.0  # weights of the losses, 0 for none
    smoothing: float = 0.1
    focal: float = 0.0  # exponent: each picture's cross entropy times (1 - probability of the right person) to this
    softmax: str = "plain"  # the margin that the right person's cosine must win by, where the classifier gives cosines
    softmax_margin: float = 0.35
    softmax_scale: float = 64.0
    triplet_weight: float = 0.0  # from random weights batch-hard triplets may pull all features into one point
    mining: str = "hard"  # or "weighted": all pairs, the harder the heavier
    margin: float = 0.3  # of the triplet loss; 0: the soft margin, log(1 + exp(·))
    center_weight: float = 0.0
    center_lr: float = 0.5  # rate of the centers themselves
    circle_weight: float = 0.0  # circle loss of pairs
    circle_margin: float = 0.25
    circle_scale: float = 128.0
    orthogonal_weights: float = 0.0  # penalty on the trunk's convolutions that are alike (ABD)
    orthogonal_features: float = 0.0  # and on its attentive maps
    orthogonal_features_after: int = 0  # epochs
    first_branch: float = 0.0  # share of a model's first branch in each loss; 0: every branch alike
    augment: tuple[str, ...] = ("random_flip", "pad_crop")
    accumulate: int = 1  # batches that make one step of the optimizer
    clip: float = 0.0  # longest gradient, all parameters together; 0: any
    ema: float = 0.0  # decay a step of the averaged weights that are evaluated and kept; 0: the weights themselves
    patience: int = 0  # evaluations in a row without a better mAP after which training ends; 0: never
    eval_every: int = 4
    metric: str = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("milestones", "augment"):  # lists come from notebooks and JSON
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for kind, known in _KNOWN.items():
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
        for field in ("epochs", "people", "images", "accumulate", "eval_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("lr", "softmax_scale", "circle_scale", "center_lr"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be above 0, got {getattr(self, field)}")
        for field in ("smoothing", "ema"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must lie in [0, 1), got {getattr(self, field)}")
        for field in ("final", "warmup_from", "first_branch"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is a share from 0 to 1, got {getattr(self, field)}")
        for field, value in vars(self).items():
            if isinstance(value, int | float) and field != "seed" and not 0 <= value < math.inf:
                raise ValueError(f"{field} must not be negative, got {value}")
        if bool(self.height) != bool(self.width):
            raise ValueError(f"height and width go together, got {self.height} × {self.width}: give both, or neither")
        self._check_losses()
        self._check_lengths()

    def _check_losses(self) -> None:
        if not (self.cross_entropy_weight or self.triplet_weight or self.circle_weight):
            raise ValueError("nothing to learn from: cross_entropy_weight, triplet_weight or circle_weight is above 0")
        if self.freeze and not self.cross_entropy_weight:
            raise ValueError("freeze needs a cross entropy for what stays open: set freeze=0, or its weight above 0")
        for loss in ("triplet", "circle"):
            used = getattr(self, f"{loss}_weight") > 0
            if used and not self.pk:
                raise ValueError(f"the {loss} loss needs PK batches: set pk=True, or {loss}_weight=0")
            if used and min(self.people, self.images) < 2:
                raise ValueError(
                    f"the {loss} loss needs at least 2 people × 2 images in a batch, got {self.people} × {self.images}"
                )

    def _check_lengths(self) -> None:
        if self.schedule == "steps" and (not self.milestones or max(self.milestones) >= self.epochs):
            raise ValueError(
                f"schedule 'steps' needs milestones before the last of {self.epochs} epochs, got {self.milestones}"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {self.milestones}")
        within = {
            "freeze": True,
            "delay": self.schedule == "cosine",
            "orthogonal_features_after": self.orthogonal_features > 0,
        }
        for field, matters in (within | {"warmup": True}).items():
            if matters and getattr(self, field) > 0 and getattr(self, field) >= self.epochs:
                raise ValueError(f"{field} takes {getattr(self, field)} of {self.epochs} epochs: make it shorter")

    def rate(self, progress: float) -> float:
        """The learning rate after `progress` epochs (a fraction within an epoch), as a share of `lr`.

        Warm-up multiplies whatever the schedule says.
        """
        warm = min(1.0, self.warmup_from + (1 - self.warmup_from) * progress / self.warmup) if self.warmup else 1.0
        if self.schedule == "steps":
            return warm * self.gamma ** sum(progress >= m for m in self.milestones)
        fallen = min(1.0, max(0.0, progress - self.delay) / (self.epochs - self.delay))
        return warm * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fallen)))

    @classmethod
    def of(cls, name: str, values: Mapping[str, object] | None = None) -> "Recipe":
        """The recipe `name`, with the settings that stand in `values` under their own names and are not None.

        Other entries are ignored, but `scaled`: the epochs that the recipe is shrunk to first. Raises ValueError.
        """
        values = values or {}
        if name not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)
        base = RECIPES[name].scaled(values["scaled"]) if values.get("scaled") else RECIPES[name]
        return base.having(values)

    def having(self, values: Mapping[str, object]) -> "Recipe":
        """With the settings that stand in `values` under their own names and are not None; the rest is ignored."""
        return replace(self, **{f.name: values[f.name] for f in fields(self) if values.get(f.name) is not None})

    def changed(self, name: str = "") -> list[str]:
        """The settings that are not as the recipe `name` has them; without one, as `Recipe()` has."""
        other = RECIPES[name] if name else Recipe()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def scaled(self, epochs: int, batch: int = 32) -> "Recipe":
        """The same in small, for small data: all lengths as shares of `epochs`, and at most `batch` pictures a batch,
        of which the larger of people and images gives way. Pictures are as large as the model says.
        """
        share = epochs / self.epochs
        people, images = self.people, self.images
        while people * images > batch:
            people, images = (people // 2, images) if people >= images else (people, images // 2)
        inner = sorted({min(epochs - 1, max(1, round(m * share))) for m in self.milestones} - {0})
        return replace(
            self,
            height=0,
            width=0,
            epochs=epochs,
            people=people,
            images=images,
            warmup=self.warmup * share,
            delay=self.delay * share,
            milestones=tuple(inner),
            freeze=round(self.freeze * share),
            orthogonal_features_after=round(self.orthogonal_features_after * share),
            eval_every=max(1, min(self.eval_every, epochs // 2)),
        )


# The published ones. Results are Rank-1 / mAP on Market-1501, single query, without re-ranking, of a trunk that begins
# with ImageNet's weights. The command is `python -m reidlib.batch train -p dataset market1501 -p init imagenet` with
# the recipe's own arguments after it.
RECIPES: dict[str, Recipe] = {"toy": Recipe(height=128, width=64)}

# Zhou and Xiang, "Torchreid", arXiv 1910.10093. KaiyangZhou/deep-person-reid, configs/im_r50_softmax_256x128_amsgrad
# with the random crop of its model zoo. Its "single_step" falls every 20 epochs, not once.
# resnet50_fc512: 90.8 / 75.3; resnet50: 87.9 / 70.4.    -p recipe torchreid_softmax -p model resnet50_fc512
RECIPES["torchreid_softmax"] = Recipe(
    epochs=60,
    people=8,
    images=4,
    pk=False,
    optimizer="amsgrad",
    lr=3e-4,
    schedule="steps",
    milestones=(20, 40),
    warmup=0,
    freeze=5,
    open_layers="classifiers",
    augment=("random_flip", "random_crop"),
    eval_every=10,
    metric="euclidean",
)

# OSNet: Zhou et al., ICCV 2019. KaiyangZhou/deep-person-reid, configs/im_osnet_x1_0_softmax_256x128_amsgrad.
# osnet_x1_0: 94.2 / 82.6. Across data sets the zoo's OSNets were trained with -p augment random_flip,color_jitter.
#     -p recipe osnet_softmax -p model osnet_x1_0
RECIPES["osnet_softmax"] = replace(
    RECIPES["torchreid_softmax"],
    epochs=150,
    people=16,
    lr=1.5e-3,
    milestones=(60, 120),
    freeze=10,
    augment=("random_flip",),
)

# Batch-hard triplets (Hermans et al., "In Defense of the Triplet Loss", 2017) with cross entropy, and alone.
# KaiyangZhou/deep-person-reid of August 2018, the defaults of train_imgreid_xent_htri (args.py): what its zoo was
# trained with beyond them is not kept.
# v2018_DenseNet121: 90.1 / 74.0 with both.    -p recipe xent_htri -p model v2018_DenseNet121
RECIPES["xent_htri"] = Recipe(
    epochs=60,
    people=8,
    images=4,
    lr=3e-4,
    schedule="steps",
    milestones=(20, 40),
    warmup=0,
    smoothing=0,
    triplet_weight=1.0,
    augment=("random_flip", "random_crop"),
    eval_every=10,
    metric="euclidean",
)
# v2018_DenseNet121: 86.6 / 70.8.    -p recipe htri -p model v2018_DenseNet121
RECIPES["htri"] = replace(RECIPES["xent_htri"], cross_entropy_weight=0)

# BoT: Luo et al., "Bag of Tricks", CVPR workshops 2019, arXiv 1903.07071. michuanhaohao/reid-strong-baseline,
# configs/softmax_triplet_with_center.
# resnet50_bot: 94.5 / 85.9.    -p recipe bot -p model resnet50_bot
RECIPES["bot"] = Recipe(
    epochs=120,
    people=16,
    images=4,
    lr=3.5e-4,
    schedule="steps",
    milestones=(40, 70),
    warmup=10,
    warmup_from=0.01,
    triplet_weight=1.0,
    center_weight=5e-4,
    augment=("random_flip", "pad_crop", "random_erasing=0.5"),
    eval_every=10,
)

# AGW: Ye et al., "Deep Learning for Person Re-Identification: A Survey and Outlook", TPAMI 2021, arXiv 2001.04193.
# mangye16/ReID-Survey, configs/AGW_baseline.
# resnet50_agw: 95.1 / 87.8.    -p recipe agw -p model resnet50_agw
RECIPES["agw"] = replace(RECIPES["bot"], mining="weighted", margin=0)

# ABD-Net: Chen et al., ICCV 2019, arXiv 1908.01114. VITA-Group/ABD-Net, README_Training_and_Testing_Guides and args.py:
# 10 epochs of the classifiers alone, then 80; the penalty on features from the 24th of these. Its results average over
# flipped pictures, which is not done here.
# resnet50_abd: 95.6 / 88.3.    -p recipe abd -p model resnet50_abd
RECIPES["abd"] = Recipe(
    height=384,
    width=128,
    epochs=90,
    people=16,
    images=4,
    lr=3e-4,
    schedule="steps",
    milestones=(30, 50),
    warmup=0,
    freeze=10,
    open_layers="classifiers",
    triplet_weight=0.1,
    margin=1.2,
    orthogonal_weights=1e-3,
    orthogonal_features=1e-6,
    orthogonal_features_after=33,
    augment=("random_flip", "random_crop", "random_erasing=0.5"),
    eval_every=10,
    metric="euclidean",
)

# APNet: Chen et al., "Person Re-identification via Attention Pyramid", TIP 2021, arXiv 2108.05340. CHENGY12/APNet,
# configs/default. What its augmentation does beyond flip and padding is not among the published files.
# resnet50_ap: 96.2 / 90.5.    -p recipe apnet -p model resnet50_ap
RECIPES["apnet"] = Recipe(
    height=384,
    width=192,
    epochs=160,
    people=20,
    images=4,
    lr=4e-4,
    weight_decay=1e-3,
    schedule="steps",
    milestones=(40, 80, 120),
    warmup=10,
    warmup_from=0.01,
    triplet_weight=1.0,
    eval_every=10,
)

# FastReID: He et al., ACM MM 2023, arXiv 2006.02631. JDAI-CV/fast-reid, configs/Base-bagtricks, Base-AGW, Base-SBS and
# configs/Market1501. Its iterations are counted as epochs of Market-1501: 202 batches of 64, so that the 2000 of its
# warm-up are 10 epochs, and 1000 with the trunk frozen are 5.
# bagtricks_R50_fastreid: 94.4 / 86.1.    -p recipe fastreid_bot -p model bagtricks_R50_fastreid
RECIPES["fastreid_bot"] = replace(RECIPES["bot"], milestones=(40, 90), warmup_from=0.1, center_weight=0)
# agw_R50_fastreid: 95.3 / 88.2.    -p recipe fastreid_agw -p model agw_R50_fastreid
RECIPES["fastreid_agw"] = replace(RECIPES["fastreid_bot"], mining="weighted", margin=0)
# sbs_R50_fastreid: 95.4 / 88.2.    -p recipe sbs -p model sbs_R50_fastreid
RECIPES["sbs"] = replace(
    RECIPES["fastreid_bot"],
    height=384,
    width=128,
    epochs=60,
    people=4,
    images=16,
    schedule="cosine",
    delay=30,
    final=0.002,
    milestones=(),
    freeze=5,
    softmax="circle",
    margin=0,
    augment=("auto_augment=0.1", "random_flip", "pad_crop", "random_erasing=0.5"),
)

# MGN: Wang et al., ACM MM 2018, arXiv 1804.01438, on FastReID's three, as HWliiu/pytorch-reid-models trained them
# (FastReID/configs/Base-MGN, Base-MGN-AGW, Base-MGN-SBS) at 256 × 128. FastReID's own is mgn_sbs at 384 × 128, with
# which mgn_sbs_R50_ibn_fastreid has 95.8 / 89.7.
# mgn_R50_fastreid: 94.4 / 87.2.    -p recipe mgn -p model mgn_R50_fastreid
RECIPES["mgn"] = RECIPES["fastreid_bot"]
# mgn_agw_R50_fastreid: 94.8 / 87.7.    -p recipe mgn_agw -p model mgn_agw_R50_fastreid
RECIPES["mgn_agw"] = RECIPES["fastreid_agw"]
# mgn_sbs_R50_fastreid: 95.5 / 88.6.    -p recipe mgn_sbs -p model mgn_sbs_R50_fastreid
RECIPES["mgn_sbs"] = replace(RECIPES["sbs"], height=256, width=128)

# TransReID: He et al., ICCV 2021, arXiv 2102.04378. damo-cv/TransReID, configs/Market/vit_transreid_stride.
# vit_transreid: 95.1 / 89.0; vit_base_transreid: 94.6 / 87.1.    -p recipe transreid -p model vit_transreid
RECIPES["transreid"] = Recipe(
    epochs=120,
    people=16,
    images=4,
    optimizer="sgd",
    lr=8e-3,
    bias_lr=2.0,
    weight_decay=1e-4,
    final=0.002,
    warmup=5,
    warmup_from=0.01,
    smoothing=0,
    triplet_weight=1.0,
    margin=0,
    first_branch=0.5,
    augment=("random_flip", "pad_crop", "pixel_erasing=0.5"),
    eval_every=10,
)

# Pretraining. A batch is `people` images. "imagenet": Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677,
# their baseline for ResNet-50, 76.4 top-1 in the original architecture; norms decay here as well, as in `build_optimizer`.
# Its command: `python -m reidlib.batch pretrain -p recipe imagenet -p model resnet50 -p dataset imagenet`.
CLASS_RECIPES: dict[str, Recipe] = {
    "toy": Recipe(height=128, width=64, epochs=8, people=64, images=1, pk=False, augment=("random_flip",)),
    "imagenet": Recipe(
        height=224,
        width=224,
        epochs=90,
        people=256,
        images=1,
        pk=False,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(30, 60, 80),
        warmup=0,
        smoothing=0,
        augment=("random_flip",),
        eval_every=1,
    ),
}


def class_recipe(name: str, values: Mapping[str, object] | None = None) -> Recipe:
    """The recipe `name` of `CLASS_RECIPES`, with the settings that stand in `values` and are not None."""
    if name not in CLASS_RECIPES:
        raise unknown_name("recipe for pretraining", name, CLASS_RECIPES)
    return CLASS_RECIPES[name].having(values or {})
