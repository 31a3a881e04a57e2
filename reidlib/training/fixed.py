"""Features of the training images, extracted once, for a stage that leaves the network as it is.

CLIP-ReID (Li et al., AAAI 2023) learns its prompts so; any loss that learns something can be trained alone.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from reidlib.data.loaders import Batch, ImageSet, in_order
from reidlib.evaluation import extract_features


class FixedFeatures(Dataset[Batch]):
    """An ImageSet with features (N, D) in place of its images, once `extract` was called.

    Args:
        images: The training images.
        workers, rank, world: Loader processes of extraction, and this process among those of the run.
    """

    def __init__(self, images: ImageSet, *, workers: int = 0, rank: int = 0, world: int = 1) -> None:
        self.images, self.samples = images, images.samples
        self.batches = in_order(images, workers=workers, rank=rank, world=world)
        self.feats = torch.empty(0)

    def extract(self, model: nn.Module, device: torch.device) -> None:
        """Extract the features, unless that was done before."""
        if not len(self.feats):
            self.feats = features_in_all(model, self.batches, device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Batch:
        at, images = torch.as_tensor(indices, dtype=torch.int64), self.images
        return Batch(self.feats[at], images.pids[at], images.camids[at], images.cameras[at], at)


def features_in_all(model: nn.Module, batches: Any, device: torch.device) -> Tensor:
    """Features (N, D) of all images, on the CPU, in every process; `batches` are those of this process's part."""
    feats = extract_features(model, batches, device=device).feats
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, feats)
        feats = torch.cat(parts)
    return feats
