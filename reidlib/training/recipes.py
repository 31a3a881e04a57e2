"""What a training run does, as data: one frozen declaration, checked before anything starts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from reidlib.errors import unknown_name

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "steps")


@dataclass(frozen=True)
class Recipe:
    """Settings of one run; the defaults train a small network from random weights.

    Lengths are in epochs; a batch holds `people` × `images` pictures on each process. Raises ValueError on building for
    a value that makes no sense, naming it.
    """

    epochs: int = 8
    people: int = 8  # P: different people in a batch
    images: int = 4  # K: pictures of each
    pk: bool = True  # False: batches of people × images pictures drawn from all, no triplets
    optimizer: str = "adam"
    lr: float = 3e-3
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()  # epochs after which "steps" multiplies the rate by `gamma`
    gamma: float = 0.1
    warmup: float = 0.5  # epochs in which the rate rises linearly from a tenth
    smoothing: float = 0.1
    triplet_weight: float = 0.0  # from random weights batch-hard triplets may pull all features into one point
    margin: float = 0.3
    augment: tuple[str, ...] = ("random_flip", "random_crop")
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
        for kind, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
        for field in ("epochs", "people", "images", "accumulate", "eval_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("weight_decay", "warmup", "triplet_weight", "margin", "clip", "patience"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for field in ("smoothing", "ema"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must lie in [0, 1), got {getattr(self, field)}")
        if self.triplet_weight and not self.pk:
            raise ValueError("triplets need PK batches: set pk=True, or triplet_weight=0")
        if self.triplet_weight and min(self.people, self.images) < 2:
            raise ValueError(
                f"triplets need at least 2 people × 2 images in a batch, got {self.people} × {self.images}"
            )
        if self.schedule == "steps" and (not self.milestones or max(self.milestones) >= self.epochs):
            raise ValueError(
                f"schedule 'steps' needs milestones before the last of {self.epochs} epochs, got {self.milestones}"
            )

    def rate(self, progress: float) -> float:
        """The learning rate after `progress` epochs (a fraction within an epoch), as a share of `lr`.

        The cosine falls to 0 at the end; warm-up multiplies whatever the schedule says.
        """
        warm = min(1.0, 0.1 + 0.9 * progress / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress / self.epochs)))
        return warm * self.gamma ** sum(progress >= m for m in self.milestones)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "Recipe":
        """The recipe whose settings stand in `values` under their own names; other entries are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
