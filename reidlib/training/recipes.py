"""What a training run does, as data: one frozen declaration, checked before anything starts, and the published ones.

A recipe is independent of the model, which declares what belongs to the network: last stride, neck, the feature that is
ranked by. Each model of the zoo names the recipe that it was published with.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from reidlib.errors import unknown_name
from reidlib.training.settings import check_limits, setting

METHODS = ("dbscan", "hdbscan", "infomap")  # of clusters.py
UPDATES = ("sequential", "hard", "batch_mean")  # of memory.py
# Settings of a whole training, which a stage cannot have differently.
OF_ALL_STAGES = ("stages", "height", "width", "interpolation", "bn_group", "domain_bn", "patience", "clusters")
OF_ALL_STAGES += ("contrast_weight", "mutual", "eval_every", "keep", "metric", "seed")


@dataclass(frozen=True)
class Recipe:
    """Settings of one training; the defaults train a small network from random weights.

    Lengths are in epochs; a batch holds `people` × `images` images in each process. The default of a new field must
    change nothing: a checkpoint that was made before the field existed resumes with it.

    A training in several stages has its earlier ones in `stages`, and the settings of the last as its own. Warm-up,
    milestones and other lengths count from the first epoch of their stage; `epochs` are those of all stages together.
    Only the last stage is evaluated. An earlier one hands its last weights on, and what losses of the same name have
    learned.

    Raises:
        ValueError: On building, for a value that makes no sense or contradicts another, naming it.
    """

    height: int = setting(0, "height that images are resized to, in pixels; 0: as the model was published")
    width: int = setting(0, "width, in pixels")
    interpolation: str = setting("bilinear", "how images are resized", choices=("bilinear", "bicubic"))
    epochs: int = setting(8, "passes over the training set", least=1)
    stages: tuple[dict, ...] = setting((), "earlier stages: settings in place of the last's, with epochs of their own")
    trained: str = setting(
        "all", "what is trained: all, or what losses learn, on features extracted once", choices=("all", "losses")
    )
    people: int = setting(8, "P: different people in a batch", least=1)
    images: int = setting(4, "K: images of each person", least=1)
    frames: int = setting(
        1, "T: how many of the K images are of one tracklet, whose scores and features are averaged", least=1
    )
    pk: bool = setting(True, "false: batches of people × images drawn from all images; no triplets then")
    optimizer: str = setting("adam", "optimizer", choices=("adam", "adamw", "amsgrad", "sgd"))
    lr: float = setting(3e-3, "highest learning rate", above=0)
    backbone_lr: float = setting(1.0, "learning rate of all but the heads, times lr")
    bias_lr: float = setting(1.0, "learning rate of biases, times lr")
    weight_decay: float = setting(5e-4, "L2 penalty")
    bias_decay: float = setting(1.0, "L2 penalty of biases, times weight_decay")
    schedule: str = setting("cosine", "learning rate schedule", choices=("cosine", "steps"))
    delay: float = setting(0.0, "epochs before the cosine begins to fall")
    final: float = setting(0.0, "last learning rate divided by the highest, of the cosine", most=1)
    milestones: tuple[int, ...] = setting((), "epochs after which steps multiplies the rate by gamma")
    gamma: float = setting(0.1, "factor of the learning rate at each milestone")
    warmup: float = setting(0.5, "epochs in which the learning rate rises linearly")
    warmup_from: float = setting(0.1, "first learning rate of the warm-up divided by lr", most=1)
    freeze: int = setting(0, "first epochs in which only open_layers are trained")
    # norms elsewhere go on adapting under "heads"; under "classifiers" nothing else moves
    open_layers: str = setting("heads", "what is trained in frozen epochs", choices=("heads", "classifiers"))
    cross_entropy_weight: float = setting(1.0, "weight of the cross entropy; 0 for none, here and below")
    smoothing: float = setting(0.1, "label smoothing of the cross entropy", below=1)
    focal: float = setting(0.0, "exponent of the focal loss; 0: plain cross entropy")
    softmax: str = setting(
        "plain", "margin on a classifier's cosines", choices=("plain", "circle", "arcface", "cosface")
    )
    softmax_margin: float = setting(0.35, "that margin")
    softmax_scale: float = setting(64.0, "scale of these cosines", above=0)
    triplet_weight: float = setting(0.0, "weight of the triplet loss; from random weights it may stall")
    mining: str = setting("hard", "triplets: the hardest, or all pairs weighted", choices=("hard", "weighted"))
    margin: float = setting(0.3, "margin of the triplet loss; 0: the soft margin, log(1 + exp(x))")
    center_weight: float = setting(0.0, "weight of the center loss")
    center_lr: float = setting(0.5, "learning rate of the centers", above=0)
    circle_weight: float = setting(0.0, "weight of the circle loss of pairs")
    circle_margin: float = setting(0.25, "margin of the circle loss")
    circle_scale: float = setting(128.0, "scale of the circle loss", above=0)
    orthogonal_weights: float = setting(0.0, "weight of the penalty on similar convolution filters (ABD)")
    orthogonal_features: float = setting(0.0, "weight of the penalty on similar attention maps (ABD)")
    orthogonal_features_after: int = setting(0, "epochs without that penalty")
    contrast_weight: float = setting(0.0, "weight of the contrast with a memory of clusters; labels are then not read")
    clusters: bool = setting(False, "classify clusters that are found before each epoch; labels are then not read")
    reset_optimizer: bool = setting(False, "forget the optimizer's running averages before each epoch")
    mutual: bool = setting(False, "train two networks, each on a view of its own, taught by the other's average (MMT)")
    soft_cross_entropy: float = setting(0.0, "share of the cross entropy against what averaged weights predict", most=1)
    soft_triplet: float = setting(0.0, "share of the triplet loss against the order that averaged weights see", most=1)
    parts: int = setting(0, "horizontal stripes with classifiers of their own, which refine labels (PPLR); 0: none")
    part_labels: float = setting(0.5, "share of what the parts predict in the labels of the whole image", most=1)
    part_neighbours: int = setting(20, "neighbours by which a part agrees with the whole image", least=1)
    parts_after: int = setting(0, "epochs before parts smooth their labels by that agreement")
    memory: str = setting(
        "cluster", "rows of that memory: of each cluster, or of each image", choices=("cluster", "image")
    )
    memory_momentum: float = setting(0.1, "weight of the old row when an image moves it", most=1)
    memory_update: str = setting(
        "sequential", "how a batch moves rows: each image, the least similar, or their mean", choices=UPDATES
    )
    temperature: float = setting(0.05, "temperature of the contrast", above=0)
    clustering: str = setting("dbscan", "how clusters are found before each epoch", choices=METHODS)
    eps: float = setting(0.6, "largest Jaccard distance of neighbours in a cluster", above=0, most=1)
    min_samples: int = setting(4, "neighbours, itself included, that make an image the core of a cluster", least=1)
    reliable: float = setting(0.0, "SpCL's test: dissolve clusters that change within eps ± this; 0: none")
    k1: int = setting(30, "neighbours that the Jaccard distance is made of", least=1)
    k2: int = setting(6, "neighbours that its encodings are averaged over", least=1)
    camera: tuple[int, ...] = setting(
        (), "neighbours by camera: k1 of the same and of others, k2 of the same and of others (CA-Jaccard)"
    )
    camera_batches: bool = setting(True, "take images of a cluster from its cameras in turn")
    steps: int = setting(0, "batches in an epoch of clusters; 0: as many as show each image once")
    bn_group: int = setting(0, "images that a batch norm sees together, as if on a GPU of their own; 0: all")
    domain_bn: bool = setting(False, "batch norms of its own for the source, from source to target")
    check_clusters: bool = setting(
        True, "stop where clusters are too few, too large or too many images have none", may_change=True
    )
    losses: tuple[str, ...] = setting((), "further losses of reidlib.training.losses.LOSSES, as name=weight")
    text_weights: str = setting("", "file of CLIP with its text encoder, for the loss prompts")
    first_branch: float = setting(0.0, "share of a model's first branch in each loss; 0: all branches alike", most=1)
    augment: tuple[str, ...] = setting(("random_flip", "pad_crop"), "augmentations in order, name or name=probability")
    accumulate: int = setting(1, "batches per step of the optimizer", least=1)
    clip: float = setting(0.0, "largest norm of the gradient of all weights together; 0: not clipped")
    ema: float = setting(0.0, "decay per step of averaged weights, which are then evaluated and kept; 0: none", below=1)
    patience: int = setting(
        0, "evaluations in a row without a better score after which training ends; 0: never", may_change=True
    )
    eval_every: int = setting(4, "epochs between evaluations; the best weights are kept", least=1, may_change=True)
    keep: str = setting("best", "epoch whose weights are kept and reported", choices=("best", "last"))
    metric: str = setting("cosine", "distance to rank by", choices=("cosine", "euclidean"))
    seed: int = setting(0, "seed of initial weights, batches, augmentation and dropout")

    def __post_init__(self) -> None:
        check_limits(self)
        stages = ({k: tuple(v) if isinstance(v, list) else v for k, v in stage.items()} for stage in self.stages)
        object.__setattr__(self, "stages", tuple(stages))  # as params.json has them
        if bool(self.height) != bool(self.width):
            raise ValueError(f"height and width go together, got {self.height} × {self.width}: give both, or neither")
        self._check_losses()
        if not self.stages:
            self._check_lengths()
        elif self.finds_clusters or self.mutual:
            raise ValueError("clusters and two networks are not trained in stages: set stages=[]")
        else:
            self.in_stages()  # which are checked each

    def _check_losses(self) -> None:
        weights = (self.cross_entropy_weight, self.triplet_weight, self.circle_weight, self.contrast_weight)
        if not (any(weights) or self.losses):
            raise ValueError(
                "nothing to learn from: set cross_entropy_weight, triplet_weight, circle_weight, contrast_weight "
                "or losses"
            )
        if self.contrast_weight and (any(weights[:-1]) or self.center_weight or self.losses):
            raise ValueError("contrast_weight trains without labels: set the weights of all other losses to 0")
        if self.finds_clusters and not self.pk:
            raise ValueError("learning from clusters needs batches of clusters: set pk=True")
        if self.clusters and (self.contrast_weight or self.center_weight or self.memory == "image"):
            raise ValueError(
                "clusters are new classes in each epoch: set contrast_weight=0, center_weight=0 and memory='cluster'"
            )
        if (self.mutual or self.soft_cross_entropy or self.soft_triplet) and not self.ema:
            raise ValueError("mutual, soft_cross_entropy and soft_triplet learn from averaged weights: set ema=0.999")
        if self.parts and (not self.clusters or self.mutual or self.focal or self.softmax != "plain"):
            raise ValueError(
                "parts refine the labels of clusters in a plain cross entropy of one network: set clusters=True"
            )
        taught = self.finds_clusters or self.mutual or self.soft_cross_entropy or self.soft_triplet
        if self.frames > 1 and (taught or not self.pk or self.images % self.frames):
            raise ValueError(
                f"frames={self.frames} needs labels, PK batches and images as a multiple, got images={self.images}"
            )
        if len(self.camera) not in (0, 4):
            raise ValueError(f"camera is four numbers or none, got {self.camera}")
        if self.domain_bn and not self.finds_clusters:
            raise ValueError("domain_bn is for clusters with a source: set domain_bn=False")
        if self.freeze and not self.cross_entropy_weight:
            raise ValueError("freeze needs a cross entropy for what stays open: set freeze=0, or its weight above 0")
        for loss in ("triplet", "circle"):
            used = getattr(self, f"{loss}_weight") > 0
            if used and not self.pk:
                raise ValueError(f"the {loss} loss needs PK batches: set pk=True, or {loss}_weight=0")
            if used and min(self.people, images := self.images // self.frames) < 2:
                what = "images" if self.frames == 1 else "tracklets"
                raise ValueError(
                    f"the {loss} loss needs at least 2 people × 2 {what} in a batch, got {self.people} × {images}"
                )

    def _check_lengths(self) -> None:
        milestones = self.milestones or (self.epochs > 1) * (self.epochs,)  # a single epoch has none
        if self.schedule == "steps" and any(milestone >= self.epochs for milestone in milestones):
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
                raise ValueError(f"{field} takes {getattr(self, field):g} of {self.epochs} epochs: make it shorter")

    @property
    def finds_clusters(self) -> bool:
        """Whether clusters stand in for labels."""
        return self.clusters or self.contrast_weight > 0

    def rate(self, progress: float) -> float:
        """The learning rate after `progress` epochs (a fraction within an epoch), as a share of `lr`.

        Warm-up multiplies whatever the schedule says.
        """
        warm = min(1.0, self.warmup_from + (1 - self.warmup_from) * progress / self.warmup) if self.warmup else 1.0
        if self.schedule == "steps":
            return warm * self.gamma ** sum(progress >= m for m in self.milestones)
        fallen = min(1.0, max(0.0, progress - self.delay) / (self.epochs - self.delay))
        return warm * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fallen)))

    def in_stages(self) -> list["Recipe"]:
        """The recipe of each stage, with the epochs of that stage alone; this one alone if there are no others.

        Raises:
            ValueError: A stage has settings that make no sense, or the last is left without an epoch.
        """
        if not self.stages:
            return [self]
        for number, values in enumerate(self.stages, start=1):
            for name in values:
                if name not in _STAGE_SETTINGS:
                    raise unknown_name(f"setting of stage {number}", name, _STAGE_SETTINGS)
            if not isinstance(values.get("epochs"), int):
                raise ValueError(f"stage {number} of the recipe has no number of epochs of its own: give it some")
        left = self.epochs - sum(values["epochs"] for values in self.stages)
        if left < 1:
            raise ValueError(
                f"the stages before the last take {self.epochs - left} of {self.epochs} epochs: raise epochs, or set "
                "`scaled` in its place"
            )
        last, found = replace(self, stages=(), epochs=left), []
        for number, values in enumerate(self.stages, start=1):
            try:
                found.append(replace(last, **values))
            except ValueError as error:
                raise ValueError(f"stage {number}: {error}") from None
        return [*found, last]

    def having(self, values: Mapping[str, object]) -> "Recipe":
        """This recipe with the settings of `values` that are not None in place of its own."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def changed(self, other: "Recipe") -> list[str]:
        """The names of the settings in which this recipe differs from `other`."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def scaled(self, epochs: int, batch: int = 32) -> "Recipe":
        """Scale epochs, warm-up, milestones and batch size to a run of `epochs` epochs, for small data.

        Args:
            epochs: Length of the scaled recipe.
            batch: Most images in a batch; the larger of people and images is halved until they fit. Images are as
                large as the model was published with.
        """
        if epochs < 1:
            raise ValueError(f"scaled must be at least 1 epoch, got {epochs}")
        if self.stages:
            return self._scaled_stages(epochs, batch)
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
            steps=0,
            bn_group=min(self.bn_group, batch // 2),
            freeze=round(self.freeze * share),
            parts_after=round(self.parts_after * share),
            orthogonal_features_after=round(self.orthogonal_features_after * share),
            eval_every=max(1, min(self.eval_every, epochs // 2)),
        )

    def _scaled_stages(self, epochs: int, batch: int) -> "Recipe":
        *stages, last = self.in_stages()
        if epochs <= len(stages):
            raise ValueError(f"scaled must be at least {len(stages) + 1} epochs, one for each stage, got {epochs}")
        left, rest, scaled = epochs, self.epochs, []
        for number, stage in enumerate(stages):
            most = left - (len(stages) - number)  # leaves an epoch for each stage that follows
            scaled.append(stage.scaled(min(most, max(1, round(left * stage.epochs / rest))), batch))
            left, rest = left - scaled[-1].epochs, rest - stage.epochs
        own = last.scaled(left, batch)
        differing = [{name: getattr(s, name) for name in dict.fromkeys(["epochs", *s.changed(own)])} for s in scaled]
        shared = [{k: v for k, v in values.items() if k in _STAGE_SETTINGS} for values in differing]
        return replace(own, epochs=epochs, stages=tuple(shared))


_STAGE_SETTINGS = [f.name for f in fields(Recipe) if f.name not in OF_ALL_STAGES]


# The published ones. Results are Rank-1 / mAP on Market-1501, single query, without re-ranking, of a trunk that begins
# with ImageNet's weights. The command is `python -m reidlib.batch train -p dataset market1501 -p init imagenet` with
# the recipe's own arguments after it.
# Ours, for trying things out: a minute from random weights, on the few people of any drawn dataset.
RECIPES: dict[str, Recipe] = {
    "toy": Recipe(
        height=128,
        width=64,
        epochs=5,
        people=12,
        images=2,
        optimizer="adamw",
        lr=4e-3,
        weight_decay=0.05,
        augment=("random_flip",),
    )
}

# Ours, for `make demo`: a small network from random weights in three minutes. Its scores, and what else was tried, are
# in benchmarks/demo.md. So short a training is decided by how soon the loss begins to fall: sooner in batches of
# 16 × 2 images than of 8 × 4, and much sooner without pad_crop, whose shifts the drawn boxes have already. With some
# supervised contrast, small first steps and clipped gradients it does so alike on all processors and from all seeds.
RECIPES["demo"] = replace(
    RECIPES["toy"], epochs=12, people=16, losses=("supervised_contrastive=0.1",), clip=1.0, warmup=1.0
)

# Ours, for the weights "drawn" in the package (`make drawn-weights`): goes on from the demo's network, since cross
# entropy over so many people, in images so hard, stalls from random weights. What was tried is in
# benchmarks/drawn_weights.md.
RECIPES["drawn"] = replace(
    RECIPES["toy"],
    epochs=16,
    people=16,
    images=4,
    lr=2e-3,
    warmup=0.3,
    cross_entropy_weight=0.5,
    losses=("supervised_contrastive",),
    ema=0.995,
    augment=("random_camera", "random_flip", "random_crop", "random_erasing=0.2", "pixel_erasing=0.1"),
    eval_every=1,
)

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
# osnet_x1_0: 94.2 / 82.6. Across datasets the zoo's OSNets were trained with -p augment random_flip,color_jitter.
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
# flipped images, which is not done here.
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
RECIPES["fastreid_bot"] = replace(
    RECIPES["bot"], interpolation="bicubic", milestones=(40, 90), warmup_from=0.1, center_weight=0
)
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

# TransReID-SSL: Luo et al., arXiv 2111.12084. damo-cv/TransReID-SSL, transreid_pytorch/configs; PersonViT's commands
# are the same. Its test images are resized bilinearly, here a run resizes all images alike. The trunk begins with its
# own pretraining on LUPerson, `-p init luperson`, as those of the next two.
# transreid_ssl_vit_small: 95.8 / 91.2; personvit_vit_base: 97.6 / 95.0.
#     -p recipe transreid_ssl -p model transreid_ssl_vit_small
RECIPES["transreid_ssl"] = replace(RECIPES["transreid"], interpolation="bicubic", lr=4e-4, warmup=20, first_branch=0.0)
# PASS: Zhu et al., ECCV 2022. CASIA-IVA-Lab/PASS-reID, configs. pass_vit_base_384: 96.9 / 93.3.
#     -p recipe pass -p model pass_vit_base_384
RECIPES["pass"] = RECIPES["transreid_ssl"]
# SOLIDER: Chen et al., CVPR 2023. tinyvision/SOLIDER-REID, run.sh: 8e-4 for solider_swin_tiny.
# solider_swin_base: 96.9 / 93.9.    -p recipe solider -p model solider_swin_base
RECIPES["solider"] = replace(RECIPES["transreid_ssl"], lr=2e-4)

# CLIP-ReID's baseline: Li, Sun, Li, AAAI 2023, arXiv 2211.13977. Syliz517/CLIP-ReID, configs/person/vit_base. It adds
# the losses of two classifiers and three features up, here they are averaged. It prints no figures beside its files.
# For clipreid_baseline_rn50: -p lr 3.5e-4 -p weight_decay 5e-4 -p warmup_from 0.01 -p milestones 40,70 -p epochs 120
#     -p recipe clipreid_baseline -p model clipreid_baseline_vit_b16
RECIPES["clipreid_baseline"] = replace(
    RECIPES["bot"],
    interpolation="bicubic",
    epochs=60,
    lr=5e-6,
    bias_lr=2.0,
    weight_decay=1e-4,
    milestones=(30, 50),
    warmup_from=0.1,
    cross_entropy_weight=2.0,
    triplet_weight=3.0,
    center_weight=0,
    augment=("random_flip", "pad_crop", "pixel_erasing=0.5"),
)

# CLIP-ReID in both stages, configs/person/vit_clipreid: 120 epochs of prompts alone, over features of images that are
# not augmented, then 60 of the image side. `init` and `text_weights` are OpenAI's ViT-B-16.pt. Upstream's last batch of
# an epoch of prompts, which is short, is left out.
# For clipreid_rn50: RN50.pt, -p lr 3.5e-4 -p weight_decay 5e-4 -p warmup_from 0.01 -p milestones 40,70 -p epochs 180
# -p cross_entropy_weight 2.0 and, in stages, epochs 60. It prints no figures beside its files.
#     -p recipe clipreid -p model clipreid_vit_b16 -p init ViT-B-16.pt -p text_weights ViT-B-16.pt
RECIPES["clipreid"] = replace(
    RECIPES["clipreid_baseline"],
    epochs=180,
    cross_entropy_weight=0.5,
    losses=("image_to_text",),
    stages=(
        {
            "epochs": 120,
            "trained": "losses",
            "losses": ("prompts",),
            "cross_entropy_weight": 0.0,
            "triplet_weight": 0.0,
            "people": 64,
            "images": 1,
            "pk": False,
            "lr": 3.5e-4,
            "bias_lr": 1.0,
            "schedule": "cosine",
            "milestones": (),
            "final": 1e-6 / 3.5e-4,
            "warmup": 5.0,
            "warmup_from": 1e-5 / 3.5e-4,
            "augment": (),
        },
    ),
)

# LightMBN: Herzog et al., ICIP 2021, arXiv 2101.10774. jixunbo/LightMBN, the command of its README.
# lmbn_n: 96.3 / 91.5.    -p recipe lightmbn -p model lmbn_n
RECIPES["lightmbn"] = Recipe(
    epochs=130,
    people=6,
    images=8,
    lr=6e-4,
    final=0.001,
    warmup=10,
    cross_entropy_weight=0.5,
    losses=("mined_multi_similarity=0.5",),
    augment=("random_flip", "random_crop", "random_erasing=0.5"),
    eval_every=10,
)

# Without labels: clusters are found before each epoch. All report the last epoch; projects report the best on the test
# set. Their results depend on the images that each GPU's norms saw, here `bn_group`. Evaluated every 10 epochs.
# Cluster-Contrast: Dai et al., ACCV 2022, arXiv 2103.11568. alibaba/cluster-contrast-reid, the commands of its README.
# resnet50_bot: 92.3 / 82.1, with GeM in the project; MSMT17 56.0 / 27.6, with -p steps 400.
#     -p recipe cluster_contrast -p model resnet50_bot
RECIPES["cluster_contrast"] = Recipe(
    interpolation="bicubic",
    epochs=50,
    people=16,
    images=16,
    steps=200,
    lr=3.5e-4,
    schedule="steps",
    milestones=(20, 40),
    warmup=0,
    cross_entropy_weight=0,
    contrast_weight=1.0,
    bn_group=64,
    keep="last",
    augment=("random_flip", "pad_crop", "random_erasing=0.5"),
    eval_every=10,
)
# Its --use-hard, as in the log that it ships, of a ResNet-50 with IBN and GeM: eps 0.4 and 400 iterations.
# resnet50_bot: 94.6 / 87.0.
#     -p recipe cluster_contrast_hard -p model resnet50_bot
RECIPES["cluster_contrast_hard"] = replace(RECIPES["cluster_contrast"], memory_update="hard", eps=0.4, steps=400)

# CA-Jaccard: Chen et al., CVPR 2024. chenyiyuu/CA-Jaccard, its README: 2 and 4 images are averaged (its first epoch has
# 3 and 3, which is not done here), eps 0.4 on Market-1501 and 0.6 on MSMT17, of mAP 42.8. Ranks are not given.
# resnet50_bot: – / 84.8.
#     -p recipe ca_jaccard -p model resnet50_bot
RECIPES["ca_jaccard"] = replace(RECIPES["cluster_contrast"], camera=(5, 20, 2, 4), eps=0.4)

# TransReID-SSL: Luo et al., arXiv 2111.12084. damo-cv/TransReID-SSL, cluster-contrast-reid, the defaults of
# examples/cluster_contrast_train_usl: Cluster-Contrast by SGD, on a transformer that was pretrained on people without
# labels (its weights are not here). Its scores are not among the published tables of this workbook.
# vit_base_transreid: – / –.
#     -p recipe transreid_ssl_usl -p model vit_base_transreid
RECIPES["transreid_ssl_usl"] = replace(
    RECIPES["cluster_contrast"],
    people=64,
    images=4,
    steps=400,
    optimizer="sgd",
    memory_momentum=0.2,
    bn_group=0,
)

# SpCL: Ge et al., NeurIPS 2020, arXiv 2006.02713. yxgeee/SpCL, examples/spcl_train_usl and _uda and its README.
# MSMT17 42.3 / 19.1, with -p steps 800.
# resnet50_bot: 88.1 / 73.1.    -p recipe spcl -p model resnet50_bot
RECIPES["spcl"] = replace(
    RECIPES["cluster_contrast"],
    people=16,
    images=4,
    steps=400,
    memory="image",
    memory_momentum=0.2,
    reliable=0.02,
    bn_group=16,
)
# From a labelled source, half of each batch, whose norms are its own; here from MSMT17.
# resnet50_bot: 89.7 / 77.5.
#     -p recipe spcl_uda -p model resnet50_bot -p source msmt17 -p dataset market1501
RECIPES["spcl_uda"] = replace(RECIPES["spcl"], domain_bn=True)

# MMT: Ge, Chen, Li, "Mutual Mean-Teaching", ICLR 2020, arXiv 2001.01526. open-mmlab/OpenUnReID, tools/MMT/config, by
# MMT's author: one stage, no training on a source before it, a constant rate. Both networks begin with the same weights
# and differ by what they see; there they have GeM. Here the averages' running statistics follow the networks', the
# decay of the averages begins at 0.1, and the first average is kept, not the better of the two.
# resnet50_bot: 88.1 / 74.3.    -p recipe mmt -p model resnet50_bot
# From a source: 92.2 / 80.9 with DukeMTMC-reID's labels.    -p source dukemtmcreid -p domain_bn true
RECIPES["mmt"] = replace(
    RECIPES["cluster_contrast"],
    images=4,
    steps=400,
    bn_group=16,
    schedule="cosine",
    milestones=(),
    final=1.0,
    contrast_weight=0.0,
    clusters=True,
    eps=0.7,
    reset_optimizer=True,
    mutual=True,
    ema=0.999,
    cross_entropy_weight=2.0,  # the losses of both networks are averaged here and summed there
    soft_cross_entropy=0.5,
    triplet_weight=2.0,
    soft_triplet=0.8,
    margin=0.0,
)

# PPLR: Cho et al., "Part-based Pseudo Label Refinement", CVPR 2022, arXiv 2203.14675. yoonkicho/PPLR, the defaults of
# examples/train_pplr. Its triplets see the feature behind the neck, here that before it, as the network declares.
# resnet50_bot: 92.8 / 81.5.    -p recipe pplr -p model resnet50_bot
RECIPES["pplr"] = replace(
    RECIPES["cluster_contrast"],
    height=384,
    width=128,
    images=4,
    steps=400,
    bn_group=16,
    contrast_weight=0.0,
    clusters=True,
    eps=0.5,
    cross_entropy_weight=2.0,  # the whole image's loss and the mean of the parts', of which the mean is taken
    first_branch=0.5,
    parts=3,
    parts_after=5,
    triplet_weight=1.0,
    margin=0.0,
)

# Pretraining. A batch is `people` images. "imagenet": Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677,
# their baseline for ResNet-50, 76.4 top-1 in the original architecture; here norms decay too (`build_optimizer`).
# Its command: `python -m reidlib.batch pretrain -p recipe imagenet -p model resnet50 -p dataset imagenet`.
CLASS_RECIPES: dict[str, Recipe] = {
    "toy": Recipe(height=128, width=64, epochs=4, people=64, images=1, pk=False, augment=("random_flip",)),
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
