"""What may be done between extraction and ranking or clustering: re-ranking, Jaccard graphs and query expansion.

Re-ranking: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Clustering by
the same Jaccard distances: Ge et al., "Self-paced Contrastive Learning" (SpCL), NeurIPS 2020; by camera: Chen et al.,
"CA-Jaccard", CVPR 2024. Here encodings are sparse rows and no N x N matrix exists: neighbour lists come from the blocks
of ranking.py, Jaccard distances from an inverted index. Equal to the dense form within float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
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

Camera = tuple[int, int, int, int] | None


def rerank(
    query_feats: Feats,
    gallery_feats: Feats,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = "euclidean",
    square_twice: bool = False,
    query_camids: Any = None,
    gallery_camids: Any = None,
    camera: Camera = None,
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
        query_camids: (Q,) integers, needed with `camera` alone.
        gallery_camids: (G,) integers, likewise.
        camera: (k1_intra, k1_inter, k2_intra, k2_inter): neighbours are listed by camera, see `jaccard_graph`.
        device: Where neighbours are searched; default: where `query_feats` is.
        block_size: Rows in a tile (memory and speed only).
        progress: Show a bar.

    Returns:
        (Q, G) float32 on the CPU, for `evaluate_distances`.

    Raises:
        ValueError: NaN or infinite features, dimensions that differ, an unknown metric, `k1` or `k2` below 1, camera
            ids that do not fit.
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
    near, _, lowest = search(space, space.rows, min(max(k1 + 1, k2), count), ids, block_size, progress, True)
    near = near.numpy()
    everyone = torch.arange(count, device=space.device)
    far = _squared(space, lowest.to(space.device)[:, None], everyone)[:, 0].cpu().numpy()
    far = np.maximum(far, np.finfo(np.float64).tiny)  # all at one place: 0 / tiny

    known = query_camids is not None and gallery_camids is not None
    camids = np.concatenate([np.asarray(query_camids), np.asarray(gallery_camids)]) if camera and known else None
    lists = _lists(space, ids, k1 + 1, k2, _half(k1), camids, camera, progress, near)
    rows = _encode(space, ids, *lists, lambda d, row: (d / far[row]) ** power)
    columns = rows[num_query:].tocsc()
    out = np.empty((num_query, count - num_query), dtype=np.float32)
    of_rows, of_columns = ((a.indptr, a.indices, a.data) for a in (rows, columns))
    threaded(_jaccard, num_query, *of_rows, *of_columns, out)

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


def jaccard_graph(
    feats: Feats,
    *,
    k1: int = 30,
    k2: int = 6,
    camids: Any = None,
    camera: Camera = None,
    lists: str = "cluster",
    keep: float = 0.65,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> csr_array:
    """Jaccard distances of the k-reciprocal encodings of all pairs that are close, for clustering.

    Encodings have weights exp(-(2 - 2 cos)). With `camera`, neighbours are listed by camera: mutual neighbours of the
    same camera and of other cameras make the encoding, without expansion, and encodings are averaged over both (Chen et
    al., "CA-Jaccard", CVPR 2024). Where a camera has too few images, its lists go on with the nearest of the others.

    Args:
        feats: (N, D), any floating dtype; compared by the cosine.
        k1: Neighbours whose mutual ones make the encoding, the image itself included. More than N count as N: then
            everything is a neighbour of everything.
        k2: Neighbours whose encodings are averaged, likewise; 1: none.
        camids: (N,) integers, needed with `camera` alone.
        camera: (k1_intra, k1_inter, k2_intra, k2_inter), neighbours of the same camera and of others. A pair of zeros
            for the first two, or for the last two, leaves that step to `k1` or `k2`.
        lists: "cluster": k1 neighbours, as SpCL and Cluster-Contrast have it; "rerank": k1 + 1, as re-ranking has it.
        keep: Largest distance that is kept. Pairs without a common neighbour are at distance 1 and never kept.
        device: Where neighbours are searched; default: where `feats` is.
        progress: Show a bar.

    Returns:
        (N, N) float32 on the CPU, symmetric: the distances up to `keep`, those of 0 included; the diagonal is 0. Its
        attribute `keep` is that of the arguments.

    Raises:
        ValueError: No or NaN or infinite features, camera ids that do not fit, a number out of its range.
    """
    at_least_one(k1=k1, k2=k2)
    if lists not in ("cluster", "rerank"):
        raise unknown_name("lists", lists, ("cluster", "rerank"))
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
    rows = rows_of(feats, "feats")
    if not (count := len(rows)):
        raise ValueError("feats has no rows: there is nothing to cluster")
    check_finite(rows, "feats")
    space, ids = _space(rows.to(torch.promote_types(rows.dtype, torch.float32)), "cosine", device)
    found = _lists(space, ids, k1 + (lists == "rerank"), k2, _half(k1), camids, camera, progress)
    encoded = _encode(space, ids, *found, lambda cosine_distance, _: 2 * cosine_distance)
    columns = encoded.tocsc()
    of_rows, of_columns = ((a.indptr, a.indices, a.data) for a in (encoded, columns))
    parts = threaded(_close_pairs, count, *of_rows, *of_columns, np.float32(keep), None)
    pairs, distance = (np.concatenate(found) for found in zip(*parts, strict=True))
    (i, j), each = pairs.T, np.arange(count, dtype=np.int32)
    places = np.concatenate([i, j, each]), np.concatenate([j, i, each])
    values = np.concatenate([distance, distance, np.zeros(count, np.float32)])
    graph = csr_array(coo_array((values, places), shape=(count, count)))
    graph.sort_indices()
    graph.keep = keep
    return graph


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
        near, distance, _ = search(space, feats, min(k, len(feats)), ids, block_size, progress, True)
        similarity = 1 - distance
        weight = (similarity if float(alpha).is_integer() else similarity.clamp(min=0)).pow(alpha)
        expanded = torch.zeros(feats.shape, dtype=feats.dtype)
        for n in range(near.shape[1]):  # one neighbour at a time: no (N, k, D)
            expanded += (weight[:, n, None] / k).to(feats.dtype) * feats[near[:, n].to(feats.device)].cpu()
        feats = expanded
    return feats[:num_query], feats[num_query:]


def neighbours(feats: Tensor, k: int, device: torch.device | str | None = None) -> Tensor:
    """The k nearest rows of each row by the cosine, itself first: (N, k) int64 on the CPU; at most N.

    Args:
        feats: (N, D), finite.
        k: How many, the row itself included.
        device: Where they are searched; default: where `feats` is.
    """
    space, ids = _space(feats, "cosine", device)
    near = search(space, feats, min(k, len(feats)), ids, None, False, True)[0]
    return torch.from_numpy(_self_first(near.numpy(), np.arange(len(feats))))


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
    ids = Ids(each, each, camera, camera, exclude=())
    return Space(feats, metric, device, ids), ids


def _squared(space: Space, scores: Tensor, query: Tensor) -> Tensor:
    """The squared euclidean distances that float32 scores (q, n) stand for."""
    return (space.squares[query, None] - 2 * scores).clamp_(min=0)


# ---- encodings -------------------------------------------------------------------------------------------------------


def _half(k1: int) -> int:
    """Neighbours that a list of k1 is expanded by: rounded half to even, as published."""
    return round(k1 / 2) + 1


def _lists(
    space: Space,
    ids: Ids,
    first: int,
    k2: int,
    half: int,
    camids: Any,
    camera: Camera,
    progress: bool,
    near: Any = None,
) -> tuple[list[np.ndarray], int, np.ndarray]:
    """What `_encode` takes after `space` and `ids`: plain lists, searched unless they are given, or by camera."""
    intra, inter, intra2, inter2 = (0, 0, 0, 0) if camera is None else (k or 0 for k in camera)
    if min(intra, inter, intra2, inter2) < 0:
        raise ValueError(f"camera must be four numbers of at least 0, not {camera}")
    by_camera, averages_by_camera = intra + inter > 0, intra2 + inter2 > 0
    if near is None and not (by_camera and averages_by_camera):
        count = space.num_query
        near = search(space, space.rows, min(max(first, k2), count), ids, None, progress, True)[0].numpy()
        near = _self_first(near, np.arange(count))
    if by_camera or averages_by_camera:
        same, other = _camera_lists(space, camids, max(intra + 1, inter + 1, intra2, inter2), progress)
    lists = [same[:, : intra + 1], other[:, : inter + 1]] if by_camera else [near[:, :first]]
    averaged = np.concatenate([same[:, :intra2], other[:, :inter2]], axis=1) if averages_by_camera else near[:, :k2]
    return lists, 0 if by_camera else half, averaged


def _self_first(near: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Lists (N, k) with each image itself, `own` (N,), in front; among equal images others may come first."""
    others = np.where(near == own[:, None], -1, near)
    order = np.argsort(others < 0, axis=1, kind="stable")  # itself last
    return np.concatenate([own[:, None], np.take_along_axis(near, order, 1)[:, :-1]], axis=1)


def _camera_lists(space: Space, camids: Any, k: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each image the first k of its own camera, itself first, and of others: (N, k) indices each.

    Whichever list is too short goes on with the other.
    """
    count = space.num_query
    if camids is None or len(camids) != count:
        given = 0 if camids is None else len(camids)
        raise ValueError(f"camera needs camids, one for each of the {count} images, got {given}")
    cameras = torch.as_tensor(np.asarray(camids))
    same, other = (np.empty((count, min(k, count)), np.int64) for _ in range(2))
    for camera in cameras.unique():
        mine, rest = (cameras == camera).nonzero()[:, 0], (cameras != camera).nonzero()[:, 0]
        metric = "cosine" if space.cosine else "euclidean"
        part, ids = _space(space.rows[mine.to(space.device)], metric, space.device)
        near = search(part, part.rows, min(k, len(mine)), ids, None, progress, True)[0]
        near = mine.numpy()[_self_first(near.numpy(), np.arange(len(mine)))]
        far = near[:, :0]
        if len(rest):
            ids = Ids(mine, rest, torch.zeros_like(mine), torch.zeros_like(rest))
            gallery = lambda rest=rest: (space.rows[some.to(space.device)] for some in rest.split(4096))  # noqa: E731
            far = rest.numpy()[search(part, gallery, min(k, len(rest)), ids, None, progress)[0].numpy()]
        same[mine] = np.concatenate([near, far], axis=1)[:, :k]
        other[mine] = np.concatenate([far, near], axis=1)[:, :k]
    return same, other


def _encode(
    space: Space,
    ids: Ids,
    lists: Sequence[np.ndarray],
    half: int,
    averaged: np.ndarray,
    exponent: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> csr_array:
    """The k-reciprocal encoding of every image: sparse rows (N, N) float32, each with the sum 1.

    Args:
        space: All images against all.
        ids: Its ids.
        lists: One or two arrays (N, k) of neighbours; mutual ones within any of them make the encoding.
        half: Neighbours whose mutual ones expand the encoding, of the first list; 0: no expansion.
        averaged: (N, k2) neighbours whose encodings are averaged.
        exponent: `exponent(distances, row)` gives what the weight of an entry falls by: weight = exp(-exponent).
    """
    count = len(averaged)
    first, second = lists[0], lists[1] if len(lists) > 1 else lists[0][:, :0]
    size, none = np.zeros(count, np.int64), np.empty(0, np.int32)
    threaded(_reciprocal_sets, count, first, second, half, none.astype(np.int64), none, size)
    ptr = np.concatenate([[0], np.cumsum(size)])
    column = np.empty(ptr[-1], np.int32)
    threaded(_reciprocal_sets, count, first, second, half, ptr, column, size)

    whole = space.block(0, space.rows, ids)
    row = np.repeat(np.arange(count), size)
    query, item = (torch.from_numpy(x).to(space.device, torch.int64) for x in (row, column))
    weight = np.exp(-exponent(space.exact(query, item, whole).cpu().numpy(), row))
    weight = (weight / np.bincount(row, weight, minlength=count)[row]).astype(np.float32)
    rows = csr_array((weight, column, ptr), shape=(count, count))
    if (k2 := averaged.shape[1]) > 1:
        share = np.full(averaged.size, 1 / k2, np.float32)
        rows = csr_array((share, averaged.ravel(), np.arange(count + 1) * k2), shape=(count, count)) @ rows
    return rows


@njit
def _mutual(i, near, k, out):  # noqa: ANN001, ANN202
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
def _reciprocal_sets(near, more, half, ptr, column, start, stop, size):  # noqa: ANN001, ANN202
    """Sets of mutual neighbours: their sizes, and, if `ptr` is given, their items from ptr[i] on."""
    k, other = near.shape[1], more.shape[1]
    found, candidate = np.empty(k * (half + 1) + other, np.int64), np.empty(max(k, other), np.int64)
    for i in range(start, stop):
        n = core = _mutual(i, near, k, found)
        for c in candidate[: _mutual(i, more, other, candidate)]:
            if c not in found[:n]:
                found[n] = c
                n += 1
        for a in range(core if half else 0):
            m, common = _mutual(found[a], near, half, candidate), 0
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


@njit
def _close_pairs(ptr, column, weight, places, owner, value, keep, start, stop, _):  # noqa: ANN001, ANN202
    """Pairs i < j of sparse rows at a Jaccard distance of at most `keep`, for i from start to stop: i, j, distance."""
    common, touched = np.zeros(len(ptr) - 1, np.float32), np.empty(len(ptr) - 1, np.int32)
    pairs, distance, size = np.empty((1024, 2), np.int32), np.empty(1024, np.float32), 0
    for i in range(start, stop):
        n = 0
        for p in range(ptr[i], ptr[i + 1]):
            m = places[column[p] + 1] - 1
            while owner[m] > i:  # owners rise, and i is one of them
                j = owner[m]
                if common[j] == 0:
                    touched[n] = j
                    n += 1
                common[j] += min(weight[p], value[m])
                m -= 1
        if size + n > len(distance):
            pairs = np.concatenate((pairs, np.empty((size + n, 2), np.int32)))
            distance = np.concatenate((distance, np.empty(size + n, np.float32)))
        for j in touched[:n]:
            d = max(np.float32(0), 1 - common[j] / (2 - common[j]))
            common[j] = 0
            if d <= keep:
                pairs[size, 0], pairs[size, 1], distance[size] = i, j, d
                size += 1
    return pairs[:size].copy(), distance[:size].copy()
