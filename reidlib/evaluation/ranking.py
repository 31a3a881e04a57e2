"""CMC, mAP, mINP and rank lists: exact, without a sort, the same on every device and at every block size.

AP, INP and CMC need only the rank of each right match, which is one more than the number of kept gallery items ahead of
it. So the distance of every right match is computed exactly first (float64 in one fixed order: kernels.py), then one
float32 matrix product a tile counts the items that are surely ahead; whatever lies within the proven error of a
threshold is decided again exactly. Ties go to the lower gallery index. Nothing of the size query x gallery is kept.

Protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): gallery items with the query's pid
and camid are removed; pid -1 is junk, never counted; any other pid, the distractors' 0 as well, counts as wrong;
queries with no right match are left out of every mean. mINP: Ye et al., "Deep Learning for Person Re-identification",
TPAMI 2021.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reidlib.errors import unknown_name
from reidlib.evaluation import kernels

Feats = Tensor | np.ndarray
Gallery = Feats | str | Path | Sequence[str | Path] | Callable[[], Iterable[Feats]]
JUNK = -1


@dataclass(frozen=True, eq=False)
class RankingResult:
    """What a ranking is worth. Means run over the `num_valid` queries that have a right match.

    cmc (max_rank,) float64; per query, (Q,): ap and inp float64 (NaN without a match), first_match int64, the 1-based
    rank of the first right match (-1 without one). All on the CPU.
    """

    cmc: Tensor
    mAP: float
    mINP: float
    num_valid: int
    num_query: int
    ap: Tensor
    inp: Tensor
    first_match: Tensor

    def rank(self, k: int) -> float:
        """Share of valid queries whose first right match is among the first k, for any k >= 1."""
        _at_least_one(k=k)
        return ((self.first_match > 0) & (self.first_match <= k)).sum().item() / self.num_valid

    def to_dict(self) -> dict[str, float]:
        """The means as plain numbers, in [0, 1], for JSON and tables."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10)}
        return {"mAP": self.mAP, "mINP": self.mINP, **ranks, "num_valid": self.num_valid, "num_query": self.num_query}

    def summary(self) -> str:
        """One line, in percent."""
        ranks = "  ".join(f"Rank-{k} {self.rank(k):.1%}" for k in (1, 5, 10))
        valid = f"{self.num_valid} of {self.num_query} queries valid"
        return f"{ranks}  mAP {self.mAP:.1%}  mINP {self.mINP:.1%}  ({valid})"

    def __repr__(self) -> str:
        return f"RankingResult({self.summary()})"


@dataclass(frozen=True, eq=False)
class TopK:
    """Rank lists, (Q, k), nearest first: gallery indices int64, distances float32, whether the pid is right.

    A list that ends early goes on with index -1, distance inf, match False. All on the CPU.
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
    same_camera: bool = False,
    progress: bool = False,
    group: Any = None,
) -> RankingResult:
    """Rank the gallery for every query and say how well.

    Features (Q, D) and (G, D) of any floating dtype; pids and camids are integers, one a row. `metric`: "cosine" (rows
    are normalised, a zero row is at distance 1 from all) or "euclidean". `gallery_feats` may also be a memory-mapped
    array, safetensors files (in order), or a function that gives an iterator of blocks of rows: it is read twice, a
    block at a time. `device` defaults to where query_feats is. `block_size`: rows of queries and of gallery in a tile
    (memory and speed only). `same_camera` keeps the right matches of the query's own camera. float64 features are
    compared in float64, all others exactly as they are. `group`: a process group of torch.distributed, every process of
    which calls this with all queries and its own part of the gallery, features and ids, and gets the whole result.

    Raises ValueError that names the argument and row: NaN or infinite features, lengths or dimensions that do not fit,
    nothing to rank, ids that are no integers, no query with a right match, an unknown metric.
    """
    _at_least_one(max_rank=max_rank)
    ids = _Ids(query_pids, gallery_pids, query_camids, gallery_camids, group)
    with agreed(group):
        space = _Space(query_feats, metric, device, ids)
    return _evaluate(space, gallery_feats, ids, max_rank, block_size, same_camera, progress, group)


def evaluate_distances(
    distances: Feats,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    max_rank: int = 50,
    block_size: int | None = None,
    same_camera: bool = False,
) -> RankingResult:
    """The same for a matrix of distances (Q, G) from elsewhere (re-ranked, for instance), compared as it stands."""
    _at_least_one(max_rank=max_rank)
    ids = _Ids(query_pids, gallery_pids, query_camids, gallery_camids)
    matrix = _rows(distances, "distances")
    if matrix.shape != (shape := (len(ids.query_pids), len(ids.gallery_pids))):
        raise ValueError(f"distances is {tuple(matrix.shape)}, the pids ask for {shape}")
    return _evaluate(_Given(matrix), matrix.T, ids, max_rank, block_size, same_camera)


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
    same_camera: bool = False,
    progress: bool = False,
) -> TopK:
    """The k nearest kept gallery items of every query, in the order that `evaluate_ranking` counts in.

    Arguments and errors as there. Distances are 1 - cosine, or the (not squared) euclidean distance.
    """
    _at_least_one(k=k)
    ids = _Ids(query_pids, gallery_pids, query_camids, gallery_camids)
    space = _Space(query_feats, metric, device, ids)
    indices, found = search(space, gallery_feats, k, ids, block_size, same_camera, progress)
    found = found if space.cosine else found.sqrt()
    matches = (ids.gallery_pids[indices] == ids.query_pids[:, None]) & (indices >= 0)
    return TopK(indices, found.float(), matches)


# ---- ids and features ------------------------------------------------------------------------------------------------


class _Ids:
    """Checked pids and camids, int64 on the CPU; the gallery's of all processes of a group, in their order."""

    def __init__(
        self, query_pids: Any, gallery_pids: Any, query_camids: Any, gallery_camids: Any, group: Any = None
    ) -> None:
        with agreed(group):
            self.query_pids = _integers(query_pids, "query_pids")
            self.query_camids = _integers(query_camids, "query_camids")
            self.gallery_pids = _integers(gallery_pids, "gallery_pids")
            self.gallery_camids = _integers(gallery_camids, "gallery_camids")
            for side in ("query", "gallery"):
                pids, camids = getattr(self, f"{side}_pids"), getattr(self, f"{side}_camids")
                if len(pids) != len(camids):
                    raise ValueError(f"{side}_pids has {len(pids)} entries, {side}_camids has {len(camids)}")
        self.first, self.rows = 0, len(self.gallery_pids)  # the part of the gallery whose features are here
        if group is not None:
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, (self.gallery_pids, self.gallery_camids), group=group)
            self.first = sum(len(part[0]) for part in parts[: dist.get_rank(group)])
            self.gallery_pids, self.gallery_camids = (torch.cat(columns) for columns in zip(*parts, strict=True))
        for side in ("query", "gallery"):
            if not len(getattr(self, f"{side}_pids")):
                raise ValueError(f"the {side} set is empty: there is nothing to rank")


def _at_least_one(**arguments: int | None) -> None:
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _integers(values: Any, name: str) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a flat list of integers, not {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def _rows(feats: Any, name: str) -> Tensor:
    """A 2-D floating tensor that shares the memory of `feats`."""
    if not isinstance(feats, Tensor):
        array = np.asarray(feats)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} must hold numbers, not {array.dtype}")
        with warnings.catch_warnings():  # a read-only memory map is never written to
            warnings.filterwarnings("ignore", message=".*not writable.*")
            feats = torch.from_numpy(array)
    feats = feats.detach()
    if feats.ndim != 2 or feats.shape[1] == 0 or feats.is_complex() or feats.dtype == torch.bool:
        raise ValueError(f"{name} must be a matrix, one row of features each, not {feats.dtype} {tuple(feats.shape)}")
    return feats if feats.is_floating_point() else feats.double()


def _exact(rows: Tensor, device: torch.device) -> Tensor:
    """On the device, contiguous, in a dtype that holds every value exactly and that the kernels know."""
    return rows.to(device, torch.float64 if rows.dtype == torch.float64 else torch.float32).contiguous()


def _norms(rows: Tensor, first: int, name: str) -> Tensor:
    norms = kernels.squares(rows).sqrt_()
    if not (good := norms.isfinite()).all():
        raise ValueError(f"{name} has a NaN or infinite value in row {first + int((~good).nonzero()[0])}")
    return norms


def blocks(gallery: Gallery, size: int, ids: _Ids, progress: bool = False) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, rows) of a gallery in any of its forms, at most `size` rows at a time."""
    if isinstance(gallery, (Tensor, np.ndarray)):
        pieces: Iterable[Feats] = [gallery]
    elif callable(gallery):
        pieces = gallery()
    else:
        pieces = _shards([gallery] if isinstance(gallery, (str, Path)) else gallery)
    first = ids.first
    with _bar(ids.rows, progress) as bar:
        for piece in pieces:
            for start in range(0, len(piece), size):
                rows = _rows(piece[start : start + size], "gallery_feats")
                yield first, rows
                first += len(rows)
                bar.update(len(rows))
    if first - ids.first != ids.rows:
        raise ValueError(f"gallery_feats has {first - ids.first} rows, gallery_pids has {ids.rows}")


def _shards(paths: Sequence[str | Path]) -> Iterator[Any]:
    from safetensors import safe_open

    for path in paths:
        if not isinstance(path, (str, Path)):
            raise ValueError(
                f"gallery_feats must be a matrix, safetensors paths or a function, not {type(path)} in a list"
            )
        with safe_open(path, "pt") as file:
            keys = [k for k in file.keys() if len(file.get_slice(k).get_shape()) == 2]  # noqa: SIM118 (not a dict)
            if len(keys) != 1 and "gallery.feats" not in keys:
                raise ValueError(f"{path} must hold one matrix, or one named gallery.feats; it holds {keys}")
            yield _Slices(file.get_slice("gallery.feats" if "gallery.feats" in keys else keys[0]))


class _Slices:
    """Rows of a safetensors file, read as they are asked for."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.get_shape()[0]

    def __getitem__(self, part: slice) -> Tensor:
        return self.rows[part.start : min(part.stop, len(self))]


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="gallery", unit="img", leave=False, disable=not progress) as bar:
        yield bar


# ---- the two spaces that can be ranked in ----------------------------------------------------------------------------


@dataclass
class _Block:
    """Some gallery rows, ready: score = product * scale - shift grows as the distance falls."""

    first: int
    rows: Tensor  # (n, D) exact
    norms: Tensor  # (n,) float64
    scale: Tensor  # (n,) dtype of the scores
    shift: Tensor
    pids: Tensor  # (n,) int64


class _Space:
    """Queries under a metric on a device: scores of a tile, how far they can be off, exact distances of chosen pairs.

    Cosine: score = s q·g / |g|, s a power of two with s |q| in [1/2, 1). Euclidean: score = s (q·g - |g|^2 / 2), s one
    power of two for all. Scaling by s is exact and keeps products of any finite features in range.
    """

    given = False

    def __init__(self, query_feats: Feats, metric: str, device: torch.device | str | None, ids: _Ids) -> None:
        if metric not in ("cosine", "euclidean"):
            raise unknown_name("metric", metric, ("cosine", "euclidean"))
        self.cosine = metric == "cosine"
        rows = _rows(query_feats, "query_feats")
        if len(rows) != len(ids.query_pids):
            raise ValueError(f"query_feats has {len(rows)} rows, query_pids has {len(ids.query_pids)}")
        self.device = torch.device(device) if device is not None else rows.device
        if self.device.type == "mps":
            self.device = torch.device("cpu")  # MPS has no float64
        self.rows, self.pids = _exact(rows, self.device), ids.query_pids.to(self.device)
        self.num_query, self.dim = rows.shape
        self.product_error = kernels.product_error(self.dim)
        if kernels.kind(self.device) == "triton":
            from reidlib.evaluation import fused

            self.product_error = kernels.product_error(self.dim, fused.ROUNDING, fused.STEP)
        self.norms = _norms(self.rows, 0, "query_feats")
        largest = self.norms if self.cosine else self.norms.max().expand(self.num_query)
        self.norms = self.norms.clamp(min=1e-12) if self.cosine else self.norms
        self.power = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest.clamp(min=1e-12)).exponent)

    def block(self, first: int, rows: Tensor, ids: _Ids) -> _Block:
        if rows.shape[1] != self.dim:
            raise ValueError(f"query_feats has {self.dim} dimensions, gallery_feats has {rows.shape[1]}")
        rows = _exact(rows, self.device)
        norms = _norms(rows, first, "gallery_feats")
        if self.cosine:
            norms.clamp_(min=1e-12)
            scale = torch.where(norms < 1e37, 1 / norms, torch.nan)  # NaN: float32 cannot tell, so decided exactly
            shift = torch.zeros_like(norms)
        else:
            scale = torch.ones_like(norms)
            shift = norms.square() * (self.power[0] / 2)
            shift = torch.where(shift < 1e37, shift, torch.nan)
        pids = ids.gallery_pids[first : first + len(rows)].to(self.device)
        return _Block(first, rows, norms, scale.float(), shift.float(), pids)

    def product(self, tile: slice, block: _Block) -> Tensor:
        """(len(tile), n) float32, in chunks whose error `kernels.product_error` bounds."""
        q, g = self.scaled(tile), block.rows.float()
        out = torch.mm(q[:, : kernels.CHUNK], g[:, : kernels.CHUNK].T)
        for c in range(kernels.CHUNK, self.dim, kernels.CHUNK):
            out.addmm_(q[:, c : c + kernels.CHUNK], g[:, c : c + kernels.CHUNK].T)
        return out

    def scaled(self, tile: slice) -> Tensor:
        return (self.rows[tile] * self.power[tile, None].to(self.rows.dtype)).float()

    def score(self, distances: Tensor, query: Tensor) -> Tensor:
        """The float64 scores that exact distances stand for."""
        norm, power = self.norms[query], self.power[query]
        return (1 - distances) * norm * power if self.cosine else (norm.square() - distances) * (power / 2)

    def error(self, query: Tensor, block: _Block) -> Tensor:
        """How far a float32 score of `block` can be from the exact one, relative errors of at most 2^-22 left out."""
        product, slack = self.product_error, self.dim * 2.0**-50  # of screening; of exact distances
        if self.cosine:
            return torch.full_like(self.power[query], product + slack)
        norm, power, far = self.norms[query], self.power[query], block.norms.max()
        of_products = product * norm * far + 2.0**-22 * far.square()
        return power * (of_products + slack * (norm + far).square()) + self.dim * 2.0**-125  # underflow

    def bounds(self, distances: Tensor, query: Tensor, block: _Block) -> tuple[Tensor, Tensor]:
        """Float32 scores below and above which an item of `block` is surely behind or ahead of these distances."""
        score = self.score(distances, query)
        error = self.error(query, block) + 2.0**-22 * score.abs()
        return (score - error).float(), (score + error).float()

    def exact(self, query: Tensor, item: Tensor, block: _Block) -> Tensor:
        return kernels.distances(self.rows, block.rows, self.norms, block.norms, self.cosine, query, item)


class _Given:
    """A matrix of distances (Q, G) under the same interface: scores are its negated entries, and not off at all."""

    given, cosine = True, False

    def __init__(self, matrix: Tensor) -> None:
        self.device = torch.device("cpu")
        self.num_query = len(matrix)
        self.rows = torch.empty(self.num_query, 1)  # the kernels take no features here
        self.norms = torch.ones(self.num_query, dtype=torch.float64)

    def block(self, first: int, rows: Tensor, ids: _Ids) -> _Block:
        rows = _exact(rows, self.device)  # (n, Q): some columns of the matrix
        if not (good := rows.isfinite().all(0)).all():
            raise ValueError(f"distances has a NaN or infinite value in row {int((~good).nonzero()[0])}")
        ones = rows.new_ones(len(rows))
        return _Block(first, rows, ones.double(), -ones, 0 * ones, ids.gallery_pids[first : first + len(rows)])

    def product(self, tile: slice, block: _Block) -> Tensor:
        return block.rows[:, tile].T.clone(memory_format=torch.contiguous_format)

    def bounds(self, distances: Tensor, query: Tensor, block: _Block) -> tuple[Tensor, Tensor]:
        score = -distances.to(block.rows.dtype)
        return score, score

    def exact(self, query: Tensor, item: Tensor, block: _Block) -> Tensor:
        return block.rows[item, query].double()


# ---- ranking ---------------------------------------------------------------------------------------------------------


@dataclass
class _Pairs:
    """All (query, gallery item) of one pid, by query, then item: few, whatever the size of the gallery."""

    ptr: Tensor  # (Q + 1,) where each query's pairs begin; on the CPU
    query: Tensor  # (P,)
    item: Tensor  # (P,)
    kept: Tensor  # (P,) bool: a right match, not an item to drop
    exact: Tensor  # (P,) float64 distances of the kept ones
    ahead: Tensor  # (P,) wrong kept items that come before

    @classmethod
    def of(cls, ids: _Ids, same_camera: bool, device: torch.device) -> "_Pairs":
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
        kept = (ids.gallery_camids[item] != ids.query_camids[query]) | same_camera
        query, item, kept = (t.to(device) for t in (query, item, kept))
        return cls(ptr, query, item, kept, torch.zeros_like(item, dtype=torch.float64), torch.zeros_like(item))

    def inside(self, block: _Block) -> Tensor:
        return ((self.item >= block.first) & (self.item < block.first + len(block.rows))).nonzero()[:, 0]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32, whatever the caller allows elsewhere: the error bound counts on it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _sizes(space: "_Space | _Given", block_size: int | None) -> tuple[int, int]:
    """Rows of queries and of gallery in a tile; by default the scores take 8 MiB on a CPU, 128 MiB on a GPU."""
    if block_size is None:
        return {"numba": (512, 4096), "torch": (2048, 16384), "triton": (8192, 65536)}[kernels.kind(space.device)]
    _at_least_one(block_size=block_size)
    return block_size, block_size


def _evaluate(
    space: "_Space | _Given",
    gallery: Gallery,
    ids: _Ids,
    max_rank: int,
    block_size: int | None,
    same_camera: bool,
    progress: bool = False,
    group: Any = None,
) -> RankingResult:
    rows, columns = _sizes(space, block_size)
    pairs = _Pairs.of(ids, same_camera, space.device)
    if not pairs.kept.any():
        raise ValueError("no query has a right match in the gallery (same pid, another camera): nothing to average")
    with agreed(group), full_precision(space.device):
        for first, part in blocks(gallery, columns, ids):
            block = space.block(first, part, ids)
            mine = pairs.inside(block)
            mine = mine[pairs.kept[mine]]
            pairs.exact[mine] = space.exact(pairs.query[mine], pairs.item[mine] - first, block)
    if group is not None:
        dist.all_reduce(pairs.exact, group=group)  # every entry is 0 but on one process
    with agreed(group), full_precision(space.device):
        for first, part in blocks(gallery, columns, ids, progress):
            block = space.block(first, part, ids)
            low, high = space.bounds(pairs.exact, pairs.query, block)
            for start in range(0, space.num_query, rows):
                _count(space, slice(start, min(start + rows, space.num_query)), block, pairs, low, high)
    if group is not None:
        dist.all_reduce(pairs.ahead, group=group)
    return _result(pairs, max_rank)


@contextmanager
def agreed(group: Any) -> Iterator[None]:
    """What is raised on one process of the group is raised on all, so that none waits for ever."""
    error = None
    try:
        yield
    except Exception as raised:
        if group is None:
            raise
        error = raised
    if group is not None:
        said: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(said, error and str(error), group=group)
        if bad := [f"process {i}: {text}" for i, text in enumerate(said) if text is not None]:
            raise ValueError("; ".join(bad)) from error


def _count(space: "_Space | _Given", tile: slice, block: _Block, pairs: _Pairs, low: Tensor, high: Tensor) -> None:
    """Add to `pairs.ahead` the wrong kept items of `block` that come before each right match of the queries `tile`."""
    if (kind := kernels.kind(space.device)) == "numba":
        scores = space.product(tile, block)
        of_tile = (scores, block.scale, block.shift, block.pids != JUNK)
        of_tile += (space.rows[tile], block.rows, space.norms[tile], block.norms)
        of_pairs = (pairs.ptr, pairs.item, pairs.kept, pairs.exact, low, high)
        a, b = ([t.numpy() for t in tensors] for tensors in (of_tile, of_pairs))
        flags = (space.cosine, space.given, tile.start, block.first)
        return kernels.threaded(kernels.count, len(scores), *a, *flags, *b, pairs.ahead.numpy())

    # A table (queries, most right matches of one) of places in `pairs`, -1 where a query has fewer.
    own = torch.arange(int(pairs.ptr[tile.start]), int(pairs.ptr[tile.stop]), device=space.device)
    right = own[pairs.kept[own]]
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

        tensors = (space.scaled(tile), block.rows.float(), block.scale, block.shift, space.pids[tile], block.pids)
        if found := fused.tally(*tensors, low, high):
            parts = [(slice(None), *found)]
    if parts is None:
        scores = space.product(tile, block).mul_(block.scale).sub_(block.shift)
        out = (block.pids == JUNK) | (block.pids == space.pids[tile, None])
        parts = kernels.tally(scores, out, low, high)
    for columns, above, query, slot, item in parts:
        pairs.ahead.index_add_(0, table[:, columns][used[:, columns]], above[used[:, columns]].long())
        place, exact = table[query, slot], space.exact(query + tile.start, item, block)
        level = (exact == pairs.exact[place]) & (item + block.first < pairs.item[place])
        place = place[(exact < pairs.exact[place]) | level]
        pairs.ahead.index_add_(0, place, torch.ones_like(place))
    return None


def _result(pairs: _Pairs, max_rank: int) -> RankingResult:
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
    inp, first_match = np.full(num_query, np.nan), np.full(num_query, -1, dtype=np.int64)
    inp[query] = nth / rank  # the last one written is the last right match
    first_match[query[::-1]] = rank[::-1]
    cmc = np.cumsum(np.bincount(first_match[valid], minlength=max_rank + 1)[1 : max_rank + 1]) / valid.sum()
    ap, inp, first_match, cmc = (torch.from_numpy(a) for a in (ap, inp, first_match, cmc))
    valid = torch.from_numpy(valid)
    return RankingResult(
        cmc, ap[valid].mean().item(), inp[valid].mean().item(), int(valid.sum()), num_query, ap, inp, first_match
    )


# ---- search ----------------------------------------------------------------------------------------------------------


def search(
    space: _Space,
    gallery: Gallery,
    k: int,
    ids: _Ids,
    block_size: int | None = None,
    same_camera: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k first kept items of every query: indices (Q, k) int64 and exact distances (Q, k) float64, on the CPU.

    A block's candidates are the items that may be nearer than the k-th best so far, by the error bound; only these are
    decided exactly.
    """
    rows, columns = _sizes(space, block_size)
    device = space.device
    pairs = _Pairs.of(ids, same_camera, device)
    indices = torch.full((space.num_query, k), -1, device=device)
    found = torch.full((space.num_query, k), torch.inf, dtype=torch.float64, device=device)
    everyone = torch.arange(space.num_query, device=device)
    with full_precision(device):
        for first, part in blocks(gallery, columns, ids, progress):
            block = space.block(first, part, ids)
            inside = pairs.inside(block)
            inside = inside[~pairs.kept[inside]]
            for start in range(0, space.num_query, rows):
                tile = slice(start, min(start + rows, space.num_query))
                scores = space.product(tile, block).mul_(block.scale).sub_(block.shift)
                drop = (block.pids == JUNK).expand(scores.shape).clone()
                mine = inside[(pairs.query[inside] >= tile.start) & (pairs.query[inside] < tile.stop)]
                drop[pairs.query[mine] - start, pairs.item[mine] - first] = True
                scores.masked_fill_(drop, -torch.inf)
                floor, _ = space.bounds(found[tile, -1], everyone[tile], block)  # -inf while the list is not full
                if k <= scores.shape[1]:
                    kth = scores.nan_to_num(nan=-torch.inf).topk(k).values[:, -1].double()
                    kth -= 2 * space.error(everyone[tile], block) + 2.0**-21 * kth.abs()
                    floor = torch.maximum(floor, kth.float())
                query, item = (~((scores < floor[:, None]) | drop)).nonzero(as_tuple=True)
                exact = space.exact(query + start, item, block)
                _merge(found[tile], indices[tile], query, item + first, exact)
    return indices.cpu(), found.cpu()


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
