"""What refines the labels of clusters: a second network that teaches the first, and parts that agree with the whole.

MMT: Ge, Chen, Li, "Mutual Mean-Teaching", ICLR 2020, arXiv 2001.01526: each of two networks learns what the other's
averaged weights predict. PPLR: Cho et al., "Part-based Pseudo Label Refinement", CVPR 2022, arXiv 2203.14675: stripes
have classifiers, whose predictions refine the label of the whole image as far as their neighbours are the same.

Different here: the two networks are one module, so that the loop, its average and its checkpoint know one; the parts
belong to the training, since nothing is ranked by them.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.evaluation.reranking import neighbours
from reidlib.models.heads import Head, Outputs
from reidlib.models.layers import stripes

if TYPE_CHECKING:
    from reidlib.models.wirings import ReIDModel


class MutualPair(nn.Module):
    """A model and a copy of it, trained side by side.

    In training mode images (2 B, ...) are two views of B images, one for each network, and the outputs of the first
    stand before those of the second. In eval mode it gives the mean of both features, each of length 1.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.first, self.second = model, copy.deepcopy(model)

    def forward(self, images: Tensor, camids: Tensor | None = None) -> Any:
        if not self.training:
            return (F.normalize(self.first(images, camids)) + F.normalize(self.second(images, camids))) / 2
        views = images.chunk(2)
        return Outputs(
            *([*a, *b] for a, b in zip(self.first(views[0], camids), self.second(views[1], camids), strict=True))
        )


class PartHeads(nn.ModuleList):
    """A neck and a classifier for each of `count` stripes of the map that a model's trunk gives.

    Raises:
        ValueError: The model is not a trunk that gives a map and one head with a classifier.
    """

    def __init__(self, model: "ReIDModel", count: int) -> None:
        network = model.network
        if not (
            isinstance(getattr(network, "head", None), Head)
            and isinstance(getattr(network.backbone, "channels", None), int)
        ):
            raise ValueError(
                f"parts={count} needs a trunk with one map and one head, unlike {model.name}: use resnet50_bot"
            )
        super().__init__(Head(network.backbone.channels, model.num_classes, neck="bn") for _ in range(count))
        self.whole = model.feature_dim

    def outputs(self, model: Any, images: Tensor) -> Outputs:
        """What the model gives in training, with the scores of the parts behind its own."""
        x = model.network.backbone(model.normalise(images))
        whole = model.network.head.outputs(x)
        parts = [head.outputs(part).logits[0] for head, part in zip(self, stripes(x, len(self)), strict=True)]
        return whole._replace(logits=[*whole.logits, *parts])


class WithParts(nn.Module):
    """The features of a model and of its parts in a row, each of length 1: (B, D + parts · C)."""

    def __init__(self, model: "ReIDModel", parts: PartHeads) -> None:
        super().__init__()
        self.model, self.parts = model, parts

    def forward(self, images: Tensor, camids: Tensor | None = None) -> Tensor:
        x = self.model.network.backbone(self.model.normalise(images))
        parts = [head.features(part) for head, part in zip(self.parts, stripes(x, len(self.parts)), strict=True)]
        return torch.cat([F.normalize(y) for y in (self.model.network.head.features(x), *parts)], dim=1)


def agreement(whole: Tensor, parts: Sequence[Tensor], k: int, device: torch.device | None = None) -> Tensor:
    """Intersection over union of the k nearest neighbours by the whole image and by each part, (N, parts) in [0, 1].

    Args:
        whole: (N, D).
        parts: (N, C) each.
        k: Neighbours, the image itself included.
        device: Where neighbours are searched.
    """
    own = neighbours(whole, k, device)
    shares = []
    for part in parts:
        other = neighbours(part, k, device)
        common = torch.stack([(a[:, None] == b).sum() for a, b in zip(own, other, strict=True)])
        shares.append(common / (2 * own.shape[1] - common))
    return torch.stack(shares, dim=1)


def refined(
    logits: Sequence[Tensor], labels: Tensor, agreement: Tensor, share: float, smoothing: float | None
) -> list[Tensor]:
    """What the cross entropy of the whole image and of each part aims at, (B, C) each.

    Args:
        logits: (B, C) of the whole image, then of each part.
        labels: (B,).
        agreement: (B, parts).
        share: Of the parts' predictions, weighed by the softmax of their agreement, in the target of the whole image.
        smoothing: Of the parts' labels, spread over all classes; None: one minus their agreement.
    """
    exact = F.one_hot(labels, logits[0].shape[1]).float()
    predicted = torch.stack([x.detach().float().softmax(1) for x in logits[1:]], dim=2)  # (B, C, parts)
    whole = (1 - share) * exact + share * (predicted * agreement.softmax(1)[:, None]).sum(2)
    spread = 1 - agreement if smoothing is None else torch.full_like(agreement, smoothing)
    return [whole, *((1 - s) * exact + s / exact.shape[1] for s in spread[:, :, None].unbind(1))]


def classifiers(module: nn.Module) -> list[nn.Linear]:
    """The classifiers of a model, or of several."""
    found = (getattr(m, "classifier", None) for m in module.modules())
    return [c for c in found if isinstance(c, nn.Linear)]


@torch.no_grad()
def set_classifiers(module: nn.Module, rows: Tensor) -> None:
    """Give every classifier in `module` the first weights `rows` (R, D), and no shift.

    Raises:
        ValueError: One has fewer classes.
    """
    for linear in classifiers(module):
        if linear.out_features < len(rows):
            raise ValueError(f"{len(rows)} clusters do not fit a model of {linear.out_features} classes: raise eps")
        linear.weight[: len(rows)] = rows.to(linear.weight)
        if linear.bias is not None:
            linear.bias.zero_()
