"""Losses of a training step, in float32 whatever the network computed in, over the one output contract.

Label smoothing: Szegedy et al., CVPR 2016. Batch-hard triplet: Hermans et al., 2017, with the margin of the strong
baseline (Luo et al., 2019).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.training.recipes import Recipe


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean cross entropy of logits (B, C) against labels (B,), with `smoothing` spread over all C classes."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def batch_hard_triplet(embeddings: Tensor, labels: Tensor, margin: float | None = 0.3) -> Tensor:
    """Each image against its farthest positive and nearest negative of the batch, by Euclidean distance; mean over B.

    embeddings (B, D), labels (B,). `margin=None` is the soft margin, log(1 + exp(·)). An anchor alone with its label,
    or in a batch of one label, has no triplet and is left out; without any triplet the loss is 0.
    """
    x = embeddings.float()
    squared = x.square().sum(1)
    distances = (squared[:, None] + squared - 2 * x @ x.T).clamp(min=1e-12).sqrt()  # (B, B); clamped: sqrt'(0) = inf
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive, negative = same & ~itself, ~same
    counts = positive.any(1) & negative.any(1)
    hardest = distances.masked_fill(~positive, 0).amax(1) - distances.masked_fill(~negative, torch.inf).amin(1)
    # An anchor that does not count may hold an infinity: replace it before the loss, or its gradient would be NaN.
    hardest = torch.where(counts, hardest, 0)
    loss = F.softplus(hardest) if margin is None else F.relu(hardest + margin)
    return (loss * counts).sum() / counts.sum().clamp(min=1)


class Criterion(nn.Module):
    """What a recipe minimises: `criterion(outputs, labels)` is the loss (), and its parts by name, detached.

    Each loss is averaged over the branches that it applies to. State that a loss learns lies in this module, and so in
    the checkpoint.
    """

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, outputs: tuple[list[Tensor], list[Tensor]], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, (logits, embeddings) = self.recipe, outputs
        loss = torch.stack([cross_entropy(x, labels, recipe.smoothing) for x in logits]).mean()
        parts = {"cross_entropy": loss.detach()}
        if recipe.triplet_weight:
            triplet = torch.stack([batch_hard_triplet(x, labels, recipe.margin) for x in embeddings]).mean()
            parts["triplet"] = triplet.detach()
            loss = loss + recipe.triplet_weight * triplet
        return loss, parts

    def update(self) -> None:
        """Called after each step of the optimizer, for losses that keep state by a rule of their own."""
