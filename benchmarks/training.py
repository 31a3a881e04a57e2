"""What a training step costs: this workbook beside the plain loop that the original projects run, in one process.

    python benchmarks/training.py [--threads 2] [--steps 8] [--models NAME,...]

Plain: float32, channels first, Pillow and torchvision's transforms image by image in torch's default loader, normalised
on the CPU, the loss read at each step. The workbook: the loop of `reidlib.fit` on the packed dataset. The same model,
images, batch, loss and optimizer; the two take turns, the better of two epochs each. Writes training.md.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from demo import processor
from plain import PlainSet
from torch import nn
from torch.utils.data import DataLoader

import reidlib
from reidlib.data.loaders import train_loader
from reidlib.data.packing import pack
from reidlib.data.transforms import build_augmentation
from reidlib.files import whole_file
from reidlib.models import ReIDModel, complexity
from reidlib.seeds import seeded
from reidlib.training import Recipe, Setup, loop
from reidlib.training.losses import Criterion
from reidlib.training.optim import build_optimizer
from reidlib.workbook.runs import Run

MODELS = ("osnet_x0_25", "osnet_x1_0", "resnet50", "vit_base_transreid", "clipreid_vit_b16", "solider_swin_tiny")
PHASES = ("loading", "forward", "backward", "step")
SIZE = (256, 128)
RECIPE = Recipe(epochs=100, people=8, images=4, lr=3e-4, augment=("random_flip",))


class Plain:
    """The plain loop."""

    def __init__(
        self,
        model: ReIDModel,
        data: reidlib.ReIDDataset,
        device: torch.device,
        recipe: Recipe = RECIPE,
        *,
        workers: int = 0,
    ) -> None:
        self.model, self.device = model.to(device), device
        images, batch = PlainSet(data.train, model, training=True), recipe.people * recipe.images
        self.loader = DataLoader(
            images, batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=device.type == "cuda"
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)

    def epoch(self, watch: "Watch") -> int:
        """Train an epoch; returns the number of images."""
        self.model.train()
        batches, steps, meter = iter(self.loader), len(self.loader), 0.0
        for _ in range(steps):
            with watch("loading"):
                images, labels = next(batches)
                images, labels = images.to(self.device), labels.to(self.device)
            with watch("forward"):
                cameras = torch.zeros_like(labels)  # for networks that embed the camera
                loss = self.loss(self.model.network(images, cameras).logits[0], labels)
            with watch("backward"):
                self.optimizer.zero_grad()
                loss.backward()
            with watch("step"):
                self.optimizer.step()
                meter += loss.item()
        return steps * self.loader.batch_size


class Workbook:
    """The loop of `reidlib.fit`, timed from outside."""

    def __init__(
        self, model: ReIDModel, data: reidlib.ReIDDataset, setup: Setup, folder: Path, recipe: Recipe = RECIPE
    ) -> None:
        accelerator = loop.begin(setup)
        shape = {"people": recipe.people, "images": recipe.images, "workers": setup.workers}
        loader = train_loader(data, model.input_size, **shape, cache_gib=0)
        model.to(accelerator.device, memory_format=torch.channels_last)
        criterion = Criterion(recipe, model).to(accelerator.device)
        augment, run = build_augmentation(recipe.augment), Run(folder)
        optimizer = build_optimizer(model, recipe)
        parts = {"model": model, "loader": loader, "criterion": criterion, "optimizer": optimizer, "augment": augment}
        self.trainer = loop.Trainer(**parts, recipe=recipe, setup=setup, accelerator=accelerator, average=None, run=run)
        self.last_epoch, self.images = 1, len(loader) * recipe.people * recipe.images

    def epoch(self, watch: "Watch") -> int:
        """Train an epoch; returns the number of images."""

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
    """`with watch("forward"):` adds to the seconds of a phase. On a GPU only those of loading say something."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PHASES, 0.0)

    def __call__(self, phase: str) -> "Watch":
        self.phase = phase
        return self

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.spent[self.phase] += time.perf_counter() - self.start


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """Multiply-adds a second of the best of five products of square matrices, in the precision of training."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, best = torch.randn(size, size, device=device, dtype=dtype), 0.0
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, size**3 / (time.perf_counter() - start))
    return best


def rows(name: str, data: reidlib.ReIDDataset, rate: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        ways = {}
        for way in ("plain", "workbook"):
            with seeded(0, "weights"):
                model = reidlib.create_model(name, num_classes=data.num_classes, input_size=SIZE, num_cameras=6)
            if way == "plain":
                ways[way] = Plain(model, data, torch.device("cpu"))
                continue
            ways[way] = Workbook(model, data, Setup(cpu=True), Path(folder))
            if not ways[way].trainer.loader.dataset.pack:
                raise RuntimeError("the set is not packed")
        best: dict[str, tuple[float, dict[str, float]]] = {}
        for turn in range(3):  # the first warms up
            for way, trained in ways.items():
                watch, start = Watch(), time.perf_counter()
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
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = reidlib.load_dataset("synthetic-small")
    count = args.steps * RECIPE.people * RECIPE.images
    if count > len(data.train):
        parser.error(f"{len(data.train)} images make at most {len(data.train) // 32} steps")
    data = replace(data, train=data.train[:: len(data.train) // count][:count])
    pack(data, SIZE)
    rate = matrix_rate(torch.device("cpu"))
    how = (
        f"{args.threads} thread(s), batches of 32 at 256 × 128, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    lines = [
        "# What training costs",
        "",
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {how}; by `python benchmarks/training.py`.",
        "",
        "Plain is the loop of the original projects, × how many times as many images per second. The bound is what",
        f"{rate / 1e12:.3f} T multiply-adds a second would allow, as measured on a plain matrix product.",
        "",
        f"| model | loop | images per second | × | {' | '.join(PHASES)} | of the bound |",
        "|---|---|--:|--:|" + "--:|" * (len(PHASES) + 1),
    ]
    for name in args.models.split(","):
        lines += rows(name, data, rate)
        print("\n".join(lines[-2:]), flush=True)
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
