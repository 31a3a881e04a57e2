"""The plain way of the original projects, to measure against: PIL, torchvision's transforms, the default loader, pixels
normalised on the CPU, float32, channels first.
"""

import time
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from reidlib.data.samples import Sample
from reidlib.models import ReIDModel


class PlainSet(Dataset[tuple[Tensor, int]]):
    """One image at a time: opened, resized, augmented for training, normalised."""

    def __init__(self, samples: Sequence[Sample], model: ReIDModel, *, training: bool) -> None:
        height, width = model.input_size
        steps = [v2.Resize((height, width))]
        if training:
            steps.append(v2.RandomHorizontalFlip())
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(model.mean, model.std)]
        self.transform = v2.Compose(steps)
        self.samples, self.labels = samples, {pid: i for i, pid in enumerate(sorted({s.pid for s in samples}))}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        return self.transform(Image.open(sample.path).convert("RGB")), self.labels[sample.pid]


def extract_plainly(
    model: ReIDModel, samples: Sequence[Sample], *, batch: int, workers: int, device: str = "cpu"
) -> tuple[Tensor, float]:
    """The features (N, D) of all images on the CPU, and the seconds from files to features."""
    loader = DataLoader(
        PlainSet(samples, model, training=False), batch_size=batch, num_workers=workers, pin_memory=device != "cpu"
    )
    network: nn.Module = model.to(device).network.eval()
    start = time.perf_counter()
    with torch.no_grad():
        feats = torch.cat([network(images.to(device), None).cpu() for images, _ in loader])
    return feats, time.perf_counter() - start
