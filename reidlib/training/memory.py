"""A memory of features to train against: the one loss of Cluster-Contrast, SpCL and adaptation from source to target.

Cluster-Contrast (Dai et al., ACCV 2022) has a row for each cluster. SpCL (Ge et al., NeurIPS 2020) has a row for each
image and a class for each cluster and outlier; from source to target, rows of the source's classes stand in front.

Different from both: rows move in `step`, not within the backward pass. As in their code, where several batches share
one backward pass, the gradients of the earlier ones are those of the rows as the later ones will move them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.errors import unknown_name
from reidlib.training.recipes import UPDATES


class ClusterMemory(nn.Module):
    """Cross entropy of features against the groups of a memory: `memory(feats, index)`, then `memory.step()`.

    The score of a group is the mean of its rows' dot products with the feature, divided by the temperature.

    Args:
        rows: (R, D) floating, of length 1.
        groups: (R,) integers, the group of each row; -1 for a row that belongs to none. Numbers may be missing.
        momentum: Weight of the OLD row when a feature x moves it: row = momentum · row + (1 - momentum) · x, then
            scaled to length 1. With 0.1 a row is, in effect, replaced by the last image of its cluster.
        temperature: What scores are divided by.
        update: "sequential": each image moves its row, in the order of the batch. "hard": the image least similar to
            the old row does (Cluster-Contrast's option). "batch_mean": the mean of its images does.
        normalise: Scale features to length 1, as Cluster-Contrast does. SpCL expects them to be so.
        floor: Added to probabilities before the logarithm, and to their denominator, as in SpCL's code. None: 1e-6
            without `normalise`, else 0.

    Attributes:
        rows: (R, D), a buffer.
        groups: (R,) int64, a buffer.

    Raises:
        ValueError: Arguments that do not fit each other.
    """

    rows: Tensor
    groups: Tensor
    size: Tensor

    def __init__(
        self,
        rows: Any,
        groups: Any,
        *,
        momentum: float,
        temperature: float = 0.05,
        update: str = "sequential",
        normalise: bool = True,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        rows, groups = torch.as_tensor(rows).detach().clone(), torch.as_tensor(groups).long()
        if update not in UPDATES:
            raise unknown_name("update", update, UPDATES)
        if rows.ndim != 2 or groups.shape != rows.shape[:1] or not (groups >= 0).any():
            raise ValueError(
                f"a memory needs rows (R, D) and the group of each, not all -1: got {tuple(rows.shape)} rows and "
                f"{tuple(groups.shape)} groups: are there no clusters?"
            )
        if not (0 <= momentum <= 1 and temperature > 0):
            raise ValueError(f"momentum must be from 0 to 1 and temperature above 0, got {momentum} and {temperature}")
        self.momentum, self.temperature, self.update, self.normalise = momentum, temperature, update, normalise
        self.floor = floor if floor is not None else 0.0 if normalise else 1e-6
        self.register_buffer("rows", rows.float())
        self.register_buffer("groups", groups)
        self.register_buffer("size", torch.bincount(groups[groups >= 0]))
        self._row_each = len(self.size) == len(groups) and bool((groups == torch.arange(len(groups)).to(groups)).all())
        self._seen: list[tuple[Tensor, Tensor]] = []  # features and rows of each batch since the last step
        self._ahead: Tensor | None = None  # rows as moved by batches whose gradients are known, if there are several

    def forward(self, feats: Tensor, index: Tensor) -> Tensor:
        """The mean loss () of feats (B, D), the images of the rows `index` (B,), each of which has a group.

        In training mode the features are kept for `step`.
        """
        x, index = feats.float(), index.long()
        if self.normalise:
            x = F.normalize(x, dim=1)
        if self.training:
            self._seen.append((x.detach(), index))
        scores = _Products.apply(x, self, len(self._seen) - 1) / self.temperature  # (B, R)
        if not self._row_each:  # the last column is for rows without a group: index -1
            sums = scores.new_zeros(len(x), len(self.size) + 1).index_add(1, self.groups % (len(self.size) + 1), scores)
            means = sums[:, :-1] / self.size.clamp(min=1)
            scores = means.masked_fill(self.size == 0, -torch.inf)  # (B, groups)
        own = self.groups[index]
        if not self.floor:
            return F.cross_entropy(scores, own)
        exp = scores.exp()
        share = exp.gather(1, own[:, None])[:, 0] / (exp.sum(1) + self.floor)
        return -(share + self.floor).log().mean()

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows by the features seen since the last step, in the order in which they were seen."""
        if self._ahead is not None:
            self.rows.copy_(self._ahead)
        for x, index in self._seen:
            self._move(self.rows, x, index)
        self._seen, self._ahead = [], None

    @torch.no_grad()
    def gradient(self, grad: Tensor, batch: int) -> Tensor:
        """The gradient (B, D) of the features of a batch, from that of their products with all rows (B, R)."""
        found = grad @ (self.rows if self._ahead is None else self._ahead)
        if len(self._seen) > 1 and batch >= 0:
            self._ahead = self.rows.clone() if self._ahead is None else self._ahead
            x, index = self._seen[batch]
            self._move(self._ahead, x, index)
            self._seen[batch] = x[:0], index[:0]
        return found

    def _move(self, rows: Tensor, x: Tensor, index: Tensor) -> None:
        """Move `rows` in place by features x (B, D) of the rows `index` (B,)."""
        if self.update == "sequential":
            pairs = list(zip(index.tolist(), x, strict=True))
        else:
            pairs = []
            for row in index.unique().tolist():
                mine = x[index == row]
                pairs.append((row, mine[(mine @ rows[row]).argmin()] if self.update == "hard" else mine.mean(0)))
        for row, each in pairs:
            moved = self.momentum * rows[row] + (1 - self.momentum) * each
            rows[row] = moved / moved.norm().clamp(min=1e-12)


class _Products(torch.autograd.Function):
    """Dot products (B, R) of features with the rows of a memory, whose gradient the memory gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: ClusterMemory, batch: int) -> Tensor:
        ctx.memory, ctx.batch = memory, batch if memory.training else -1
        return x @ memory.rows.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.memory.gradient(grads[0], ctx.batch), None, None
