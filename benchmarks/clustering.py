"""What a clustering step costs: neighbours, the Jaccard graph and DBSCAN, on drawn clusters, by one thread.

    python benchmarks/clustering.py [--counts 12936 32621] [--dim 2048]

Each case in a process of its own; seconds are the processor's, memory is the process's peak. Writes clustering.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from reidlib.files import whole_file

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


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[12936, 32621])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--only", nargs=2, metavar=("COUNT", "NOISE"), help="one case in this process, as JSON")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(int(args.only[0]), args.dim, float(args.only[1]))))
        return
    lines = [
        "# Clustering without a matrix of all pairs",
        "",
        f"{args.dim} numbers a feature, clusters of some 17 images, k1 30, k2 6, eps 0.6, one thread of a CPU,",
        f"{time.strftime('%F')}; by `python benchmarks/clustering.py`. Seconds are the processor's. Of the memory,",
        '"before" is what the libraries and the features take.',
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
            with whole_file(Path(__file__).with_suffix(".md")) as part:
                part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
