"""What may be done between extraction and ranking: re-ranking and query expansion.

Re-ranking: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Here encodings
are sparse rows and no N x N matrix exists: neighbour lists come from the blocks of ranking.py, Jaccard distances from
an inverted index. Equal to the dense form within float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidlib.errors import unknown_name
from reidlib.evaluation import kernels
from reidlib.evaluation.kernels import njit, threaded
from reidlib.evaluation.ranking import search
from reidlib.evaluation.spaces import (
    METRICS,
    Feats,
    Ids,
    Space,
    at_least_one,
    blocks,
    check_finite,
    common_exponent,
    full_precision,
    ordinary_rows,
    rows_of,
    scaled,
    tile_sizes,
)


def rerank(
    query_feats: Feats,
    gallery_feats: Feats,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = "euclidean",
    square_twice: bool = False,
    device: torch.device | str | None = None,
    block_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Re-rank by k-reciprocal encoding: (1 - lambda) Jaccard distance + lambda original distance.

    The original is the squared euclidean distance, each row divided by its maximum. Memory beside features and result:
    some hundred numbers per image, and one tile.

    Args:
        query_feats: (Q, D), any floating dtype.
        gallery_feats: (G, D), likewise.
        k1: Neighbours whose mutual ones make the encoding.
        k2: Neighbours whose encodings are averaged; 1: none.
        lambda_value: Weight of the original distance.
        metric: "euclidean", or "cosine": features are normalised first.
        square_twice: Square the original distance again. A quirk of torchreid, whose engine hands squared distances to
            a function that squares them.
        device: Where neighbours are searched; default: where `query_feats` is.
        block_size: Rows in a tile (memory and speed only).
        progress: Show a bar.

    Returns:
        (Q, G) float32 on the CPU, for `evaluate_distances`.

    Raises:
        ValueError: NaN or infinite features, dimensions that differ, an unknown metric, `k1` or `k2` below 1.
    """
    at_least_one(k1=k1, k2=k2)
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    feats, num_query = _together(query_feats, gallery_feats)
    if metric == "cosine":
        feats, squares, _ = ordinary_rows(feats, kernels.squares(feats))
        feats = feats / kernels.root(squares)[:, None].to(feats.dtype)
    elif exponent := common_exponent(feats):  # only ratios of distances are used
        feats = scaled(feats, -exponent)
    space, ids = _space(feats, "euclidean", device)
    count, power = len(feats), 2 if square_twice else 1
    near, _, lowest = search(space, space.rows, min(max(k1 + 1, k2), count), ids, block_size, True, progress, True)
    near = near.numpy()
    everyone = torch.arange(count, device=space.device)
    far = _squared(space, lowest.to(space.device)[:, None], everyone)[:, 0].cpu().numpy()
    far = np.maximum(far, np.finfo(np.float64).tiny)  # all at one place: 0 / tiny

    half = min(round(k1 / 2) + 1, count)  # round half to even, as published
    ptr, column, _ = _ragged(_expanded_sets, near[:, : k1 + 1], half)
    whole = space.block(0, space.rows, ids)
    row = torch.repeat_interleave(torch.from_numpy(np.diff(ptr)))
    original = space.exact(row.to(space.device), torch.from_numpy(column).to(space.device), whole).cpu().numpy()
    weight = np.exp(-((original / far[row]) ** power))
    weight = (weight / np.bincount(row, weight, minlength=count)[row]).astype(np.float32)
    if k2 > 1:
        ptr, column, weight = _ragged(_averages, near[:, :k2], ptr, column, weight)

    start = ptr[num_query]
    order = np.argsort(column[start:], kind="stable")  # the inverted index of the gallery's rows
    owner = (np.repeat(np.arange(count), np.diff(ptr))[start:][order] - num_query).astype(np.int32)
    places = np.concatenate([[0], np.cumsum(np.bincount(column[start:], minlength=count))])
    out = np.empty((num_query, count - num_query), dtype=np.float32)
    threaded(_jaccard, num_query, ptr, column, weight, places, owner, weight[start:][order], out)

    result = torch.from_numpy(out).mul_(1 - lambda_value)
    if lambda_value:
        rows, columns = tile_sizes(space, block_size)
        gallery = Ids(ids.query_pids, ids.gallery_pids[num_query:], ids.query_camids, ids.gallery_camids[num_query:])
        with full_precision(space.device):
            for first, part in blocks(space.rows[num_query:], columns, gallery):
                block = space.block(first, part, gallery)
                for s in range(0, num_query, rows):
                    tile = slice(s, min(s + rows, num_query))
                    scores = space.product(tile, block).mul_(block.scale).sub_(block.shift)
                    near = _squared(space, scores, everyone[tile]) / torch.from_numpy(far[tile, None]).to(space.device)
                    result[tile, first : first + len(part)] += lambda_value * near.pow_(power).float().cpu()
    return result


def expand_features(
    query_feats: Feats,
    gallery_feats: Feats,
    *,
    k: int = 10,
    alpha: float = 3.0,
    times: int = 1,
    device: torch.device | str | None = None,
    block_size: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Query and gallery features after average query expansion.

    Each becomes 1/k of the sum of its k most similar ones in both sets together, itself included, each times
    similarity ** alpha (cosine; a negative one counts as 0 where alpha is no integer).

    Args:
        query_feats: (Q, D), any floating dtype.
        gallery_feats: (G, D), likewise.
        k: How many features are summed; at most Q + G are.
        alpha: Power of the similarity; 0 is the plain mean.
        times: How often all of this is repeated.
        device: Where to compute; default: where `query_feats` is.
        block_size: Rows in a tile (memory and speed only).
        progress: Show a bar.

    Returns:
        (Q, D) and (G, D) on the CPU, not normalised: float64 if the features are, else float32.

    Raises:
        ValueError: NaN or infinite features, dimensions that differ, `k` or `times` below 1.

    Chum et al., "Total Recall: Automatic Query Expansion with a Generative Feature Model for Object Retrieval", ICCV
    2007; alpha: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019.
    """
    at_least_one(k=k, times=times)
    feats, num_query = _together(query_feats, gallery_feats)
    for _ in range(times):
        space, ids = _space(feats, "cosine", device)
        near, distance, _ = search(space, feats, min(k, len(feats)), ids, block_size, True, progress, True)
        similarity = 1 - distance
        weight = (similarity if float(alpha).is_integer() else similarity.clamp(min=0)).pow(alpha)
        expanded = torch.zeros(feats.shape, dtype=feats.dtype)
        for n in range(near.shape[1]):  # one neighbour at a time: no (N, k, D)
            expanded += (weight[:, n, None] / k).to(feats.dtype) * feats[near[:, n].to(feats.device)].cpu()
        feats = expanded
    return feats[:num_query], feats[num_query:]


def _together(query_feats: Feats, gallery_feats: Feats) -> tuple[Tensor, int]:
    """Finite rows of both, float32 or float64, and how many are the query's."""
    query, gallery = rows_of(query_feats, "query_feats"), rows_of(gallery_feats, "gallery_feats")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query_feats has {query.shape[1]} dimensions, gallery_feats has {gallery.shape[1]}")
    for rows, name in ((query, "query_feats"), (gallery, "gallery_feats")):
        check_finite(rows, name)
    feats = torch.cat([query, gallery.to(query.device)])
    return feats.to(torch.promote_types(feats.dtype, torch.float32)), len(query)


def _space(feats: Tensor, metric: str, device: torch.device | str | None) -> tuple[Space, Ids]:
    """Everything against everything, nothing removed."""
    each, camera = torch.arange(len(feats)), torch.zeros(len(feats), dtype=torch.int64)
    ids = Ids(each, each, camera, camera)
    return Space(feats, metric, device, ids), ids


def _squared(space: Space, scores: Tensor, query: Tensor) -> Tensor:
    """The squared euclidean distances that float32 scores (q, n) stand for."""
    return (space.squares[query, None] - 2 * scores).clamp_(min=0)


@njit
def _reciprocal(i, near, k, out):  # noqa: ANN001, ANN202
    """The items among the first k of i that have i among their first k."""
    n = 0
    for j in near[i, :k]:
        for back in near[j, :k]:
            if back == i:
                out[n] = j
                n += 1
                break
    return n


@njit
def _expanded_sets(near, half, ptr, column, weight, start, stop, size):  # noqa: ANN001, ANN202
    """Expanded k-reciprocal sets: their sizes, and, if `ptr` is given, their items from ptr[i] on."""
    k = near.shape[1]
    found, candidate = np.empty(k * (half + 1), np.int64), np.empty(k, np.int64)
    for i in range(start, stop):
        n = core = _reciprocal(i, near, k, found)
        for a in range(core):
            m, common = _reciprocal(found[a], near, half, candidate), 0
            for c in candidate[:m]:
                common += c in found[:core]
            if 3 * common > 2 * m:
                for c in candidate[:m]:
                    if c not in found[:n]:
                        found[n] = c
                        n += 1
        size[i] = n
        if len(ptr):
            column[ptr[i] : ptr[i] + n] = found[:n]


@njit
def _averages(near, of_ptr, of_column, of_weight, ptr, column, weight, start, stop, size):  # noqa: ANN001, ANN202
    """Sparse rows averaged over each one's neighbours (local query expansion), as above."""
    total, touched = np.zeros(len(near), np.float32), np.empty(len(near), np.int64)
    for i in range(start, stop):
        n = 0
        for j in near[i]:
            for p in range(of_ptr[j], of_ptr[j + 1]):
                c = of_column[p]
                if total[c] == 0:
                    touched[n] = c
                    n += 1
                total[c] += of_weight[p]
        size[i] = n
        for a in range(n):
            c = touched[a]
            if len(ptr):
                column[ptr[i] + a] = c
                weight[ptr[i] + a] = total[c] / near.shape[1]
            total[c] = 0


def _ragged(kernel: Callable, near: np.ndarray, *args: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ptr, column, weight) of a kernel that counts when `ptr` is empty and writes when it is given."""
    size, none = np.zeros(len(near), np.int64), np.empty(0, np.int64)
    threaded(kernel, len(near), near, *args, none, none, none.astype(np.float32), size)
    ptr = np.concatenate([none, [0], np.cumsum(size)])
    column, weight = np.empty(ptr[-1], np.int64), np.empty(ptr[-1], np.float32)
    threaded(kernel, len(near), near, *args, ptr, column, weight, size)
    return ptr, column, weight


@njit
def _jaccard(ptr, column, weight, places, owner, value, start, stop, out):  # noqa: ANN001, ANN202
    """Jaccard distances of sparse query rows to the gallery's, given by column: who has it, with which weight."""
    for q in range(start, stop):
        common = out[q]
        common[:] = 0
        for p in range(ptr[q], ptr[q + 1]):
            for m in range(places[column[p]], places[column[p] + 1]):
                common[owner[m]] += min(weight[p], value[m])
        for g in range(len(common)):
            common[g] = 1 - common[g] / (2 - common[g])  # each row sums to 1
