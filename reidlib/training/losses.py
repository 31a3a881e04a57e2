"""Losses of a training step, in float32 whatever the network computed in, over the one output contract.

Label smoothing: Szegedy et al., CVPR 2016. Batch-hard triplet: Hermans et al., 2017, with the margin of the strong
baseline (Luo et al., 2019).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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


def training_loss(
    outputs: tuple[list[Tensor], list[Tensor]],
    labels: Tensor,
    *,
    smoothing: float = 0.1,
    triplet_weight: float = 1.0,
    margin: float | None = 0.3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy averaged over all logits plus weighted triplet averaged over all embeddings, and both apart."""
    logits, embeddings = outputs
    entropy = torch.stack([cross_entropy(x, labels, smoothing) for x in logits]).mean()
    parts = {"cross_entropy": entropy.detach()}
    loss = entropy
    if triplet_weight:
        triplet = torch.stack([batch_hard_triplet(x, labels, margin) for x in embeddings]).mean()
        parts["triplet"] = triplet.detach()
        loss = loss + triplet_weight * triplet
    return loss, parts
