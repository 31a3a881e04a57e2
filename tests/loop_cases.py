"""A model of three layers, its recipe, and what is compared of two runs; for every test of the loop."""

import torch
from torch import nn

from reidlib.models.heads import Outputs
from reidlib.models.wirings import ReIDModel, Sizes
from reidlib.seeds import seeded
from reidlib.training import Recipe

SIZE = (32, 16)
PLAIN = Recipe(epochs=2, people=4, images=2, eval_every=1, lr=0.05, optimizer="sgd", augment=(), warmup=0)


class Small(nn.Module):
    """Three layers without batch norm, so that what a batch gives does not depend on how it was cut."""

    min_size = 8

    def __init__(self, classes: int, feature_dim: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.stem, self.dropout = nn.Conv2d(3, feature_dim, 5, 4), nn.Dropout(dropout)
        self.scale = nn.Conv2d(feature_dim, feature_dim, 1)
        self.classifier = nn.Linear(feature_dim, classes)

    def forward(self, x, camids=None):
        feats = self.scale(self.stem(x).relu()).mean((2, 3))
        return Outputs([self.classifier(self.dropout(feats))], [feats]) if self.training else feats


class Picky(nn.Module):
    """A first layer that gives NaN for one batch, known by the sum of its images."""

    def __init__(self, inner: nn.Module, batch: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.batch = inner, batch.float().sum().item()

    def forward(self, x):
        raw = ((x * 0.25 + 0.5) * 255).round().sum()
        return self.inner(x) * torch.where(raw == self.batch, torch.nan, 1.0)


def small(data, **kwargs) -> ReIDModel:
    with seeded(0, "weights"):
        network = Small(data.num_classes, **kwargs)
    sizes = Sizes(data.num_classes, None, SIZE)
    return ReIDModel(network, name="small", family="test", sizes=sizes, mean=(0.5,) * 3, std=(0.25,) * 3)


def weights(model) -> torch.Tensor:
    return torch.cat([v.flatten() for v in model.state_dict().values()])


def timeless(history: list[dict]) -> list[dict]:
    """Without what a clock and the machine's memory say."""
    noise = ("seconds", "eval_seconds", "images_per_second", "loading", "cluster_seconds", "memory_mib")
    return [{key: value for key, value in row.items() if key not in noise} for row in history]
