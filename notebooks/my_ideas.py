"""Ideas to try: a network, a loss and an augmentation. Copy this file, change it, and name it in `plugins`."""

import torch
from torch import nn
from torch.nn import functional as F


def three_stages(num_classes: int | None, input_size: tuple[int, int]) -> nn.Module:
    """Three stages of strided convolutions. The package adds pooling, a BNNeck and the classifier."""

    def stage(cin: int, cout: int) -> nn.Sequential:
        first = nn.Sequential(nn.Conv2d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())
        return first.append(nn.Conv2d(cout, cout, 3, 1, 1, bias=False)).append(nn.BatchNorm2d(cout)).append(nn.ReLU())

    return nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), stage(16, 32), stage(32, 64), stage(64, 128))  # (B, 128, h, w)


def compact(outputs, labels: torch.Tensor) -> torch.Tensor:
    """Squared distance of each embedding to the mean of its person within the batch, on the unit sphere."""
    same = (labels[:, None] == labels).float()  # (B, B)
    embeddings = [F.normalize(x.float(), dim=1) for x in outputs.embeddings]  # one (B, D) per branch
    return sum((x - same @ x / same.sum(1, keepdim=True)).square().sum(1).mean() for x in embeddings)


def random_grey(images: torch.Tensor, generator: torch.Generator, p: float = 0.2) -> torch.Tensor:
    """Make images (B, 3, H, W) uint8 grey with probability p, so that colour alone is not enough."""
    grey = images.float().mean(1, keepdim=True).round().to(images.dtype).expand_as(images)
    chosen = torch.rand(len(images), generator=generator) < p  # drawn on the CPU: the same on every device
    return torch.where(chosen.to(images.device)[:, None, None, None], grey, images)


MODELS = {"three_stages": three_stages}
LOSSES = {"compact": compact}
AUGMENTATIONS = {"random_grey": random_grey}
