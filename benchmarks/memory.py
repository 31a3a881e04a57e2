"""The most memory that each task takes on the demo, each in a process of its own.

    python benchmarks/memory.py [--dataset synthetic-small] [--epochs 2]

Resident memory of the largest process of a task, as the operating system counts it. Writes memory.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reidlib.files import whole_file
from reidlib.workbook.batch import list_notebooks

IMPORTS = "import torch, reidlib.training, reidlib.models, reidlib.evaluation, reidlib.data.loaders"
START = """
import reidlib, torch
from reidlib.data.loaders import eval_loader
data = reidlib.load_dataset({dataset!r})
model = reidlib.create_model("osnet_x0_25", num_classes=data.num_classes, input_size=(128, 64))
"""
TRAINING = """
from reidlib.training import Recipe, Setup
run = reidlib.Run.create("memory", {{}})
reidlib.fit(model, data, run, Recipe(epochs={epochs}, eval_every=100), Setup(cpu=True))
"""
EXTRACTION = """
reidlib.extract_features(model, eval_loader(data.gallery, model.input_size))
"""
EVALUATION = """
draw = torch.Generator().manual_seed(0)
query, gallery = (torch.randn(len(s), 512, generator=draw) for s in (data.query, data.gallery))
ids = [[getattr(x, field) for x in s] for field in ("pid", "camid") for s in (data.query, data.gallery)]
reidlib.evaluate_ranking(query, gallery, *ids)
"""


def peak(command: list[str], environment: dict[str, str]) -> float:
    """MiB of `command`, or of the largest process that it waited for. Raises RuntimeError where it fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[-1]} failed: {log.read().decode(errors='replace')[-500:]}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="synthetic-small")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    values = vars(args)
    lines = [
        "# Peak memory",
        "",
        f"{args.dataset} at 128 × 64, osnet_x0_25, training for {args.epochs} epochs, on a CPU, {time.strftime('%F')};",
        "by `python benchmarks/memory.py`. Images that fit into memory are kept there.",
        "",
        "| task | MiB |",
        "|---|--:|",
    ]

    def add(task: str, command: list[str]) -> None:
        lines.append(f"| {task} | {peak(command, environment):.0f} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as runs:
        environment = os.environ | {"REID_RUNS": runs, "CUDA_VISIBLE_DEVICES": ""}
        scripts = {
            "importing alone": IMPORTS,
            "training": START + TRAINING,
            "extraction": START + EXTRACTION,
            "evaluation": START + EVALUATION,
        }
        for task, script in scripts.items():
            add(task, [sys.executable, "-c", script.format(**values)])
        batch = [sys.executable, "-m", "reidlib.batch"]
        given = ["-p", "run", "demo", "-p", "dataset", args.dataset, "-p", "epochs", str(args.epochs)]
        add("notebook train", [*batch, "train", *given])
        for name in list_notebooks():
            if name != "train":
                add(f"notebook {name}", [*batch, name])
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
