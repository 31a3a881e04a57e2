"""Heads: from a trunk's map to the feature that is ranked by, and to class scores in training."""

from typing import NamedTuple

from torch import Tensor, nn

from reidlib.models.layers import init_weights


class Outputs(NamedTuple):
    """What a network returns in training: one entry a branch, so that one loss serves every model.

    logits: (B, classes) each, empty where the model has no classifier; embeddings: (B, D) each, for metric losses.
    """

    logits: list[Tensor]
    embeddings: list[Tensor]


class Head(nn.Module):
    """Average pooling, an optional embedding (linear, batch norm, ReLU), a linear classifier.

    A map (B, channels, h, w) becomes the feature (B, feature_dim) in eval mode, `Outputs` in training mode.
    `num_classes` None or 0 leaves the classifier out; `embed` is the embedding's width, None for none.
    """

    def __init__(self, channels: int, num_classes: int | None, *, embed: int | None = None) -> None:
        super().__init__()
        self.feature_dim = embed or channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.embedding = (
            nn.Sequential(nn.Linear(channels, embed), nn.BatchNorm1d(embed), nn.ReLU(inplace=True)) if embed else None
        )
        self.classifier = nn.Linear(self.feature_dim, num_classes) if num_classes else None
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        x = self.pool(x).flatten(1)  # (B, channels)
        x = x if self.embedding is None else self.embedding(x)
        if not self.training:
            return x
        return Outputs([] if self.classifier is None else [self.classifier(x)], [x])
