"""What does `make demo` score on another computer? Three seeds under two instruction sets, and what was tried.

    python benchmarks/demo.py [--networks]

A processor without AVX-512 rounds differently, and a short training from random weights turns the last digit of a
product into points of mAP. oneDNN and MKL can be told to leave instructions out, so that one computer stands in for
two. Each run is trained in a child process with the parameters of `make demo`. Runs stay in the runs folder under
`demo-scores/`: an interrupted one is resumed, a finished one is only read. Writes demo.md, which README.md and
docs/data.md quote; tests/test_demo.py compares them. With --networks, three sizes of OSNet are trained instead, for six
epochs each. demo_tried.csv holds the single runs by which the recipe was
chosen.
"""

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")
TRIED = Path(__file__).with_name("demo_tried.csv")
FOLDER = "demo-scores"
SEEDS = (0, 1, 2)
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "all": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
NETWORKS = (("osnet_x0_25", 4e-3), ("osnet_x0_5", 4e-3), ("osnet_x1_0", 4e-3), ("osnet_x1_0", 1.5e-3))  # learning rates
SHORT = 6  # epochs of each
SCORES = {"rank1": "Rank-1", "mAP": "mAP", "mINP": "mINP"}
UNTRAINED = "before training"
TRIED_CAPTION = """\
On `synthetic-small`, with 50 people to test on where no other number stands. Single runs from seed 0 where no deviation
stands, in the order in which they were made. Each of these shows about as many images, weighted by their cost, as the
demo before. Images of half the size in the first epochs did not pay, and are no setting of the package.

Before there was supervised contrast, two runs from one seed that differed in their instruction set alone differed by
3.9 points of mAP on average (eleven pairs), as much as runs from two seeds: neither more epochs, nor more people to
train or to test on, changed that. What differs is the epoch in which the loss begins to fall. With supervised contrast,
a longer warm-up and clipped gradients it falls alike, and such pairs differ by 1.1 points (the three above)."""


def demo_parameters() -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that `make demo` gives to the notebooks train and test."""
    from reidlib.workbook.batch import sort_parameters

    rule = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndemo: $(READY)\n")[2].partition("\n\n")[0]
    values = sort_parameters(("train", "test"), dict(re.findall(r"-p (\w+) (\S+)", rule)))
    values["train"] = {k: v for k, v in values["train"].items() if k not in ("run", "resume")} | {"cpu": True}
    return values["train"], values["test"]


def train(name: str, seed: int, **changed: Any) -> None:
    """Train the run demo-scores/<name> as far as it was not yet, and write its scores.json.

    Args:
        name: Of the run.
        seed: Of the training.
        changed: Parameters of the training in place of the demo's.
    """
    from reidlib import evaluate_ranking, extract_features, load_dataset
    from reidlib.data.loaders import eval_loader
    from reidlib.evaluation import ranking_inputs
    from reidlib.training import Job

    params, test = demo_parameters()
    job = Job.from_params(params | {"run": f"{FOLDER}/{name}", "seed": seed} | changed)
    if job.run.read_json("scores.json").get("params") == json.loads(json.dumps(job.params)):
        return
    history = job.train()
    untrained = job.run.read_json("result.json")["results"][job.tested_on]["untrained"]
    scores = {}
    for dataset in test["datasets"]:
        data = load_dataset(dataset)
        splits = (eval_loader(split, job.model.input_size) for split in (data.query, data.gallery))
        features = (extract_features(job.model, split, flip=test.get("flip", False)) for split in splits)
        scores[dataset] = evaluate_ranking(*ranking_inputs(*features), metric=job.recipe.metric).to_dict()
        scores |= {UNTRAINED: untrained} if dataset == job.tested_on else {}
    job.run.write_json(
        "scores.json",
        {
            "params": job.params,
            "scores": {data: {score: row[score] for score in SCORES} for data, row in scores.items()},
            "seconds": sum(row.get("seconds", 0) + row.get("eval_seconds", 0) for row in history),
        },
    )


def read_scores(name: str) -> dict[str, dict[str, float]]:
    """The scores of a run that has ended, by dataset; else an empty dict."""
    from reidlib.run_folder import RunFolder

    return RunFolder(RunFolder.folder(f"{FOLDER}/{name}")).read_json("scores.json").get("scores", {})


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent; no deviation of a single value."""
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def write_table() -> None:
    """Write demo.md from all runs that have ended."""
    import torch

    from reidlib.files import whole_file

    named = {f"{isa}-{seed}": (isa, seed) for seed in SEEDS for isa in INSTRUCTIONS}
    runs = {name: scores for name in named if (scores := read_scores(name))}
    lines = [
        "# Scores of the demo",
        "",
        f"{processor()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; by `python benchmarks/demo.py`.",
        "",
        f"`make demo` from {len(SEEDS)} seeds, each with all instructions of the processor and with those up to AVX2:",
        "mean and standard deviation in percent. Features are those of the image and its mirror image, averaged,",
        "except before training. README.md and docs/data.md quote this table.",
        "",
        "| dataset | Rank-1 | mAP | mINP |",
        "|---|--:|--:|--:|",
    ]
    for data in next(iter(runs.values()), {}):
        cells = [spread([scores[data][score] for scores in runs.values()]) for score in SCORES]
        lines.append(f"| {data} | {' | '.join(cells)} |")
    lines += [
        "",
        "Rank-1 / mAP of each run:",
        "",
        "| instructions | seed | " + " | ".join(next(iter(runs.values()), {})),
    ]
    lines[-1] += " |"
    lines.append("|---|--:|" + "--:|" * len(next(iter(runs.values()), {})))
    for name, scores in runs.items():
        isa, seed = named[name]
        lines.append(f"| {isa} | {seed} | {' | '.join(pair(row) for row in scores.values())} |")
    lines += network_lines()
    with TRIED.open(encoding="utf-8", newline="") as file:
        tried = list(csv.reader(file))
    lines += ["", "## What was tried", "", TRIED_CAPTION, "", f"| {' | '.join(tried[0])} |", "|---|---|" + "--:|" * 4]
    lines += [f"| {' | '.join(row)} |" for row in tried[1:]]
    with whole_file(TABLE) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def network_lines() -> list[str]:
    """The section of the table on networks; empty before there are runs."""
    rows = []
    for model, rate in NETWORKS:
        scores = [read_scores(f"{model}-{rate:g}-{seed}").get("synthetic-small") for seed in (0, 1)]
        if all(scores):
            cells = [spread([row[score] for row in scores]) for score in ("rank1", "mAP")]
            singles = ", ".join(pair(row) for row in scores)
            rows.append(f"| {model} | {rate:g} | {cells[0]} | {cells[1]} | {singles} |")
    if not rows:
        return []
    return [
        "",
        "## Does a better network do better?",
        "",
        f"{SHORT} epochs of the demo, without supervised contrast, clipping and the longer warm-up, on",
        "`synthetic-small`, seeds 0 and 1, all instructions, features as above; by `python benchmarks/demo.py",
        "--networks`. At the small network's learning rate the largest one is the worst.",
        "",
        "| network | learning rate | Rank-1 | mAP | single runs |",
        "|---|--:|--:|--:|---|",
        *rows,
    ]


def pair(row: Mapping[str, float]) -> str:
    return f"{100 * row['rank1']:.1f} / {100 * row['mAP']:.1f}"


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help="train one run, in this process")
    parser.add_argument("--networks", action="store_true", help="train the networks, in this process")
    args = parser.parse_args()
    if args.networks:
        for model, rate in NETWORKS:
            for seed in (0, 1):
                settings = {"losses": [], "clip": 0.0, "warmup": 0.5}  # as the demo was when these were trained
                train(f"{model}-{rate:g}-{seed}", seed, model=model, lr=rate, epochs=SHORT, settings=settings)
                write_table()
        return
    if args.run:
        train(args.run[0], int(args.run[1]))
        return
    for seed in SEEDS:
        for isa, variables in INSTRUCTIONS.items():
            print(f"{time.strftime('%H:%M:%S')} seed {seed}, instructions: {isa}", flush=True)
            command = [sys.executable, __file__, "--run", f"{isa}-{seed}", str(seed)]
            one_thread = {"OMP_NUM_THREADS": "1"}  # as in the Makefile
            subprocess.run(command, env=os.environ | one_thread | variables, check=True)
            write_table()


if __name__ == "__main__":
    main()
