"""Images per second of training, beside the plain loop of the original projects, and where the time goes.

    python benchmarks/training.py [--models NAME,...] [--images 256] [--epochs 3] [--workers 2] [--device cuda]

Both ways train the same network on the same pictures (drawn people, 256 x 128, JPEG), from their files on, in one
process after the other; the best epoch of each counts. The plain way is that of `benchmarks/plain.py`; this
workbook's is `reidlib.fit` as it is. Writes training.md.
"""

import argparse
import platform
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from plain import train_plainly
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from reidlib import create_model, fit, load_dataset
from reidlib.data.samples import ReIDDataset
from reidlib.files import whole_file
from reidlib.models import ReIDModel
from reidlib.runs import Run
from reidlib.training import Recipe
from reidlib.training.loop import Setup

MODELS = ("osnet_x0_25", "osnet_x1_0", "resnet50", "vit_base_transreid")
PARTS = ("loading", "forward", "backward", "step")


def train_here(model: ReIDModel, data: ReIDDataset, *, batch: int, epochs: int, workers: int, cpu: bool) -> dict:
    """The same figures of `fit`, its parts timed by hooks on model and optimizer."""
    marks: list[tuple[str, float]] = []

    def mark(name: str) -> None:
        if not cpu:
            torch.cuda.synchronize()
        marks.append((name, time.perf_counter()))

    hooks = [
        model.register_forward_pre_hook(lambda *_: mark("loading") if model.training else None),
        model.register_forward_hook(lambda *_: mark("forward") if model.training else None),
        register_optimizer_step_pre_hook(lambda *_: mark("backward")),
        register_optimizer_step_post_hook(lambda *_: mark("step")),
    ]
    recipe = Recipe(epochs=epochs, people=batch // 4, images=4, eval_every=epochs, lr=3e-4)
    try:
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(workers=workers, cpu=cpu)
            run = Run.create(f"{folder}/run", {})
            history = fit(model, data, run, recipe, setup, on_epoch=lambda _: mark("epoch"))
    finally:
        for hook in hooks:
            hook.remove()
    seconds = dict.fromkeys(PARTS, 0.0)
    for (before, start), (name, end) in pairwise(marks):
        if "epoch" not in (before, name):  # between epochs there are evaluation and checkpoint
            seconds[name] += end - start
    return max(history[1:], key=lambda row: row["images_per_second"]) | seconds


def shares(row: dict) -> str:
    total = sum(row[part] for part in PARTS)
    return " / ".join(f"{100 * row[part] / total:.0f}" for part in PARTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    full = load_dataset("synthetic-small", image_size=(256, 128))
    asked = full.query[0].pid  # one person is enough to evaluate, which is not what is measured
    query, gallery = (tuple(s for s in split if s.pid == asked) for split in (full.query, full.gallery))
    data = replace(full, train=full.train[: args.images], query=query, gallery=gallery)
    where = torch.cuda.get_device_name() if args.device != "cpu" else platform.processor() or "CPU"
    how = f"{torch.get_num_threads()} threads, {args.workers} loader processes, batches of {args.batch}"
    lines = [
        "# What training costs",
        "",
        f"{where} ({torch.backends.cpu.get_cpu_capability()}), {how}, {len(data.train)} pictures of 256 x 128",
        f"an epoch, the best of {args.epochs}; torch {torch.__version__}, {time.strftime('%Y-%m-%d')};",
        "by `python benchmarks/training.py`.",
        "",
        "Images per second of the plain loop of the original projects (`benchmarks/plain.py`) and of `reidlib.fit`;",
        "then the share of the time, in percent, that goes into loading / forward / backward / step.",
        "",
        "| model | plain | here | ratio | plain: where | here: where |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in args.models.split(","):
        rows = []
        for train in (train_plainly, train_here):
            torch.manual_seed(0)
            model = create_model(name, num_classes=data.num_classes, input_size=(256, 128))
            place = {"device": args.device} if train is train_plainly else {"cpu": args.device == "cpu"}
            samples = data.train if train is train_plainly else data
            rows.append(train(model, samples, batch=args.batch, epochs=args.epochs, workers=args.workers, **place))
        plain, here = (row["images_per_second"] for row in rows)
        figures = f"{plain:.1f} | {here:.1f} | {here / plain:.2f} | {shares(rows[0])} | {shares(rows[1])}"
        lines.append(f"| {name} | {figures} |")
        print(lines[-1], flush=True)
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
