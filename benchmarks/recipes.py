"""Do the richer recipes do no worse than the plain one? Each in small, three seeds, on drawn people.

    python benchmarks/recipes.py [--epochs 20] [--size 64 32] [--seeds 3] [--recipes bot,agw]

Recipes are made for a trunk that knows images already. ImageNet's part is played by drawn people of other cameras and
clothes: OSNet ×0.25 is trained on `synthetic_b-small` first, and every recipe begins with that trunk and goes on with
`synthetic-small`, its lengths scaled down, its rate as published. Runs are left in the runs folder, under `recipes/`:
what was interrupted goes on. Writes recipes.md, with all lengths and recipes of which every seed is there.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

import reidlib
from reidlib.files import whole_file
from reidlib.models.heads import Head
from reidlib.models.zoo import MODELS
from reidlib.paths import runs_root
from reidlib.seeds import seeded
from reidlib.training import RECIPES, Recipe, Setup, fit
from reidlib.workbook.runs import Run

TRUNK = "osnet_x0_25"
HEADS = {  # what each recipe's own model has on its trunk
    "bot": partial(Head, neck="bn"),
    "agw": partial(Head, pool="gem", neck="bn"),
    "sbs": partial(Head, pool="gem", neck="bn", metric_feats="after", classifier="cosine"),
}
OURS = ("torchreid_softmax", "bot", "sbs", "agw", "xent_htri")
PLAIN = OURS[0]


def trained(name: str, recipe: Recipe, data: reidlib.ReIDDataset, size: tuple, begun: Run | None) -> Run:
    """The run recipes/<name>, trained as far as it was not yet."""
    head = HEADS.get(name.split("-")[0])
    model = f"{TRUNK}_{name.split('-')[0]}" if head else TRUNK
    MODELS[model] = replace(MODELS[TRUNK], head=head or MODELS[TRUNK].head)
    run = Run.create(f"recipes/{name}", {"recipe": name, "seed": recipe.seed})
    if len(run.metrics) > recipe.epochs:
        return run
    with seeded(recipe.seed, "weights"):
        net = reidlib.create_model(model, num_classes=data.num_classes, input_size=size)
    if begun:
        net.network.backbone.load_state_dict(begun.load_model("cpu").network.backbone.state_dict())
        net.init = begun.name
    fit(net, data, run, recipe, Setup(cpu=True))
    return run


def last(name: str, epochs: int) -> dict[str, float] | None:
    """The scores that the run recipes/<name> ended with, if it has."""
    metrics = Run.create(f"recipes/{name}", {}).metrics
    return metrics[-1] if len(metrics) > epochs else None


def spread(values: list[float]) -> str:
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}" if len(values) > 1 else f"{100 * values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 32))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default=",".join(OURS))
    args = parser.parse_args()
    size, names = tuple(args.size), args.recipes.split(",")
    torch.set_num_threads(1)
    other, data = (reidlib.load_dataset(f"{name}-small") for name in ("synthetic_b", "synthetic"))
    toy = replace(RECIPES["toy"], height=0, width=0, epochs=20, eval_every=20)
    begun = trained("begun", toy, other, size, None)
    for seed in range(args.seeds):
        for name in names:
            recipe = replace(RECIPES[name].scaled(args.epochs), eval_every=args.epochs, seed=seed)
            metrics = trained(f"{name}-{args.epochs}-{seed}", recipe, data, size, begun).metrics
            print(f"{name}, seed {seed}: mAP {metrics[0]['mAP']:.1%} → {metrics[-1]['mAP']:.1%}", flush=True)
    lines = [
        "# Recipes in small",
        "",
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; by `python benchmarks/recipes.py`.",
        "",
        f"Percent on `synthetic-small` at {size[0]} × {size[1]}: mean and standard deviation of {args.seeds} seeds,",
        "after so many epochs of each recipe, scaled down to them and to batches of 32, its rate as published.",
        "All begin with one trunk, OSNet ×0.25 trained on `synthetic_b-small` for 20 epochs. The last column is",
        "the difference in mAP, seed by seed.",
        "",
        f"| epochs | recipe | Rank-1 | mAP | mINP | against {PLAIN} |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    lengths = sorted({int(path.name.split("-")[1]) for path in runs_root().glob("recipes/*-*-*")})
    for epochs in lengths:
        plain: list[dict[str, float]] = []
        for name in OURS:
            rows = [last(f"{name}-{epochs}-{seed}", epochs) for seed in range(args.seeds)]
            if not all(rows):
                continue
            plain = rows if name == PLAIN else plain
            apart = spread([a["mAP"] - b["mAP"] for a, b in zip(rows, plain, strict=False)] or [0.0])
            scores = " | ".join(spread([row[key] for row in rows]) for key in ("rank1", "mAP", "mINP"))
            lines.append(f"| {epochs} | {name} | {scores} | {apart if plain and name != PLAIN else ''} |")
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
