"""The weights "drawn": a network trained on drawn people alone, kept in the package. `make drawn-weights` runs this.

    python benchmarks/drawn_weights.py osnet_x0_25 osnet_x0_5   # train what is not trained, keep it, score it
    python benchmarks/drawn_weights.py --score                  # only the scores and the page, of what is kept

Draws `synthetic_wild-huge` (5 minutes on an idle core), trains in the STAGES below (resumed where interrupted, under
`drawn-weights/` in the runs folder), writes `reidlib/models/drawn/<model>/` (float16 weights without classifier,
and the card in model.json) and drawn_weights.md beside this script. Hours are in the card.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")
TRIED = Path(__file__).with_name("drawn_weights_tried.csv")
DATASET = "synthetic_wild-huge"
MODELS = ("osnet_x0_25", "osnet_x0_5")
# Each stage begins with the weights of the one before. A network that begins with the wild images stalls.
STAGES: tuple[dict[str, Any], ...] = (
    {"recipe": "demo", "dataset": "synthetic-small"},
    {"recipe": "drawn", "dataset": DATASET, "bfloat16": True, "num_processes": 2},
)
NOT = "Trained on drawn people alone: for a first answer without a download, not for a result. No benchmark winner."
PAGE = """\
# The weights "drawn"

By `make drawn-weights`. Of `synthetic_b` nothing was seen in training; of `synthetic-small` the first stage saw other
people in such clothes, before the same cameras. Rank-1 / mAP in percent, without flip, after rounding to float16.
"harder": the same images, by camera dark and noisy, of a third of the resolution, in a colour cast, or glaring.
Hours are those of a busy machine: 200 images take a second of one core.

"""
UNSEEN = ("synthetic_b-small", "synthetic-small")


def night_and_far(images: Tensor, camids: Tensor) -> Tensor:
    """A harder domain: by camera dark and noisy, far and blurred, in a strong cast, or in glaring light.

    Args:
        images: (B, 3, H, W) uint8.
        camids: (B,).

    Returns:
        uint8, as large as `images`.
    """
    from torch.nn.functional import interpolate

    generator = torch.Generator().manual_seed(0)
    x, size = images.float() / 255, images.shape[2:]
    noise = torch.randn(x.shape, generator=generator)
    grey = x.mean(1, keepdim=True)
    small = interpolate(x, [side // 3 for side in size], mode="bilinear", antialias=True)
    cast = torch.tensor([1.2, 0.95, 0.7]).view(3, 1, 1)
    domains = [
        (grey + 0.6 * (x - grey)) ** 1.8 + 0.05 * noise,
        interpolate(small, list(size), mode="bicubic") * 0.9 + 0.02 * noise,
        x**0.8 * cast + 0.02 * noise,
        (1.5 * (x - 0.4) + 0.5) ** 1.0,
    ]
    chosen = torch.stack(domains)[camids % len(domains), torch.arange(len(x))]
    return (255 * chosen.clamp(0, 1)).round().to(torch.uint8)


class Harder:
    """The batches of a loader in the harder domain."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch._replace(images=night_and_far(batch.images, batch.camids))


def train(name: str) -> tuple[Any, dict[str, Any]]:
    """Train `name` through its stages as far as it was not yet; returns the last job, and what the card says of it."""
    from reidlib.training import Job

    init, seconds, images, job = "", 0.0, 0, None
    for number, stage in enumerate(STAGES, start=1):
        run = f"drawn-weights/{name}-{number}"
        job = Job.from_params({"model": name, "run": run, "init": init, "cpu": True} | stage)
        history = job.train(on_epoch=lambda rows: print(rows[-1], flush=True))
        seconds += sum(row.get("seconds", 0) + row.get("eval_seconds", 0) for row in history)
        images += job.recipe.epochs * len(job.data.train)
        init = str(job.run.path)
    return job, {"hours": round(seconds / 3600, 2), "images_seen": images, "stages": list(STAGES)}


def keep(name: str, folder: Path, about: dict[str, Any]) -> None:
    """Write the weights of a run folder as float16 without classifier into the package, with the card."""
    from safetensors.torch import load_file, save_file

    from reidlib.files import sha256, whole_file
    from reidlib.models.weights import DRAWN
    from reidlib.run_folder import RunFolder

    state = load_file(folder / "model.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items() if "classifier" not in k}
    out = DRAWN / name
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "model.safetensors") as part:
        save_file(half, part)
    (out / "model.safetensors").chmod(0o644)
    made = RunFolder(folder).read_json("model.json")
    kept = ("name", "input_size", "feature_dim", "mean", "std", "interpolation", "trained_on")
    card = {key: made[key] for key in kept} | about | {"sha256": sha256(out / "model.safetensors"), "note": NOT}
    RunFolder(out).write_json("model.json", card)


def evaluate(model: torch.nn.Module, dataset: str, change: Callable[[Any], Any] = lambda loader: loader) -> Any:
    """Rank-1, mAP and mINP of a model on a dataset's query and gallery."""
    from reidlib import evaluate_ranking, extract_features, load_dataset
    from reidlib.data.loaders import eval_loader
    from reidlib.evaluation import ranking_inputs

    data = load_dataset(dataset)
    loaders = (change(eval_loader(split, (128, 64))) for split in (data.query, data.gallery))
    scores = evaluate_ranking(*ranking_inputs(*(extract_features(model, loader) for loader in loaders))).to_dict()
    return {score: round(scores[score], 4) for score in ("rank1", "mAP", "mINP")}


def score(model: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Scores on the drawn datasets that the weights never saw, and on the same images in the harder domain."""
    found = {name: evaluate(model, name) for name in UNSEEN}
    return found | {f"{name}, harder": evaluate(model, name, Harder) for name in UNSEEN}


def write_table() -> None:
    """Write drawn_weights.md from the cards in the package and from drawn_weights_tried.csv."""
    from reidlib.files import whole_file
    from reidlib.models.weights import DRAWN
    from reidlib.run_folder import RunFolder

    cards = [RunFolder(path.parent).read_json("model.json") for path in sorted(DRAWN.glob("*/model.json"))]
    lines = PAGE.splitlines()
    columns = list(cards[0]["scores"])
    lines += [f"| weights | images seen | hours | {' | '.join(columns)} |", "|---|--:|--:|" + "--:|" * len(columns)]
    for card in cards:
        for label, scores in (card["name"], card["scores"]), ("untrained", card["untrained"]):
            cells = [f"{100 * row['rank1']:.1f} / {100 * row['mAP']:.1f}" for row in scores.values()]
            seen = (f"{card['images_seen']:,}", f"{card['hours']}") if label == card["name"] else ("0", "0")
            lines.append(f"| {label} | {' | '.join((*seen, *cells))} |")
    lines += ["", NOT]
    if TRIED.exists():
        with TRIED.open(encoding="utf-8", newline="") as file:
            tried = list(csv.reader(file))
        lines += ["", "## What was tried", "", f"| {' | '.join(tried[0])} |", "|---" * len(tried[0]) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in tried[1:]]
    with whole_file(TABLE) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="what to train; default: both")
    parser.add_argument("--score", action="store_true", help="train nothing")
    args = parser.parse_args()
    import reidlib
    from reidlib.models.weights import DRAWN
    from reidlib.run_folder import RunFolder
    from reidlib.seeds import seeded

    for name in args.models:
        if not (args.score):
            job, about = train(name)
            keep(name, job.run.path, about)
        if not (DRAWN / name / "model.json").is_file():
            continue
        with seeded(0, "weights"):
            untrained = reidlib.create_model(name, input_size=(128, 64))
        card = RunFolder(DRAWN / name).read_json("model.json")
        scores = {"scores": score(reidlib.create_model(name, weights="drawn")), "untrained": score(untrained)}
        RunFolder(DRAWN / name).write_json("model.json", card | scores | {"date": time.strftime("%Y-%m-%d")})
    write_table()


if __name__ == "__main__":
    sys.exit(main())
