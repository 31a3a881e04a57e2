"""What a training step costs: this workbook beside the plain loop that the original projects run, in one process.

    python benchmarks/training.py [--threads 2] [--steps 8] [--device cpu] [--models NAME,...]

Plain: float32, channels first, Pillow and torchvision's transforms image by image in torch's default loader, normalised
on the CPU, the loss read at each step. The workbook: the loop of `reidlib.fit` on the packed dataset. The same model,
images, batch, loss and optimizer; the two take turns, the better of two epochs each. Writes training.md.
"""

import argparse
import copy
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from plain import PlainSet
from torch import nn
from torch.utils.data import DataLoader

import reidlib
from reidlib.data.loaders import train_loader
from reidlib.data.packing import pack
from reidlib.data.transforms import build_augmentation
from reidlib.files import whole_file
from reidlib.models import complexity
from reidlib.seeds import seeded
from reidlib.training import Recipe, Setup, loop
from reidlib.training.losses import Criterion
from reidlib.training.optim import build_optimizer
from reidlib.workbook.runs import Run

MODELS = ("osnet_x0_25", "osnet_x1_0", "resnet50", "vit_base_transreid")
PHASES = ("loading", "forward", "backward", "step")
SIZE = (256, 128)
RECIPE = Recipe(epochs=100, people=8, images=4, lr=3e-4, augment=("random_flip",))


class Plain:
    """The plain loop."""

    def __init__(self, model: nn.Module, data: reidlib.ReIDDataset, device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        batch = RECIPE.people * RECIPE.images
        self.loader = DataLoader(PlainSet(data.train, model, training=True), batch, shuffle=True, drop_last=True)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.lr, weight_decay=RECIPE.weight_decay)
        self.loss = nn.CrossEntropyLoss(label_smoothing=RECIPE.smoothing)

    def epoch(self, watch: "Watch") -> int:
        self.model.train()
        batches, steps, meter = iter(self.loader), len(self.loader), 0.0
        for _ in range(steps):
            with watch("loading"):
                images, labels = next(batches)
                images, labels = images.to(self.device), labels.to(self.device)
            with watch("forward"):
                loss = self.loss(self.model.network(images).logits[0], labels)
            with watch("backward"):
                self.optimizer.zero_grad()
                loss.backward()
            with watch("step"):
                self.optimizer.step()
                meter += loss.item()
        return steps * self.loader.batch_size


class Workbook:
    """The loop of `reidlib.fit`, timed from outside."""

    def __init__(self, model: nn.Module, data: reidlib.ReIDDataset, device: torch.device, folder: Path) -> None:
        setup = Setup(cpu=device.type == "cpu")
        accelerator = loop.begin(setup)
        loader = train_loader(data, SIZE, people=RECIPE.people, images=RECIPE.images, cache_gib=0)
        if not loader.dataset.pack:
            raise RuntimeError("the set is not packed")
        model.to(accelerator.device, memory_format=torch.channels_last)
        criterion = Criterion(RECIPE, model).to(accelerator.device)
        augment, run = build_augmentation(RECIPE.augment), Run(folder)
        optimizer = build_optimizer(model, RECIPE)
        parts = {"model": model, "loader": loader, "criterion": criterion, "optimizer": optimizer, "augment": augment}
        self.trainer = loop.Trainer(**parts, recipe=RECIPE, setup=setup, accelerator=accelerator, average=None, run=run)
        self.last_epoch, self.images = 1, len(loader) * RECIPE.people * RECIPE.images

    def epoch(self, watch: "Watch") -> int:
        def timed(phase: str, function: Callable) -> Callable:
            def call(*args: Any) -> Any:
                with watch(phase):
                    return function(*args)

            return call

        trainer, spent = copy.copy(self.trainer), watch.spent
        trainer.prepare, trainer.forward = timed("forward", trainer.prepare), timed("forward", trainer.forward)
        trainer.update = timed("step", trainer.update)
        self.last_epoch += 1  # the first epoch of a run also looks for operations that are not deterministic
        start = time.perf_counter()
        row = trainer.train_epoch(self.last_epoch)
        spent["loading"] = row["loading"] * row["seconds"]
        spent["backward"] = time.perf_counter() - start - spent["loading"] - spent["forward"] - spent["step"]
        return self.images


class Watch:
    """`with watch("forward"):` adds to the seconds of a phase; a GPU has finished it by then."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, dict.fromkeys(PHASES, 0.0)

    def __call__(self, phase: str) -> "Watch":
        self.phase = phase
        return self

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.spent[self.phase] += time.perf_counter() - self.start


def matrix_rate(device: torch.device) -> float:
    """Multiply-adds a second of the best of five products of square matrices, in the precision of training."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, best = torch.randn(size, size, device=device, dtype=dtype), 0.0
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, size**3 / (time.perf_counter() - start))
    return best


def rows(name: str, data: reidlib.ReIDDataset, device: torch.device, rate: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        ways = {}
        for way in ("plain", "workbook"):
            with seeded(0, "weights"):
                model = reidlib.create_model(name, num_classes=data.num_classes, input_size=SIZE, num_cameras=6)
            ways[way] = Plain(model, data, device) if way == "plain" else Workbook(model, data, device, Path(folder))
        best: dict[str, tuple[float, dict[str, float]]] = {}
        for turn in range(3):  # the first warms up
            for way, trained in ways.items():
                watch, start = Watch(device), time.perf_counter()
                images = trained.epoch(watch)
                speed = images / (time.perf_counter() - start)
                if turn and speed > best.get(way, (0.0,))[0]:
                    best[way] = speed, watch.spent
    bound = rate / (3 * complexity(model).macs)  # a backward pass costs two forward ones
    lines = []
    for way, (speed, spent) in best.items():
        shares = " | ".join(f"{100 * spent[phase] / sum(spent.values()):.0f} %" for phase in PHASES)
        ratio = f"{speed / best['plain'][0]:.2f}"
        lines.append(f"| {name} | {way} | {speed:.1f} | {ratio} | {shares} | {100 * speed / bound:.0f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="batches an epoch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    data = reidlib.load_dataset("synthetic-small")
    count = args.steps * RECIPE.people * RECIPE.images
    if count > len(data.train):
        parser.error(f"{len(data.train)} images make at most {len(data.train) // 32} steps")
    data = replace(data, train=data.train[:: len(data.train) // count][:count])
    pack(data, SIZE)
    rate = matrix_rate(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    how = (
        f"{args.threads} thread(s), batches of 32 at 256 × 128, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    lines = [
        "# What training costs",
        "",
        f"{where} ({torch.backends.cpu.get_cpu_capability()}), {how}; by `python benchmarks/training.py`.",
        "",
        "Plain is the loop of the original projects, × how many times as many images per second. The bound is what",
        f"{rate / 1e12:.3f} T multiply-adds a second would allow, as measured on a plain matrix product.",
        "",
        f"| model | loop | images per second | × | {' | '.join(PHASES)} | of the bound |",
        "|---|---|--:|--:|" + "--:|" * (len(PHASES) + 1),
    ]
    for name in args.models.split(","):
        lines += rows(name, data, device, rate)
        print("\n".join(lines[-2:]), flush=True)
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
