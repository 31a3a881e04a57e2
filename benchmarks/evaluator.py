"""What ranking costs: this evaluator, the bare matrix product, and the plain ways, in one process. Writes evaluator.md.

    python benchmarks/evaluator.py [--threads 1] [--shapes market,duke,msmt17,million]

Features are drawn: 64 latent dimensions (identity, camera, noise), spread to the shape's by a random matrix and a ReLU,
which leaves similarities as broad as trained ones. The plain ways run on some of the queries where all would take too
long; their time is then scaled up, and the table says so. Memory is the highest resident size above the one with the
features.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
from demo import processor
from measuring import measure
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.evaluation.ranking import evaluate_distances, evaluate_ranking
from reidlib.evaluation.reranking import rerank
from reidlib.files import whole_file

SHAPES = {  # queries, gallery, dimensions, identities in the gallery, cameras
    "market": (3368, 15913, 2048, 750, 6),
    "duke": (2228, 17661, 2048, 1110, 8),
    "msmt17": (11659, 82161, 2048, 3060, 15),
    "million": (1000, 1_000_000, 512, 50_000, 20),
}
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(shape: tuple[int, int, int, int, int], seed: int = 0) -> Problem:
    """Query and gallery features, pids and camids of one of SHAPES, on the CPU."""
    num_query, num_gallery, dim, people, cameras = shape
    rng = torch.Generator().manual_seed(seed)
    person, camera = torch.randn(people, 64, generator=rng), torch.randn(cameras, 64, generator=rng)
    spread = torch.randn(64, dim, generator=rng)

    def side(count: int) -> tuple[Tensor, Tensor, Tensor]:
        pids, camids = (torch.randint(n, (count,), generator=rng) for n in (people, cameras))
        feats = torch.empty(count, dim)
        for part in torch.arange(count).split(8192):
            latent = person[pids[part]] + 0.5 * camera[camids[part]]
            feats[part] = torch.relu((latent + torch.randn(len(part), 64, generator=rng)) @ spread)
        return feats, pids, camids

    (q, q_pids, q_camids), (g, g_pids, g_camids) = side(num_query), side(num_gallery)
    return q, g, q_pids, g_pids, q_camids, g_camids


def product(q: Tensor, g: Tensor, *_: Tensor) -> None:
    """All similarities, in tiles, each overwritten by the next: nothing less can rank them."""
    rows, columns = (1024, 1024) if q.device.type == "cpu" else (8192, 16384)
    out = torch.empty(rows, columns, device=q.device, dtype=q.dtype)
    for b in g.split(columns):
        for a in q.split(rows):
            torch.mm(a, b.T, out=out[: len(a), : len(b)])


def by_numpy(q: Tensor, g: Tensor, *ids: Tensor) -> float:
    """One stable argsort a query."""
    q_pids, g_pids, q_camids, g_camids = (i.numpy() for i in ids)
    q, g, aps = normalize(q).numpy(), normalize(g).numpy(), []
    for start in range(0, len(q), 64):
        for i, similarity in enumerate(q[start : start + 64] @ g.T, start):
            order = np.argsort(-similarity, kind="stable")
            order = order[(g_pids[order] != q_pids[i]) | (g_camids[order] != q_camids[i])]
            match = g_pids[order] == q_pids[i]
            if match.any():
                aps.append((match.cumsum()[match] / (np.flatnonzero(match) + 1)).mean())
    return float(np.mean(aps))


def by_torch(q: Tensor, g: Tensor, q_pids: Tensor, g_pids: Tensor, q_camids: Tensor, g_camids: Tensor) -> float:
    """One argsort a query."""
    q, g, aps = normalize(q), normalize(g), []
    for start in range(0, len(q), 64):
        for i, similarity in enumerate(q[start : start + 64] @ g.T, start):
            order = similarity.argsort(descending=True)
            order = order[(g_pids[order] != q_pids[i]) | (g_camids[order] != q_camids[i])]
            match = g_pids[order] == q_pids[i]
            if match.any():
                aps.append((match.cumsum(0)[match] / (match.nonzero()[:, 0] + 1)).mean())
    return torch.stack(aps).mean().item()


def by_torchmetrics(q: Tensor, g: Tensor, q_pids: Tensor, g_pids: Tensor, q_camids: Tensor, g_camids: Tensor) -> float:
    """RetrievalMAP; scores are shifted above 0, since it takes a match scored 0 or less for a wrong item."""
    from torchmetrics.retrieval import RetrievalMAP

    metric = RetrievalMAP(empty_target_action="skip", ignore_index=-1)
    similarity = 2 + normalize(q) @ normalize(g).T
    same = q_pids[:, None] == g_pids
    target = same.long().masked_fill_(same & (q_camids[:, None] == g_camids), -1)
    index = torch.arange(len(q), device=q.device)[:, None].expand_as(target)
    metric.update(similarity.flatten(), target.flatten(), index.flatten())
    return metric.compute().item()


def dense_rerank(q: np.ndarray, g: np.ndarray, k1: int = 20, k2: int = 6, mix: float = 0.3) -> np.ndarray:
    """k-reciprocal encoding with whole matrices in numpy, as published."""
    x = np.concatenate([q, g])
    square = (x * x).sum(1)
    d = np.maximum(square[:, None] + square - 2 * (x @ x.T), 0)
    d /= d.max(1, keepdims=True)
    order = np.argsort(d).astype(np.int32)
    v = np.zeros_like(d)

    def mutual(i: int, k: int) -> np.ndarray:
        forward = order[i, :k]
        return forward[(order[forward, :k] == i).any(1)]

    for i in range(len(x)):
        core = members = mutual(i, k1 + 1)
        for j in core:
            more = mutual(j, round(k1 / 2) + 1)
            if len(np.intersect1d(more, core)) > 2 / 3 * len(more):
                members = np.append(members, more)
        members = np.unique(members)
        weight = np.exp(-d[i, members])
        v[i, members] = weight / weight.sum()
    d = d[: len(q), len(q) :]
    v = np.stack([v[order[i, :k2]].mean(0) for i in range(len(x))])
    holders = [np.flatnonzero(column) for column in v.T]
    out = np.empty_like(d)
    for i in range(len(q)):
        common = np.zeros(len(x), dtype=np.float32)
        for column in np.flatnonzero(v[i]):
            common[holders[column]] += np.minimum(v[i, column], v[holders[column], column])
        out[i] = 1 - common[len(q) :] / (2 - common[len(q) :])
    return (1 - mix) * out + mix * d


def argsort_queries(shape: tuple[int, ...]) -> int:
    """How many queries the plain ways run on."""
    return min(shape[0], max(10, 20_000_000 // shape[1]))


def ranking_rows(shape: str, threads: int) -> list[str]:
    problem = draw(SHAPES[shape])
    q, g = problem[:2]
    options = {"device": "cpu", "threads": threads}
    repeats = 3 if q.shape[0] * g.shape[0] * g.shape[1] < 2e11 else 1
    floor, *_ = measure(product, q, g, repeats=repeats, **options)
    rows = [f"| {shape} | {' x '.join(map(str, SHAPES[shape][:3]))} | the product alone | {floor:.2f} s | 1.00 | | | |"]
    total, memory, result = measure(evaluate_ranking, *problem, repeats=repeats, **options)
    rows.append(
        f"| | | **this evaluator** | {total:.2f} s | **{total / floor:.2f}** | {total - floor:.2f} s | {memory:.0f} MiB"
        f" | mAP {result.mAP:.4f} |"
    )
    count = argsort_queries(SHAPES[shape])
    for name, work in (
        ("numpy, stable argsort a query", by_numpy),
        ("torch, argsort a query", by_torch),
        ("torchmetrics RetrievalMAP", by_torchmetrics),
    ):
        few = count if work is not by_torchmetrics else max(10, count // 10)
        part = first_queries(problem, few)
        base, *_ = measure(product, *part[:2], **options)
        seconds, memory, value = measure(work, *part, **options)
        ranking, scale = seconds - base, len(q) / few
        off = abs(value - result.ap[:few].nanmean().item())
        label = f"{name}{f' ({few} queries)' if few < len(q) else ''}"
        rows.append(
            f"| | | {label} | {floor + ranking * scale:.1f} s | {1 + ranking * scale / floor:.1f}"
            f" | {ranking * scale:.1f} s | {memory:.0f} MiB | off by {off:.0e} |"
        )
    return rows


def first_queries(problem: Problem, count: int) -> Problem:
    """The same with the first `count` queries alone."""
    return tuple(t[:count] if i in (0, 2, 4) else t for i, t in enumerate(problem))


def rerank_rows(threads: int) -> list[str]:
    q, g, *ids = draw(SHAPES["market"])
    options = {"device": "cpu", "threads": threads}
    seconds, memory, distances = measure(rerank, q, g, **options)
    mean = evaluate_distances(distances, *ids).mAP
    rows = [f"| **this re-ranking** | {seconds:.1f} s | {memory:.0f} MiB | mAP {mean:.4f} |"]
    dense, much, matrix = measure(dense_rerank, q.numpy(), g.numpy(), **options)
    off = float(np.abs(matrix - distances.numpy()).max())
    rows.append(
        f"| dense, numpy | {dense:.1f} s ({dense / seconds:.1f} x) | {much:.0f} MiB | off by {off:.0e} at most |"
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small = draw(SHAPES["duke"])
    evaluate_ranking(*(t[:300] for t in small))  # compiled now, not while measured
    rerank(small[0][:50], small[1][:300])

    blas = (re.findall(r"Math Kernel Library Version \S+|OpenBLAS \S*|Accelerate", torch.__config__.show()) or ["?"])[0]
    vectors = torch.backends.cpu.get_cpu_capability()
    clock = "processor seconds" if options.threads == 1 else "seconds"
    lines = [
        "# What ranking costs",
        "",
        f"{processor()} ({vectors}), {options.threads} thread(s), {clock}, torch {torch.__version__} with {blas}, numpy"
        f" {np.__version__}, {time.strftime('%Y-%m-%d')}; by `python benchmarks/evaluator.py`, which says how.",
        "",
        "Times of one process. Ways run on fewer queries are scaled to all. Ranking is the time beyond the product;"
        " memory is above the features; the last column compares the mAP over the same queries.",
        "",
        "| shape | queries x gallery x dimensions | way | time | / product | ranking | memory | |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for shape in options.shapes.split(","):
        lines += ranking_rows(shape, options.threads)
        print("\n".join(lines[-5:]), flush=True)
    lines += ["", "k-reciprocal re-ranking, Market-1501's shape:", "", "| way | time | memory | |", "|---|--:|--:|---|"]
    lines += rerank_rows(options.threads)
    print("\n".join(lines[-2:]))
    with whole_file(options.out) as part:
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
