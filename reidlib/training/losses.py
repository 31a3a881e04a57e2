"""Losses of a training step, in float32 whatever the network computed in, over the one output contract.

Label smoothing: Szegedy et al., CVPR 2016. Focal: Lin et al., ICCV 2017. Margins on a classifier's cosines: ArcFace,
Deng et al., CVPR 2019; CosFace, Wang et al., CVPR 2018; circle, Sun et al., CVPR 2020. Batch-hard triplet: Hermans et
al., 2017, with the margin of the strong baseline (Luo et al., 2019); weighted: AGW (Ye et al., TPAMI 2021). Center: Wen
et al., ECCV 2016. Orthogonality: ABD-Net (Chen et al., ICCV 2019). Circle loss of pairs: pytorch-metric-learning's.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.errors import unknown_name
from reidlib.seeds import seeded, torch_generator_for
from reidlib.training.memory import ClusterMemory
from reidlib.training.prompts import ImageToText, Prompts
from reidlib.training.recipes import Recipe
from reidlib.training.refinement import PartHeads, classifiers, refined

if TYPE_CHECKING:
    from reidlib.models.wirings import ReIDModel


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1, focal: float = 0.0) -> Tensor:
    """Mean cross entropy of logits (B, C) against labels (B,), with `smoothing` spread over all C classes.

    `focal` > 0 weighs each image by (1 - probability of its own class) to that power.
    """
    each = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
    if focal:
        own = logits.float().log_softmax(1).gather(1, labels[:, None])[:, 0]
        each = each * (1 - own.exp()).clamp(min=0) ** focal
    return each.mean()


def margin_cosines(cosines: Tensor, labels: Tensor, kind: str, margin: float) -> Tensor:
    """Cosines (B, C) between embeddings and classes, made harder by `margin` for each image's own class.

    "arcface" widens the angle, "cosface" lowers the cosine; "circle" does that to all classes, each by a distance of
    its own from where it should be. Times a scale, they are the logits of a cross entropy.
    """
    x = cosines.float()
    own = labels[:, None] == torch.arange(x.shape[1], device=x.device)
    if kind == "cosface":
        return torch.where(own, x - margin, x)
    if kind == "arcface":
        angle = x.clamp(-1 + 1e-7, 1 - 1e-7).acos()
        # Beyond a straight angle the cosine would rise again: there it goes on falling with the cosine itself.
        wider = torch.where(angle <= math.pi - margin, (angle + margin).cos(), x - margin * math.sin(margin))
        return torch.where(own, wider, x)
    near, far = (1 + margin - x).detach().clamp(min=0), (x + margin).detach().clamp(min=0)
    return torch.where(own, near * (x - (1 - margin)), far * (x - margin))


def distances(x: Tensor) -> Tensor:
    """Euclidean, (B, D) to (B, B), in float32."""
    x = x.float()
    squared = x.square().sum(1)
    return (squared[:, None] + squared - 2 * x @ x.T).clamp(min=1e-12).sqrt()  # clamped: sqrt'(0) = inf


def triplet(embeddings: Tensor, labels: Tensor, margin: float = 0.3, mining: str = "hard") -> Tensor:
    """Each image against a positive and a negative of its batch, by Euclidean distance; mean over B.

    embeddings (B, D), labels (B,). mining="hard": the farthest positive and the nearest negative; "weighted": the mean
    of all positives, weighed by the softmax of their distance, and of all negatives, by that of its opposite. `margin`
    0 is the soft margin, log(1 + exp(·)). An anchor alone with its label, or in a batch of one label, has no triplet
    and is left out; without any triplet the loss is 0. The weighted positives include the anchor itself, at distance 0,
    as in AGW's code.
    """
    d = distances(embeddings)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    counts = positive.any(1) & ~same.all(1)
    if mining == "weighted":
        near, far = (_weighted(d, mask, sign) for mask, sign in ((~same, -1), (same, 1)))
    else:
        near, far = d.masked_fill(same, torch.inf).amin(1), d.masked_fill(~positive, 0).amax(1)
    # An anchor that does not count may hold an infinity: replace it before the loss, or its gradient would be NaN.
    gap = torch.where(counts, far - near, 0)
    loss = F.relu(gap + margin) if margin else F.softplus(gap)
    return (loss * counts).sum() / counts.sum().clamp(min=1)


def _weighted(d: Tensor, mask: Tensor, sign: int) -> Tensor:
    weights = (sign * d).masked_fill(~mask, -torch.inf).softmax(1).nan_to_num()  # a row without any has none
    return (weights * d).sum(1)


def soft_triplet(embeddings: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of "the nearest negative is farther than the farthest positive" with a teacher's probability of it.

    Both probabilities are sigmoids of the difference of the two distances; the teacher judges the same three images.
    Ge, Chen, Li, "Mutual Mean-Teaching", ICLR 2020. Where `triplet` leaves an anchor out, this does.

    Args:
        embeddings: (B, D).
        labels: (B,).
        teacher: (B, E), of the same images.
    """
    d, same = distances(embeddings), labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    counts = positive.any(1) & ~same.all(1)
    near, far = d.masked_fill(same, torch.inf).argmin(1), d.masked_fill(~positive, 0).argmax(1)

    def gap(of: Tensor) -> Tensor:
        return (of.gather(1, near[:, None]) - of.gather(1, far[:, None]))[:, 0]

    loss = F.binary_cross_entropy_with_logits(gap(d), gap(distances(teacher)).sigmoid(), reduction="none")
    return (loss * counts).sum() / counts.sum().clamp(min=1)


def center(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Mean squared distance of embeddings (B, D) to the center of their class, of centers (C, D)."""
    return (embeddings.float() - centers[labels]).square().sum(1).clamp(1e-12, 1e12).mean()


def eigenvalue_spread(rows: Tensor, draw: Callable[..., Tensor] = torch.randn, steps: int = 1) -> Tensor:
    """How far the rows of (..., N, M) are from orthogonal: largest less smallest eigenvalue of their (N, N) products.

    Both are estimated from a vector that is drawn by `draw(N, 1)`, one for all, after `steps` multiplications, and are
    too close together; ABD-Net makes one.
    """
    rows = rows.float()

    def products(x: Tensor) -> Tensor:
        return rows @ (rows.mT @ x)

    largest = _eigenvalue(products, draw(rows.shape[-2], 1, device=rows.device), steps)
    start = draw(rows.shape[-2], 1, device=rows.device)
    return -_eigenvalue(lambda x: products(x) - largest[..., None, None] * x, start, steps)


def _eigenvalue(matrix: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """The eigenvalue farthest from 0 of what multiplies by `matrix`, by power iteration and Rayleigh's quotient."""
    for _ in range(steps):
        x = matrix(x)
        x = x / x.norm(dim=-2, keepdim=True).clamp(min=1e-30).detach()  # the quotient does not see the length
    return (x * matrix(x)).sum((-2, -1)) / x.square().sum((-2, -1)).clamp(min=1e-30)


def weight_spread(convolutions: Sequence[nn.Conv2d]) -> Tensor:
    """ABD-Net's penalty on weights: for each convolution 10 × the squared spread of its filters, summed."""
    return reduce(torch.add, (10 * eigenvalue_spread(c.weight.flatten(1), torch.rand).square() for c in convolutions))


def feature_spread(maps: Sequence[Tensor]) -> Tensor:
    """ABD-Net's penalty on maps (B, C, h, w): for each the spread of its channels, as in a batch of 32, summed."""
    return reduce(torch.add, (32 * eigenvalue_spread(x.flatten(2)).mean() for x in maps))


def supervised_contrastive(x: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy of who else in the batch shows the same person, by the cosines of embeddings (B, D).

    Averaged over the others of the same person, then over images that have any; 0 without one. Khosla et al., NeurIPS
    2020.
    """
    unit = F.normalize(x.float(), dim=1)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    logits = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    same = (labels[:, None] == labels) & ~itself
    count = same.sum(1)
    each = -torch.where(same, logits.log_softmax(1), 0).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


def _of_library(name: str, *, mining: float | None = None, **settings: Any) -> Callable[[Any, Tensor], Tensor]:
    """A loss of pytorch-metric-learning, averaged over the embeddings of all branches.

    `mining`: the epsilon of its multi-similarity miner, which then chooses the pairs; None for all pairs.
    """

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        from pytorch_metric_learning import losses, miners

        one = getattr(losses, name)(**settings)
        miner = None if mining is None else miners.MultiSimilarityMiner(epsilon=mining)
        xs = [x.float() for x in outputs.embeddings]
        return torch.stack([one(x, labels, miner(x, labels) if miner else None) for x in xs]).mean()

    return loss


# Further losses, by the name that `losses` of a recipe takes. `loss(outputs, labels)` gives a tensor of shape () from
# `outputs.logits` and `outputs.embeddings` (a list each, one tensor per branch) and labels (B,). A class is built with
# the model first, and with `recipe=` if it has that parameter; the parameters of such a module are trained. Where a
# stage of training begins with it, its method `begin(before)`, if it has one, gets the modules of the stage before.
LOSSES: dict[str, Callable[..., Any]] = {
    "multi_similarity": _of_library("MultiSimilarityLoss"),  # Wang et al., CVPR 2019
    # The paper's, with its mining of pairs, as LightMBN sets it.
    "mined_multi_similarity": _of_library("MultiSimilarityLoss", mining=0.7),
    "supervised_contrastive": lambda outputs, labels: torch.stack(
        [supervised_contrastive(x, labels) for x in outputs.embeddings]
    ).mean(),
    "ntxent": _of_library("NTXentLoss"),  # Chen et al., ICML 2020
    "prompts": Prompts,  # Li, Sun, Li: "CLIP-ReID", AAAI 2023: its first stage
    "image_to_text": ImageToText,  # and its second
}


def named_losses(entries: Sequence[str]) -> dict[str, float]:
    """Read entries of a recipe's `losses`: "name" or "name=weight", the weight 1 unless given.

    Raises:
        ValueError: A name is unknown or given twice, or a weight is not above 0.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        if name not in LOSSES:
            raise unknown_name("loss", name, LOSSES)
        try:
            weight = float(text or 1)
        except ValueError:
            weight = 0.0
        if not 0 < weight < math.inf or name in weights:
            raise ValueError(f"losses: {entry!r} must be name=weight, with a weight above 0, each name once")
        weights[name] = weight
    return weights


class Criterion(nn.Module):
    """What a recipe minimises: `criterion(outputs, labels)` is the loss (), and its parts by name, detached.

    Each loss is averaged over the branches that it applies to. State that a loss learns lies in this module, and so in
    the checkpoint. Raises ValueError on building where the model lacks what the recipe asks of it.
    """

    def __init__(self, recipe: Recipe, model: "ReIDModel") -> None:
        super().__init__()
        self.recipe, self.epoch = recipe, 1
        asked = (recipe.height, recipe.width)
        if recipe.height and asked != tuple(model.input_size):
            size = "{} × {}".format(*model.input_size)
            raise ValueError(f"the recipe wants {asked[0]} × {asked[1]} pixels, {model.name} was built for {size}")
        outputs = model.output_shapes()
        self._check(outputs, model)
        self.scale = _cosine_scale(model)
        # In a list of its own: these are the model's parameters, not the criterion's.
        self.convolutions = [list(_in_a_row(model.network.backbone)) if recipe.orthogonal_weights else []]
        self.centers = nn.ParameterList()
        if recipe.center_weight:
            generator = torch_generator_for(recipe.seed, "centers")
            for x in outputs.embeddings:
                self.centers.append(nn.Parameter(torch.randn(model.num_classes or 0, x.shape[1], generator=generator)))
        self.further = {name: (weight, LOSSES[name]) for name, weight in named_losses(recipe.losses).items()}
        self.learned = nn.ModuleDict()  # further losses with parameters or other state
        for name, (weight, loss) in self.further.items():
            if isinstance(loss, type):
                takes_recipe = "recipe" in inspect.signature(loss).parameters
                self.learned[name] = loss(model, recipe=recipe) if takes_recipe else loss(model)
                self.further[name] = weight, self.learned[name]
        if recipe.parts:
            with seeded(recipe.seed, "parts"):
                self.learned["parts"] = PartHeads(model, recipe.parts)
        self.classes: int | None = None  # clusters of the epoch, the first of the classifiers' scores; None: all
        self.memory: list[ClusterMemory] = []  # in a list: it is the epoch's, not a part of this module
        self.source_rows = 0  # of the memory, in front
        self.pairs = None
        if recipe.circle_weight:
            from pytorch_metric_learning.losses import CircleLoss

            self.pairs = CircleLoss(m=recipe.circle_margin, gamma=recipe.circle_scale)

    def _check(self, outputs: Any, model: "ReIDModel") -> None:
        recipe = self.recipe
        lacks = {
            "cross_entropy_weight": (not outputs.logits, "has no classifier: build it with num_classes"),
            "clusters": (
                {c.in_features for c in classifiers(model)} != {model.feature_dim},
                "classifies another feature than it ranks by: use a model such as resnet50_bot",
            ),
            "center_weight": (not model.num_classes, "was built without num_classes"),
            "orthogonal_features": (not outputs.maps, "has no attentive maps: use an ABD model"),
        }
        for setting, (lacking, what) in lacks.items():
            if getattr(recipe, setting) and lacking:
                raise ValueError(f"{setting}={getattr(recipe, setting)}, but {model.name} {what}, or set it to 0")
        if recipe.softmax != "plain" and not _cosine_scale(model):
            raise ValueError(
                f"softmax={recipe.softmax!r} needs a classifier of cosines, and {model.name} has none: "
                "use a model such as sbs_R50_fastreid, or softmax='plain'"
            )
        if recipe.orthogonal_weights and not any(_in_a_row(model.network.backbone)):
            raise ValueError(f"orthogonal_weights needs a trunk that begins with a convolution, unlike {model.name}'s")

    @torch.no_grad()
    def begin(self, before: "Criterion | None") -> None:
        """Called where a stage of the training begins, with the criterion of the stage before it, None for the first.

        What has the same name and shape in both goes on; a further loss is told by its `begin`.
        """
        own, learned = self.state_dict(), before.state_dict() if before else {}
        self.load_state_dict(own | {k: v for k, v in learned.items() if k in own and v.shape == own[k].shape})
        for module in self.learned.values():
            if hasattr(module, "begin"):
                module.begin(dict(before.learned.items()) if before else {})

    def forward(
        self, outputs: Any, labels: Tensor, teacher: Any = None, agreement: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss.

        Args:
            outputs: Of the network in training.
            labels: (B,).
            teacher: What the averaged weights give for the same images, for soft_cross_entropy and soft_triplet.
            agreement: (B, parts), how far each part's neighbours are those of the whole image.
        """
        with torch.autocast(labels.device.type, enabled=False):
            found = [
                *self._parts(outputs, labels, agreement),
                *(self._soft(outputs, labels, teacher) if teacher else ()),
            ]
        loss = torch.stack([weight * value for _, weight, value in found]).sum()
        return loss, {name: value.detach() for name, _, value in found}

    def _parts(self, outputs: Any, labels: Tensor, agreement: Tensor | None) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of each loss that has a weight."""
        r, xs = self.recipe, outputs.embeddings
        if r.cross_entropy_weight:
            if agreement is None:
                branches = [self._classify(x, labels) for x in outputs.logits]
            else:
                late = self.epoch > r.parts_after
                targets = refined(outputs.logits, labels, agreement, r.part_labels, None if late else r.smoothing)
                branches = [F.cross_entropy(x.float(), t) for x, t in zip(outputs.logits, targets, strict=True)]
            yield "cross_entropy", r.cross_entropy_weight * (1 - r.soft_cross_entropy), self._mean(branches)
        if r.triplet_weight:
            each = [triplet(x, labels, r.margin, r.mining) for x in xs]
            yield "triplet", r.triplet_weight * (1 - r.soft_triplet), self._mean(each)
        if r.center_weight:
            pairs = zip(xs, self.centers, strict=True)
            yield "center", r.center_weight, self._mean([center(x, labels, centers) for x, centers in pairs])
        if self.pairs is not None:
            yield "circle", r.circle_weight, self._mean([self.pairs(x.float(), labels) for x in xs])
        if r.contrast_weight:
            yield "contrast", r.contrast_weight, self._contrast(xs[0], labels)
        if r.orthogonal_weights:
            yield "orthogonal_weights", r.orthogonal_weights, weight_spread(self.convolutions[0])
        for name, (weight, loss) in self.further.items():
            yield name, weight, _checked(name, loss(outputs, labels))
        if r.orthogonal_features and self.epoch > r.orthogonal_features_after:
            yield "orthogonal_features", r.orthogonal_features, feature_spread(outputs.maps)

    def _soft(self, outputs: Any, labels: Tensor, teacher: Any) -> Iterator[tuple[str, float, Tensor]]:
        """The losses against a teacher; of two networks each learns from the other's."""
        r = self.recipe

        def pairs(own: list[Tensor], taught: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
            half = len(taught) // 2 if r.mutual else 0
            return zip(own, taught[half:] + taught[:half], strict=True)

        if weight := r.cross_entropy_weight * r.soft_cross_entropy:
            each = [F.cross_entropy(x.float(), y.float().softmax(1)) for x, y in pairs(outputs.logits, teacher.logits)]
            yield "soft_cross_entropy", weight, self._mean(each)
        if weight := r.triplet_weight * r.soft_triplet:
            each = [soft_triplet(x, labels, y) for x, y in pairs(outputs.embeddings, teacher.embeddings)]
            yield "soft_triplet", weight, self._mean(each)

    def _classify(self, logits: Tensor, labels: Tensor) -> Tensor:
        r = self.recipe
        if r.softmax != "plain":
            logits = r.softmax_scale * margin_cosines(logits.float() / self.scale, labels, r.softmax, r.softmax_margin)
        return cross_entropy(logits, labels, r.smoothing, r.focal)

    def _contrast(self, feats: Tensor, rows: Tensor) -> Tensor:
        """The loss of the target's images, and that of the source's, each a mean; SpCL has them with equal weight."""
        (memory,), source = self.memory, rows < self.source_rows
        parts = [which for which in (source, ~source) if which.any()]
        return torch.stack([memory(feats[which], rows[which]) for which in parts]).sum()

    def _mean(self, branches: list[Tensor]) -> Tensor:
        values, share = torch.stack(branches), self.recipe.first_branch
        if not share or len(values) == 1:
            return values.mean()
        return share * values[0] + (1 - share) * values[1:].mean()

    @torch.no_grad()
    def update(self) -> None:
        """Called after each step of the optimizer: centers and memory follow the images, each at its own rate."""
        for memory in self.memory:
            memory.step()
        for centers in self.centers:
            if centers.grad is not None:
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    torch.distributed.all_reduce(centers.grad)
                    centers.grad /= torch.distributed.get_world_size()
                centers -= self.recipe.center_lr / self.recipe.center_weight * centers.grad
                centers.grad = None


def _checked(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        what = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the loss {name} gave {what}: it must give one number, a float tensor of shape ()")
    return value.float().reshape(())


def _cosine_scale(model: nn.Module) -> float:
    """What the classifiers multiply their cosines by; 0 where their scores are not cosines."""
    classifiers = (getattr(module, "classifier", None) for module in model.modules())
    return next((c.scale for c in classifiers if hasattr(c, "scale")), 0.0)


def _in_a_row(module: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions that stand in a row, not within a block.

    ABD-Net's paper penalises all of a trunk's, its code these: of a ResNet, the first.
    """
    for child in module.children():
        if type(child) is nn.Conv2d:
            yield child
        elif isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _in_a_row(child)
