"""CMC, mAP, mINP and rank lists: exact, without a sort, the same on every device and at every block size.

AP, INP and CMC need only the rank of each right match: one more than the number of kept gallery items ahead of it. So
the distance of every right match is computed exactly first (float64 in one fixed order: kernels.py). Then a float32
matrix product per tile counts the items that are surely ahead, and whatever lies within the proven error of a threshold
is decided again exactly. Ties go to the lower gallery index. Nothing of the size query x gallery is kept.

Protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): gallery items with the query's pid
and camid are removed, or, by `exclude`, those that agree in other ids; pid -1 is junk, never counted; any other pid,
the distractors' 0 as well, counts as wrong; queries with no right match are left out of every mean. mINP: Ye et al.,
"Deep Learning for Person Re-identification", TPAMI 2021.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reidlib.errors import unknown_name
from reidlib.evaluation import kernels
from reidlib.evaluation.spaces import (
    JUNK,
    STANDARD,
    Block,
    Exclude,
    Feats,
    Gallery,
    Ids,
    OtherIds,
    Space,
    at_least_one,
    blocks,
    check_finite,
    full_precision,
    raised_together,
    rows_of,
    scaled,
    tile_sizes,
)
from reidlib.scores import NAMES, RETRIEVAL, percent


@dataclass(frozen=True, eq=False)
class RankingResult:
    """The scores of a ranking, from 0 to 1. Means are over the `num_valid` queries that have a right match.

    Attributes:
        cmc: (max_rank,) float64, share of valid queries with a right match among the first k, k from 1.
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty.
        num_valid: Queries with a right match.
        num_query: All queries.
        ap: (Q,) float64, average precision of each query, NaN without a match.
        inp: (Q,) float64, likewise.
        first_match: (Q,) int64, 1-based rank of the first right match, -1 without one. All tensors are on the CPU.
        trapezoid: (Q,) float64, average precision by trapezoids, see `counted`.
        area: How mAP is counted, "steps" or "trapezoid".
    """

    cmc: Tensor
    mAP: float
    mINP: float
    num_valid: int
    num_query: int
    ap: Tensor
    inp: Tensor
    first_match: Tensor
    trapezoid: Tensor
    area: str = "steps"

    def rank(self, k: int) -> float:
        """Share of valid queries whose first right match is among the first k, for any k of 1 or more."""
        at_least_one(k=k)
        return ((self.first_match > 0) & (self.first_match <= k)).sum().item() / self.num_valid

    def counted(self, means_over: str = "valid", area: str = "steps") -> "RankingResult":
        """The same ranking with mAP and mINP as means over the "valid" or over "all" queries.

        With "all", a query without a right match counts 0, as some evaluators have it. CMC is over valid queries either
        way. `area` "trapezoid": the average precision of the MATLAB code of Market-1501, MARS and DukeMTMC-reID takes
        the mean of the precisions at a right match and one rank before it, which is 1 before rank 1. Raises ValueError
        for another `means_over` or `area`.
        """
        if area not in ("steps", "trapezoid"):
            raise unknown_name("area", area, ("steps", "trapezoid"))
        if means_over not in ("valid", "all"):
            raise unknown_name("value of means_over", means_over, ("valid", "all"))
        count = self.num_valid if means_over == "valid" else self.num_query
        ap = self.ap if area == "steps" else self.trapezoid
        mean_ap, mean_inp = (each.nansum().item() / count for each in (ap, self.inp))
        return replace(self, mAP=mean_ap, mINP=mean_inp, area=area)

    def to_dict(self) -> dict[str, float]:
        """The scores as plain numbers, for JSON and tables."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10)}
        return {"mAP": self.mAP, "mINP": self.mINP, **ranks, "num_valid": self.num_valid, "num_query": self.num_query}

    def __repr__(self) -> str:
        found = self.to_dict()
        scores = "  ".join(f"{NAMES[key]} {percent(found[key])}" for key in RETRIEVAL)
        scores += f", AP by {self.area}" * (self.area != "steps")
        return f"RankingResult({scores}  ({self.num_valid} of {self.num_query} queries valid))"


@dataclass(frozen=True, eq=False)
class TopK:
    """Rank lists, nearest first, on the CPU. A list of fewer than k items is filled with -1, inf and False.

    Attributes:
        indices: (Q, k) int64, into the gallery.
        distances: (Q, k) float32.
        matches: (Q, k) bool, whether the pid is the query's.
    """

    indices: Tensor
    distances: Tensor
    matches: Tensor


def evaluate_ranking(
    query_feats: Feats,
    gallery_feats: Gallery,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
    device: torch.device | str | None = None,
    block_size: int | None = None,
    exclude: Exclude = STANDARD,
    other_ids: OtherIds | None = None,
    progress: bool = False,
    group: Any = None,
) -> RankingResult:
    """Rank the gallery for every query and score the ranking.

    Ties go to the lower gallery index. Two items tie when their float64 distances are equal; these are computed in one
    fixed order (`kernels.py`), the same on every processor, device and block size. Under the cosine, equal rows and
    rows that differ by a power of two always tie; so do all rows of equal cosine where dot products, squared norms and
    their products are exact in float64 (counts, binary codes, small multiples of one step). Other rows of one direction
    may differ in the last bit.

    Args:
        query_feats: (Q, D), any floating dtype. Float64 is compared in float64, all others exactly as they are.
        gallery_feats: (G, D) likewise; or a memory-mapped array, safetensors files in order, or a function that returns
            an iterator of blocks of rows. It is read twice, a block at a time.
        query_pids: (Q,) integers. -1 is junk: such a query has no right match.
        gallery_pids: (G,) integers. -1 is junk, never counted; pids that no query has count as wrong.
        query_camids: (Q,) integers.
        gallery_camids: (G,) integers.
        metric: "cosine" (only a row of zeros has no direction: it is at distance 1 from all) or "euclidean".
        max_rank: Length of the CMC curve.
        device: Where to compute; default: where `query_feats` is.
        block_size: Rows of queries and of gallery in a tile (memory and speed only).
        exclude: Which gallery items are left out for a query: those that agree with it in all ids of one of these
            tuples. Each has "pid", so that only images of the query's person are left out, and further "camid" or a
            name of `other_ids`; "!" before a name means that it must differ. (): none is left out.
        other_ids: Ids by name, such as {"clothes": (of_queries, of_gallery)}: (Q,) and (G,) integers, -1 where
            unknown, which neither agrees nor differs.
        progress: Show a bar.
        group: A process group of torch.distributed. Every process of it calls this with all queries and its own part of
            the gallery, features and ids, and gets the result of the whole.

    Returns:
        The scores, over the queries that have a right match.

    Raises:
        ValueError: NaN or infinite features, lengths or dimensions that do not fit, nothing to rank, ids that are not
            integers, no query with a right match, an unknown metric. The message names the argument and the row.
    """
    at_least_one(max_rank=max_rank)
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids, group, exclude=exclude, other_ids=other_ids)
    with raised_together(group):
        space = Space(query_feats, metric, device, ids)
    rows, columns = tile_sizes(space, block_size)
    pairs = Pairs.of(ids, space.device)
    require_match(pairs.kept, ids)
    with raised_together(group), full_precision(space.device):
        squares = measure(space, gallery_feats, ids, pairs, columns)
    if group is not None:
        dist.all_reduce(pairs.exact, group=group)  # every entry is 0 but on one process
    with raised_together(group), full_precision(space.device):
        low = high = None
        for first, part in blocks(gallery_feats, columns, ids, progress):
            block = space.block(first, part, ids, squares.get(first))
            if low is None or not space.cosine:  # cosine: the same for all blocks
                low, high = space.bounds(pairs.exact, pairs.query, block)
            for start in range(0, space.num_query, rows):
                _count(space, slice(start, min(start + rows, space.num_query)), block, pairs, low, high)
    if group is not None:
        dist.all_reduce(pairs.ahead, group=group)
    return _result(pairs, max_rank)


def evaluate_distances(
    distances: Feats,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    max_rank: int = 50,
    exclude: Exclude = STANDARD,
    other_ids: OtherIds | None = None,
) -> RankingResult:
    """Score a matrix of distances from elsewhere (re-ranked ones, for instance) like `evaluate_ranking`.

    Args:
        distances: (Q, G), any floating dtype, compared as they are.

    All other arguments, the result and the errors are those of `evaluate_ranking`.
    """
    at_least_one(max_rank=max_rank)
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids, exclude=exclude, other_ids=other_ids)
    matrix = rows_of(distances, "distances")
    if matrix.shape != (shape := (len(ids.query_pids), len(ids.gallery_pids))):
        raise ValueError(f"distances is {tuple(matrix.shape)}, the pids ask for {shape}")
    pairs = Pairs.of(ids, torch.device("cpu"))
    require_match(pairs.kept, ids)
    of_pairs = [t.numpy() for t in (pairs.ptr, pairs.item, pairs.kept, pairs.exact)]
    keep, step = (ids.gallery_pids != JUNK).numpy(), max(1, (1 << 24) // shape[1])  # 64 MiB of float32
    for first in range(0, len(matrix), step):
        part = matrix[first : first + step].to("cpu", torch.promote_types(matrix.dtype, torch.float32), copy=True)
        check_finite(part, "distances", first)
        mine = slice(int(pairs.ptr[first]), int(pairs.ptr[first + len(part)]))
        pairs.exact[mine] = part[pairs.query[mine] - first, pairs.item[mine]].double()
        kernels.threaded(kernels.count_in_matrix, len(part), part.numpy(), keep, first, *of_pairs, pairs.ahead.numpy())
    return _result(pairs, max_rank)


def rank_gallery(
    query_feats: Feats,
    gallery_feats: Gallery,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    k: int = 10,
    metric: str = "cosine",
    device: torch.device | str | None = None,
    block_size: int | None = None,
    exclude: Exclude = STANDARD,
    other_ids: OtherIds | None = None,
    progress: bool = False,
    gallery_squares: Tensor | None = None,
) -> TopK:
    """List the k nearest kept gallery items of every query, in the order of `evaluate_ranking`.

    Args:
        k: Length of the lists.
        gallery_squares: (G,) float64 on the CPU, squared norms of the gallery by `kernels.squares`, where they are
            kept: half of the time of a single query. Only of finite rows with norms within `spaces.ORDINARY`.

    All other arguments and the errors are those of `evaluate_ranking`.

    Returns:
        Rank lists; distances are 1 - cosine, or euclidean.
    """
    at_least_one(k=k)
    ids = Ids(query_pids, gallery_pids, query_camids, gallery_camids, exclude=exclude, other_ids=other_ids)
    space = Space(query_feats, metric, device, ids)
    indices, found, _ = search(space, gallery_feats, k, ids, block_size, progress, squares=gallery_squares)
    found = found if space.cosine else scaled(kernels.root(found), space.exponent)
    matches = (ids.gallery_pids[indices] == ids.query_pids[:, None]) & (indices >= 0)
    return TopK(indices, found.float(), matches)


# ---- ranking ---------------------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """All pairs of a query and a gallery item of the same pid, by query, then item: few, however large the gallery."""

    ptr: Tensor  # (Q + 1,) where each query's pairs begin; on the CPU
    query: Tensor  # (P,)
    item: Tensor  # (P,)
    kept: Tensor  # (P,) bool: a right match, not an item to drop
    exact: Tensor  # (P,) float64 distances of the kept ones
    ahead: Tensor  # (P,) wrong kept items that come before

    @classmethod
    def of(cls, ids: Ids, device: torch.device) -> "Pairs":
        people, person = ids.query_pids.unique(return_inverse=True)  # sorted
        items, owners = [], []
        for first in range(0, len(ids.gallery_pids), 1 << 20):  # in parts: a long gallery costs no memory here
            pids = ids.gallery_pids[first : first + (1 << 20)]
            owner = torch.searchsorted(people, pids).clamp_(max=len(people) - 1)
            hit = ((people[owner] == pids) & (pids != JUNK)).nonzero()[:, 0]
            items.append(hit + first)
            owners.append(owner[hit])
        owner, order = torch.cat(owners).sort(stable=True)
        item = torch.cat(items)[order]
        size = torch.bincount(owner, minlength=len(people))
        begin, size = (size.cumsum(0) - size)[person], size[person]  # (Q,)
        ptr = torch.cat([size.new_zeros(1), size.cumsum(0)])
        query = torch.repeat_interleave(size)  # (P,)
        item = item[begin[query] + torch.arange(len(query)) - ptr[query]]
        query, item, kept = (t.to(device) for t in (query, item, ids.kept(query, item)))
        return cls(ptr, query, item, kept, torch.zeros_like(item, dtype=torch.float64), torch.zeros_like(item))


def require_match(kept: Any, ids: Ids) -> None:
    """ValueError where no pair of a query and a gallery item of the same pid is kept."""
    if not kept.any():
        rule = "another camera" if ids.exclude == [*STANDARD] else f"left out: {ids.exclude or 'nothing'}"
        raise ValueError(f"no query has a right match in the gallery (same pid, {rule}): nothing to average")


def measure(space: Space, gallery: Gallery, ids: Ids, pairs: Pairs, columns: int) -> dict[int, Tensor]:
    """Fill in `pairs.exact` for the right matches among the rows of `gallery`; give each block's squared norms."""
    squares = {}
    for first, part in blocks(gallery, columns, ids):
        block = space.block(first, part, ids)
        if block.as_given and ids.rows <= 1 << 22:  # a longer gallery keeps its memory fixed
            squares[first] = block.squares
        inside = (pairs.item >= first) & (pairs.item < first + len(part))
        mine = (inside & pairs.kept).nonzero()[:, 0]
        person = ids.query_pids.to(space.device)[pairs.query[mine]]
        mine = mine[person.argsort()]  # people one by one: their few rows stay in the processor's cache
        pairs.exact[mine] = space.exact(pairs.query[mine], pairs.item[mine] - first, block)
    return squares


def _count(space: Space, tile: slice, block: Block, pairs: Pairs, low: Tensor, high: Tensor) -> None:
    """Add to `pairs.ahead` the wrong kept items of `block` that come before each right match of the queries `tile`."""
    if (kind := kernels.kind(space.device)) == "numba":
        scores = space.product(tile, block)
        of_tile = (scores, block.scale, block.shift, block.pids != JUNK)
        of_tile += (space.rows[tile], block.rows, space.squares[tile], block.squares)
        of_pairs = (pairs.ptr, pairs.item, pairs.kept, pairs.exact, low, high)
        a, b = ([t.numpy() for t in tensors] for tensors in (of_tile, of_pairs))
        flags = (space.cosine, tile.start, block.first)
        kernels.threaded(kernels.count, len(scores), *a, *flags, *b, pairs.ahead.numpy())
        return

    # A table (queries, most right matches of one) of places in `pairs`, -1 where a query has fewer.
    own = torch.arange(int(pairs.ptr[tile.start]), int(pairs.ptr[tile.stop]), device=space.device)
    right = own[pairs.kept[own]]
    if not len(right):
        return
    query = pairs.query[right] - tile.start
    size = torch.bincount(query, minlength=tile.stop - tile.start)
    slot = torch.arange(len(right), device=space.device) - (size.cumsum(0) - size)[query]
    table = torch.full((len(size), int(size.max())), -1, device=space.device)
    table[query, slot] = right
    used = table >= 0
    low, high = (t[table].masked_fill_(~used, torch.inf) for t in (low, high))

    parts = None
    if kind == "triton":
        from reidlib.evaluation import fused

        tensors = (space.rows[tile].float(), block.rows.float(), block.scale, block.shift, space.pids[tile], block.pids)
        if found := fused.screen(*tensors, low, high):
            parts = [(slice(None), *found)]
    if parts is None:
        scores = space.product(tile, block).mul_(block.scale).sub_(block.shift)
        out = (block.pids == JUNK) | (block.pids == space.pids[tile, None])
        parts = kernels.screen(scores, out, low, high)
    for columns, above, query, slot, item in parts:
        pairs.ahead.index_add_(0, table[:, columns][used[:, columns]], above[used[:, columns]].long())
        place, exact = table[query, slot], space.exact(query + tile.start, item, block)
        level = (exact == pairs.exact[place]) & (item + block.first < pairs.item[place])
        place = place[(exact < pairs.exact[place]) | level]
        pairs.ahead.index_add_(0, place, torch.ones_like(place))


def _result(pairs: Pairs, max_rank: int) -> RankingResult:
    num_query = len(pairs.ptr) - 1
    columns = (pairs.query, pairs.item, pairs.exact, pairs.ahead)
    query, item, exact, ahead = (t[pairs.kept].cpu().numpy() for t in columns)
    order = np.lexsort((item, exact, query))
    query, ahead = query[order], ahead[order]
    count = np.bincount(query, minlength=num_query)  # right matches of each query
    nth = np.arange(len(query)) - (np.cumsum(count) - count)[query] + 1  # 1-based among the right matches
    rank = ahead + nth
    valid = count > 0
    with np.errstate(invalid="ignore"):
        ap = np.bincount(query, nth / rank, minlength=num_query) / count
        before = np.where(rank > 1, (nth - 1) / np.maximum(rank - 1, 1), 1.0)  # precision one rank earlier
        trapezoid = np.bincount(query, (before + nth / rank) / 2, minlength=num_query) / count
    inp, first_match = np.full(num_query, np.nan), np.full(num_query, -1, dtype=np.int64)
    inp[query] = nth / rank  # the last one written is the last right match
    first_match[query[::-1]] = rank[::-1]
    cmc = np.cumsum(np.bincount(first_match[valid], minlength=max_rank + 1)[1 : max_rank + 1]) / valid.sum()
    ap, inp, first_match, cmc, trapezoid = (torch.from_numpy(a) for a in (ap, inp, first_match, cmc, trapezoid))
    valid = torch.from_numpy(valid)
    mean_ap, mean_inp = ap[valid].mean().item(), inp[valid].mean().item()
    return RankingResult(cmc, mean_ap, mean_inp, int(valid.sum()), num_query, ap, inp, first_match, trapezoid)


# ---- search ----------------------------------------------------------------------------------------------------------


def search(
    space: Space,
    gallery: Gallery,
    k: int,
    ids: Ids,
    block_size: int | None = None,
    progress: bool = False,
    mutual: bool = False,
    squares: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the first k kept items of every query: indices (Q, k) int64, exact distances (Q, k) float64, on the CPU.

    Also the lowest score of each, (Q,) float32. Distances are those of the space: squared if euclidean, of scaled rows.
    `mutual`: queries and gallery are the same rows, and each tile's product is used twice. `squares`: see
    `rank_gallery`.
    """
    rows, columns = tile_sizes(space, block_size)
    rows, columns = (min(rows, columns),) * 2 if mutual else (rows, columns)
    lists = _Lists(space, k, Pairs.of(ids, space.device))
    seen: list[Block] = []
    with full_precision(space.device):
        for first, part in blocks(gallery, columns, ids, progress):
            known = None if squares is None else squares[first : first + len(part)].to(space.device)
            block = space.block(first, part, ids, known)
            for start in range(0, min(first + len(part), space.num_query) if mutual else space.num_query, rows):
                tile = slice(start, min(start + rows, space.num_query))
                product = space.product(tile, block)
                if mutual and start != first:
                    lists.update(slice(first, first + len(part)), seen[start // rows], product.T.contiguous())
                lists.update(tile, block, product)
            seen += [block] if mutual else []
    return lists.indices.cpu(), lists.distances.cpu(), lists.lowest.cpu()


class _Lists:
    """The best k of every query so far.

    Candidates of a tile are the items that may be nearer than the k-th best so far, by the error bound; only these are
    decided exactly.
    """

    def __init__(self, space: Space, k: int, pairs: Pairs) -> None:
        size, device = (space.num_query, k), space.device
        self.space, self.pairs, self.k = space, pairs, k
        self.indices = torch.full(size, -1, device=device)
        self.distances = torch.full(size, torch.inf, dtype=torch.float64, device=device)
        self.lowest = torch.full(size[:1], torch.inf, device=device)
        self.everyone = torch.arange(size[0], device=device)

    def update(self, tile: slice, block: Block, product: Tensor) -> None:
        space, pairs, everyone, last = self.space, self.pairs, self.everyone[tile], self.distances[tile, -1]
        scores = product.mul_(block.scale).sub_(block.shift)
        self.lowest[tile] = torch.minimum(self.lowest[tile], scores.amin(1))
        drop = (block.pids == JUNK).expand(scores.shape).clone()
        mine = torch.arange(int(pairs.ptr[tile.start]), int(pairs.ptr[tile.stop]), device=space.device)
        item = pairs.item[mine] - block.first
        gone = ~pairs.kept[mine] & (item >= 0) & (item < len(block.rows))
        drop[pairs.query[mine][gone] - tile.start, item[gone]] = True
        scores.masked_fill_(drop, -torch.inf)
        if last.isfinite().all():
            floor, _ = space.bounds(last, everyone, block)
        elif self.k <= scores.shape[1]:  # some list is not full yet: the k-th best of this tile bounds its end
            kth = scores.nan_to_num(nan=-torch.inf).topk(self.k).values[:, -1].double()
            floor = (kth - 2 * space.error(everyone, block) - 2.0**-21 * kth.abs()).float()
        else:
            floor = torch.full_like(self.lowest[tile], -torch.inf)
        query, item = (~((scores < floor[:, None]) | drop)).nonzero(as_tuple=True)
        if len(query):
            exact = space.exact(query + tile.start, item, block)
            _merge(self.distances[tile], self.indices[tile], query, item + block.first, exact)


def _merge(found: Tensor, indices: Tensor, query: Tensor, item: Tensor, exact: Tensor) -> None:
    """Put candidates into the lists (q, k), in place: by distance, then index."""
    places, k = found.shape
    owner = torch.cat([torch.arange(places, device=found.device).repeat_interleave(k), query])
    item, exact = torch.cat([indices.flatten(), item]), torch.cat([found.flatten(), exact])
    order = item.argsort(stable=True)
    order = order[exact[order].argsort(stable=True)]
    order = order[owner[order].argsort(stable=True)]
    owner = owner[order]
    size = torch.bincount(owner, minlength=places)
    nth = torch.arange(len(owner), device=found.device) - (size.cumsum(0) - size)[owner]
    order = order[nth < k]  # every list has k entries or more: (q k,)
    found.copy_(exact[order].view(places, k))
    indices.copy_(item[order].view(places, k))
