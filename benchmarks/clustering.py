"""What a clustering step costs, and whether training on clusters learns.

    python benchmarks/clustering.py [--counts 12936 32621] [--dim 2048]
    python benchmarks/clustering.py --learning SEED [SEED ...] [--only-run NAME]

Cost: neighbours, the Jaccard graph and DBSCAN, on drawn clusters, by one thread; each case in a process of its own;
seconds are the processor's, memory is the process's peak. Learning: the runs of `RUNS`, on drawn people, into the runs
folder below `clustering/`; one that was interrupted is resumed, one that is finished is only read. Either rewrites its
part of clustering.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from reidlib.files import whole_file

TABLE = Path(__file__).with_suffix(".md")
LEARNING = "## Does it learn?"

NOISE = {"easy": 1.0, "hard": 3.0, "hopeless": 4.0}  # length of what is added to a center of length 1


def drawn(count: int, dim: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit features (N, D) float32 around centers of some 17 images each, and their clusters (N,)."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((max(1, count // 17), dim), dtype=np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    which = rng.integers(0, len(centers), count)
    feats = np.empty((count, dim), np.float32)
    for start in range(0, count, 1000):
        part = centers[which[start : start + 1000]]
        part = part + noise / dim**0.5 * rng.standard_normal(part.shape, dtype=np.float32)
        feats[start : start + 1000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return feats, which


def measure(count: int, dim: int, noise: float) -> dict[str, float]:
    """Processor seconds by step, peak memory in MiB and what was found, in this process."""
    import torch

    from reidlib.evaluation import jaccard_graph, reranking
    from reidlib.training import cluster_quality, pseudo_labels

    torch.set_num_threads(1)
    feats, which = drawn(count, dim, noise)
    pseudo_labels(jaccard_graph(feats[:300]))  # compiles
    before, row = _peak(), {}
    search = reranking.search

    def timed(*args, **named):  # noqa: ANN002, ANN003, ANN202
        start = time.process_time()
        found = search(*args, **named)
        row["search"] = row.get("search", 0) + time.process_time() - start
        return found

    reranking.search = timed
    start = time.process_time()
    graph = jaccard_graph(feats)
    row["graph"] = time.process_time() - start - row["search"]
    start = time.process_time()
    labels = pseudo_labels(graph)[0]
    row["dbscan"] = time.process_time() - start
    quality = cluster_quality(labels, truth=which)
    return row | quality | {"before": before, "peak": _peak(), "entries": graph.nnz / count}


# OSNet x0.25 at 128 x 64. "trunk" classifies the people of `synthetic_b`, as the notebook `pretrain` does, for longer.
_SMALL = {"height": 128, "width": 64, "interpolation": "bilinear", "people": 8, "images": 4, "optimizer": "adamw"}
_SMALL |= {"lr": 2e-3, "weight_decay": 0.05, "schedule": "cosine", "milestones": [], "bn_group": 0, "k1": 15, "k2": 4}
_SMALL |= {"eps": 0.5, "augment": ["random_camera", "random_flip"], "check_clusters": False}
_LABELS = {"recipe": "toy", "settings": {"epochs": 6, "people": 16, "eval_every": 6, "keep": "last"}}
RUNS: dict[str, dict[str, Any]] = {
    "trunk": {"task": "pretrain", "recipe": "toy", "dataset": "synthetic_b-small", "epochs": 16},
    "unlabelled": {
        "recipe": "cluster_contrast",
        "dataset": "synthetic-small",
        "init": "trunk",
        "settings": _SMALL | {"epochs": 12, "steps": 45, "eval_every": 4},
    },
    "labelled": _LABELS | {"dataset": "synthetic-small", "init": "trunk"},
    "source": _LABELS | {"dataset": "synthetic-small", "tested_on": "synthetic_b-small"},
    "adapted": {
        "recipe": "spcl_uda",
        "source": "synthetic-small",
        "dataset": "synthetic_b-small",
        "init": "source",
        "settings": _SMALL | {"epochs": 6, "steps": 90, "eval_every": 3},
    },
    "target": _LABELS | {"dataset": "synthetic_b-small", "init": "source"},
}


def learn(name: str, seed: int, *, train: bool = True) -> list[dict[str, Any]]:
    """The history of a run of `RUNS`; without `train` that of what is there, empty where it is not finished."""
    from reidlib.run_folder import RunFolder
    from reidlib.training import Job

    given = RUNS[name] | {"run": f"clustering/{name}-{seed}", "seed": seed, "model": "osnet_x0_25", "cpu": True}
    if "init" in given:
        given["init"] = str(RunFolder.folder(f"clustering/{given['init']}-{seed}"))
    job = Job.from_params(given)
    if train:
        return job.train(lambda history: print(name, seed, history[-1], flush=True))
    return job.run.metrics if job.run.is_run and job.run.state.get("state") == "ended" else []


def learning_lines(seeds: list[int]) -> list[str]:
    """What the finished runs of these seeds reached."""
    found = {name: {s: h for s in seeds if (h := learn(name, s, train=False))} for name in RUNS}
    scores = {name: {s: 100 * h[-1]["mAP"] for s, h in by.items()} for name, by in found.items() if name != "trunk"}
    scores["start"] = {s: 100 * h[0]["mAP"] for s, h in found["unlabelled"].items()}

    def cell(values: list[float], unit: str = "") -> str:
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        return f"{mean(values):.1f}{spread}{unit}" if values else "–"

    def share(part: str, base: str, whole: str) -> list[float]:
        part_of, base_of, whole_of = (scores.get(n, {}) for n in (part, base, whole))
        both = [s for s in part_of if s in whole_of and (not base or s in base_of)]
        zero = {s: base_of[s] if base else 0.0 for s in both}
        return [100 * (part_of[s] - zero[s]) / (whole_of[s] - zero[s]) for s in both]

    names = {
        "start": "the trunk, on `synthetic-small`",
        "unlabelled": "from it, `cluster_contrast` without labels",
        "labelled": "from it, with labels",
        "source": "trained on `synthetic-small`, on `synthetic_b-small`",
        "adapted": "from it, `spcl_uda` without labels of `synthetic_b-small`",
        "target": "from it, with labels of `synthetic_b-small`",
    }
    lines = ["| | seeds | mAP, % | clusters against people, ARI by epoch (first seed) |", "|---|--:|--:|---|"]
    for name, words in names.items():
        history = next(iter(found.get(name, {}).values()), [])
        aris = " ".join(f"{row['ari']:.2f}" for row in history if "ari" in row)
        lines.append(f"| {words} | {len(scores[name])} | {cell(list(scores[name].values()))} | {aris} |")
    alone, closed = share("unlabelled", "", "labelled"), share("adapted", "source", "target")
    lines += [
        "",
        f"Without labels `cluster_contrast` reaches {cell(alone, ' %')} of what as many images with",
        "labels do (asked for: 60 %).",
        f"`spcl_uda` closes {cell(closed, ' %')} of the gap between direct transfer and labels of the",
        "target (asked for: 40 %).",
    ]
    return lines


def _seeds() -> set[int]:
    """The seeds of the runs that are there."""
    from reidlib.run_folder import RunFolder

    return {int(path.name.rpartition("-")[2]) for path in RunFolder.folder("clustering").glob("*-*")}


def write_part(lines: list[str], *, learning: bool) -> None:
    """Write one of the two parts of the page, and leave the other as it is."""
    before = TABLE.read_text() if TABLE.is_file() else ""
    cost, _, learned = before.partition(LEARNING)
    text = "\n".join(lines) + "\n"
    cost, learned = (cost, text) if learning else (text + "\n", learned)
    with whole_file(TABLE) as part:
        part.write_text(cost.rstrip() + "\n" + (f"\n{LEARNING}{learned}" if learned else ""))


def torch_alone() -> float:
    """Peak memory in MiB of a process that imports torch and does nothing."""
    code = "import resource, torch; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    kib = float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)
    return kib / (2**20 if sys.platform == "darwin" else 2**10)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[12936, 32621])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--learning", type=int, nargs="+", metavar="SEED", help="train the runs of these seeds")
    parser.add_argument("--only-run", choices=RUNS, help="of them, train this one alone")
    parser.add_argument("--only", nargs=2, metavar=("COUNT", "NOISE"), help="one case in this process, as JSON")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(int(args.only[0]), args.dim, float(args.only[1]))))
        return
    if args.learning:
        for seed in args.learning:
            for name in [args.only_run] if args.only_run else RUNS:
                learn(name, seed)
        about = "OSNet x0.25 at 128 x 64, one thread, by `python benchmarks/clustering.py --learning` and the seeds;"
        about += " settings are `RUNS` in that file. The last epoch counts."
        write_part(["", "", about, "", *learning_lines(sorted({*args.learning, *_seeds()}))], learning=True)
        return
    lines = [
        "# Clustering without a matrix of all pairs",
        "",
        f"{args.dim} numbers a feature, clusters of some 17 images, k1 30, k2 6, eps 0.6, one thread of a CPU,",
        f"{time.strftime('%F')}; by `python benchmarks/clustering.py`. Seconds are the processor's. Of the memory,",
        f'"before" is what the libraries and the features take; `import torch` alone takes {torch_alone():.0f} MiB.',
        "",
        "| images | clusters | search, s | graph, s | DBSCAN and table, s | before, MiB | peak, MiB | outliers | ARI |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for count in args.counts:
        for name, noise in NOISE.items():
            command = [sys.executable, __file__, "--dim", str(args.dim), "--only", str(count), str(noise)]
            r = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            costs = " | ".join(f"{r[key]:.2f}" for key in ("search", "graph", "dbscan"))
            memory = f"{r['before']:.0f} | {r['peak']:.0f}"
            lines.append(f"| {count:,} | {name} | {costs} | {memory} | {r['outliers']:.0%} | {r['ari']:.2f} |")
            print(lines[-1], flush=True)
            write_part(lines, learning=False)


if __name__ == "__main__":
    main()
