"""The plain way of the original projects, to measure against: PIL, torchvision's transforms, the default loader, pixels
normalised on the CPU, float32, channels first, and the loss read after every step.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from reidlib.data.samples import Sample
from reidlib.models import ReIDModel


class PlainSet(Dataset[tuple[Tensor, int]]):
    """One picture at a time: opened, resized, augmented for training, normalised."""

    def __init__(self, samples: Sequence[Sample], model: ReIDModel, *, training: bool) -> None:
        height, width = model.input_size
        steps = [v2.Resize((height, width))]
        if training:  # as torchreid's random_crop: enlarged by an eighth, then cut
            steps = [v2.Resize((height * 9 // 8, width * 9 // 8)), v2.RandomCrop((height, width))]
            steps.append(v2.RandomHorizontalFlip())
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(model.mean, model.std)]
        self.transform = v2.Compose(steps)
        self.samples, self.labels = samples, {pid: i for i, pid in enumerate(sorted({s.pid for s in samples}))}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        return self.transform(Image.open(sample.path).convert("RGB")), self.labels[sample.pid]


class Stopwatch:
    """`with watch("forward"):` adds to `watch.seconds["forward"]`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train_plainly(
    model: ReIDModel, samples: Sequence[Sample], *, batch: int, epochs: int, workers: int, device: str = "cpu"
) -> dict[str, float]:
    """Images per second of the best of `epochs`, and the seconds that its parts took."""
    loader = DataLoader(
        PlainSet(samples, model, training=True),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device != "cpu",
    )
    network = model.to(device).network.train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-4, weight_decay=5e-4)
    rows = []
    for _ in range(epochs):
        watch, start = Stopwatch(), time.perf_counter()
        batches = iter(loader)
        for _ in range(len(loader)):
            with watch("loading"):
                images, labels = next(batches)
            with watch("forward"):
                outputs = network(images.to(device), None)
                loss = sum(F.cross_entropy(x, labels.to(device), label_smoothing=0.1) for x in outputs.logits)
            with watch("backward"):
                optimizer.zero_grad()
                loss.backward()
            with watch("step"):
                optimizer.step()
                loss.item()
        rows.append({"images_per_second": len(loader) * batch / (time.perf_counter() - start), **watch.seconds})
    return max(rows, key=lambda row: row["images_per_second"])


def extract_plainly(
    model: ReIDModel, samples: Sequence[Sample], *, batch: int, workers: int, device: str = "cpu"
) -> tuple[Tensor, float]:
    """The features (N, D) of all pictures on the CPU, and the seconds from files to features."""
    loader = DataLoader(
        PlainSet(samples, model, training=False), batch_size=batch, num_workers=workers, pin_memory=device != "cpu"
    )
    network: nn.Module = model.to(device).network.eval()
    start = time.perf_counter()
    with torch.no_grad():
        feats = torch.cat([network(images.to(device), None).cpu() for images, _ in loader])
    return feats, time.perf_counter() - start
