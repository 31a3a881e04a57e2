"""The inner loops of the evaluator: exact distances, and counting what lies ahead of each right match.

An exact distance is float64 arithmetic in one fixed order: D terms are added by halving (term i to term i + ceil(n/2),
until one is left). Every step is a separate, correctly rounded IEEE operation on independent elements, so numba on any
processor and torch on any device give the same bits, whatever the block size or the number of threads.

The cosine is taken as the root of (q·g)² / (q·q g·g): where these three sums are exact (counts, binary codes, any small
multiples of one step), equal cosines give equal distances, however long the rows are.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numba
import numpy as np
import torch
from torch import Tensor

CHUNK = 512  # terms of a dot product that one matrix product adds up: see `product_error`
STRIP = 64  # scores that are looked at together when searching for the doubtful ones


def kind(device: torch.device) -> str:
    """How tiles are counted there: "numba", "triton" (fused.py) or "torch" (any other device)."""
    if device.type == "cpu":
        return "numba"
    return "triton" if device.type == "cuda" and find_spec("triton") else "torch"


def njit(function: Callable) -> Callable:
    """Compiled on first use, without the interpreter's lock, and cached on disk where a folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder to cache in
        return numba.njit(nogil=True)(function)


def product_error(dim: int, rounding: float = 0.0, step: float = 2.0**-24, chunk: int = CHUNK) -> float:
    """A c such that |computed q·g - q·g| <= c |q| |g| for the chunked products of this file, in any order of addition.

    A sum of n products, each addition rounded by at most `step` relatively, errs by at most n step sum|q_i g_i|, and
    sum|q_i g_i| <= |q| |g|. Chunks of 512 terms, then ceil(dim / 512) additions, make n = 512 + dim / 512, not dim: for
    2,048 terms a bound 4 times narrower, in the same time. `rounding` is the relative rounding of the factors before
    they are multiplied (float32: 0, TF32: 2^-11, bfloat16: 2^-8), which enters twice. Tensor cores cut where a CPU
    rounds: `step` 2^-23. The 8 in the sum covers the cast of other inputs to float32 and the scaling by a norm; 1.01
    covers all products of small terms.
    """
    return 1.01 * ((min(dim, chunk) + -(-dim // chunk) + 8) * step + 2 * rounding)


# ---- exact distances -------------------------------------------------------------------------------------------------


def fold(x: Tensor) -> Tensor:
    """Sum over the last dimension by halving. Float64 (..., D) → (...); `x` is overwritten."""
    while (n := x.shape[-1]) > 1:
        half = (n + 1) // 2
        x[..., : n - half] += x[..., half:]
        x = x[..., :half]
    return x[..., 0]


@njit
def _fold(x, n):  # noqa: ANN001, ANN202
    while n > 1:
        half = (n + 1) // 2
        low, high = x[: n - half], x[half:n]  # two views: the compiler sees that they do not overlap
        for i in range(n - half):
            low[i] += high[i]
        n = half
    return x[0]


@njit
def _distance(q, g, q_square, g_square, cosine, x):  # noqa: ANN001, ANN202
    if cosine:
        for i in range(len(q)):
            x[i] = np.float64(q[i]) * np.float64(g[i])
        dot = _fold(x, len(q))
        return 1.0 - math.copysign(math.sqrt(dot * dot / (q_square * g_square)), dot)
    for i in range(len(q)):
        difference = np.float64(q[i]) - np.float64(g[i])
        x[i] = difference * difference
    return _fold(x, len(q))


@njit
def _squares(rows, start, stop, out):  # noqa: ANN001, ANN202
    x = np.empty(rows.shape[1])
    for r in range(start, stop):
        for i in range(len(x)):
            x[i] = np.float64(rows[r, i]) * np.float64(rows[r, i])
        out[r] = _fold(x, len(x))


@njit
def _distances(q, g, q_square, g_square, cosine, qi, gi, start, stop, out):  # noqa: ANN001, ANN202
    x = np.empty(q.shape[1])
    for n in range(start, stop):
        out[n] = _distance(q[qi[n]], g[gi[n]], q_square[qi[n]], g_square[gi[n]], cosine, x)


def threaded(kernel, count: int, *args) -> list:  # noqa: ANN001, ANN002
    """Call kernel(*args[:-1], start, stop, args[-1]) over range(count), split over torch's number of threads.

    Returns:
        What each call returns, in order.
    """
    edges = np.linspace(0, count, max(1, min(torch.get_num_threads(), count // 64)) + 1).astype(np.int64).tolist()
    if len(edges) == 2:
        return [kernel(*args[:-1], 0, count, args[-1])]
    with ThreadPoolExecutor(len(edges) - 1) as pool:
        return list(pool.map(lambda a, b: kernel(*args[:-1], a, b, args[-1]), edges[:-1], edges[1:]))


def squares(rows: Tensor) -> Tensor:
    """Squared norms (N,) float64 of `rows` (N, D), float32 or float64, in the fixed order."""
    if kind(rows.device) == "numba":
        out = torch.empty(len(rows), dtype=torch.float64)
        threaded(_squares, len(rows), rows.numpy(), out.numpy())
        return out
    return torch.cat([fold(part.double().square()) for part in rows.split(_portion(rows))])


def root(x: Tensor) -> Tensor:
    """The correctly rounded square root of float64 numbers. On a CPU `Tensor.sqrt` is not: it differs by processor."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def distances(q: Tensor, g: Tensor, q_square: Tensor, g_square: Tensor, cosine: bool, qi: Tensor, gi: Tensor) -> Tensor:
    """Exact distances (P,) float64 of the pairs (q[qi], g[gi]): 1 - cosine, or the squared euclidean distance.

    q (Q, D) and g (G, D) float32 or float64, their `squares` (not 0 if `cosine`), and indices (P,) int64.
    """
    out = torch.empty(len(qi), dtype=torch.float64, device=q.device)
    if kind(q.device) == "numba":
        arrays = (t.numpy() for t in (q, g, q_square, g_square))
        threaded(_distances, len(qi), *arrays, cosine, qi.numpy(), gi.numpy(), out.numpy())
        return out
    step = _portion(q)
    for s in range(0, len(qi), step):
        i, j = qi[s : s + step], gi[s : s + step]
        a, b = q[i].double(), g[j].double()
        if cosine:
            dot = fold(a.mul_(b))
            out[s : s + step] = 1.0 - root(dot * dot / (q_square[i] * g_square[j])).copysign(dot)
        else:
            out[s : s + step] = fold(a.sub_(b).square_())
    return out


def _portion(rows: Tensor) -> int:
    """Rows that are handled together so that float64 copies stay near 32 MiB."""
    return max(1, (1 << 22) // rows.shape[1])


# ---- counting --------------------------------------------------------------------------------------------------------


@njit
def count(
    scores, scale, shift, keep, q, g, q_square, g_square, cosine,  # noqa: ANN001
    first_q, first_g, ptr, pair_g, kept, exact, lo, hi, start, stop, ahead,  # noqa: ANN001
) -> None:  # fmt: skip
    """Add to `ahead` (P,) the kept wrong items of a tile that come before each right match: see ranking.py.

    Rows start:stop of the tile's `scores` (queries from `first_q`, gallery from `first_g`; overwritten). A score surely
    above `hi` counts, one surely below `lo` does not, one between is decided by its exact distance, then by index.
    """
    x, memo = np.empty(q.shape[1]), np.empty(scores.shape[1])
    for i in range(start, stop):
        row = scores[i]
        for j in range(len(row)):
            row[j] = row[j] * scale[j] - shift[j] if keep[j] else -np.inf
        pairs = range(ptr[first_q + i], ptr[first_q + i + 1])
        for p in pairs:
            if 0 <= pair_g[p] - first_g < len(row):
                row[pair_g[p] - first_g] = -np.inf
        fresh = True
        for p in pairs:
            low, high, above, maybe = lo[p], hi[p], np.int32(0), np.int32(0)
            if not kept[p]:
                continue
            for j in range(len(row)):
                maybe = np.int32(maybe + np.int32(not row[j] < low))  # so that NaN counts as doubtful
            if maybe == 0:
                continue
            for j in range(len(row)):
                above = np.int32(above + np.int32(row[j] > high))
            ahead[p] += above
            if above == maybe:
                continue
            if fresh:
                fresh = False
                memo[:] = np.nan
            for s in range(0, len(row), STRIP):
                strip, doubtful = row[s : s + STRIP], np.int32(0)
                for j in range(len(strip)):
                    doubtful = np.int32(doubtful + np.int32(not (strip[j] < low or strip[j] > high)))
                if doubtful == 0:
                    continue
                for j in range(s, s + len(strip)):
                    if row[j] < low or row[j] > high or row[j] == -np.inf:
                        continue
                    if np.isnan(memo[j]):
                        memo[j] = _distance(q[i], g[j], q_square[i], g_square[j], cosine, x)
                    ahead[p] += memo[j] < exact[p] or (memo[j] == exact[p] and first_g + j < pair_g[p])


@njit
def count_in_matrix(matrix, keep, first_q, ptr, pair_g, kept, exact, start, stop, ahead):  # noqa: ANN001, ANN201
    """The same for rows start:stop of a matrix of distances, queries from `first_q`, whose rows are overwritten."""
    for i in range(start, stop):
        row = matrix[i]
        for j in range(len(row)):
            row[j] = row[j] if keep[j] else np.inf
        pairs = range(ptr[first_q + i], ptr[first_q + i + 1])
        for p in pairs:
            row[pair_g[p]] = np.inf
        for p in pairs:
            if kept[p]:
                nearer = np.int32(0)
                for j in range(len(row)):
                    nearer = np.int32(nearer + np.int32(row[j] < exact[p]))
                for j in range(pair_g[p]):
                    nearer = np.int32(nearer + np.int32(row[j] == exact[p]))
                ahead[p] += nearer


def screen(
    scores: Tensor, out: Tensor, low: Tensor, high: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Screen a tile in plain torch, for any device, one column of thresholds (Q, P) float32 at a time.

    Scores (Q, G) are overwritten; items `out` (Q, G) do not count; where there is no threshold, `low` is +inf. Yields
    the column as a slice, how many scores are surely above it (Q, 1), and what is in doubt: queries, columns, items.
    """
    scores.masked_fill_(out, -torch.inf)
    for column in range(low.shape[1]):
        lo, hi = low[:, column, None], high[:, column, None]
        above = scores > hi
        query, item = (~(above | (scores < lo) | out) & (lo < torch.inf)).nonzero(as_tuple=True)
        yield slice(column, column + 1), above.sum(1, keepdim=True), query, torch.full_like(query, column), item
