"""What the rankings share: checked ids, galleries read block by block, distances as scores with an error bound."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
Exclude = Sequence[Sequence[str]]
OtherIds = Mapping[str, tuple[Any, Any]]
JUNK = -1
UNKNOWN = -1  # an id other than pid and camid that nobody states: it neither agrees with another nor differs from it
METRICS = ("cosine", "euclidean")
STANDARD = (("pid", "camid"),)  # Market-1501's rule: images of the query's person under the query's camera are left out


# ---- ids and features ------------------------------------------------------------------------------------------------


class Ids:
    """Checked ids, int64 on the CPU, and which pairs of one person are left out.

    With a process group, the gallery's ids are those of all its processes; `first` and `rows` say which part of the
    gallery has its features in this process.

    Args:
        query_pids, gallery_pids, query_camids, gallery_camids, exclude, other_ids: See `evaluate_ranking`.
        group: Likewise.
    """

    def __init__(
        self,
        query_pids: Any,
        gallery_pids: Any,
        query_camids: Any,
        gallery_camids: Any,
        group: Any = None,
        *,
        exclude: Exclude = STANDARD,
        other_ids: OtherIds | None = None,
    ) -> None:
        with raised_together(group):
            columns = {"pids": (query_pids, gallery_pids), "camids": (query_camids, gallery_camids)} | dict(
                other_ids or {}
            )
            checked: list[list[Tensor]] = [[], []]
            for name, both in columns.items():
                for found, values, side in zip(checked, both, ("query", "gallery"), strict=True):
                    found.append(_integers(values, f"{side}_{name}"))
                    if len(found[-1]) != len(found[0]):
                        raise ValueError(f"{side}_pids has {len(found[0])} entries, {side}_{name} has {len(found[-1])}")
            names = ["pid", "camid", *list(columns)[2:]]
            self.exclude = _check_exclude(exclude, names)
        query, gallery = checked
        self.first, self.rows = 0, len(gallery[0])
        if group is not None:
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, gallery, group=group)
            self.first = sum(len(part[0]) for part in parts[: dist.get_rank(group)])
            gallery = [torch.cat(column) for column in zip(*parts, strict=True)]
        self.columns = {name: (q, g) for name, q, g in zip(names, query, gallery, strict=True)}
        (self.query_pids, self.gallery_pids), (self.query_camids, self.gallery_camids) = list(self.columns.values())[:2]
        for side, column in (("query", query[0]), ("gallery", gallery[0])):
            if not len(column):
                raise ValueError(f"the {side} set is empty: there is nothing to rank")

    def kept(self, query: Tensor, item: Tensor) -> Tensor:
        """Which pairs of one person, queries (P,) and gallery items (P,) int64, are right matches: (P,) bool."""
        kept = torch.ones(len(query), dtype=torch.bool)
        for rule in self.exclude:
            dropped = [self._agree(name, query, item) for name in rule if name != "pid"]
            kept &= ~torch.stack(dropped).all(0) if len(dropped) > 1 else ~dropped[0]
        return kept

    def rules(self, query: Any = slice(None), gallery: Any = slice(None)) -> dict[str, Any]:
        """The arguments `exclude` and `other_ids` again, of some queries and some of the gallery."""
        columns = list(self.columns.items())[2:]
        return {"exclude": self.exclude, "other_ids": {name: (q[query], g[gallery]) for name, (q, g) in columns}}

    def _agree(self, name: str, query: Tensor, item: Tensor) -> Tensor:
        of_query, of_gallery = self.columns[name.removeprefix("!")]
        a, b = of_query[query], of_gallery[item]
        if name == "camid":  # 0 and below are cameras like any other
            return a == b
        return (a != b if name[0] == "!" else a == b) & (a != UNKNOWN) & (b != UNKNOWN)


def _check_exclude(exclude: Exclude, names: Sequence[str]) -> list[tuple[str, ...]]:
    """`exclude` as tuples. ValueError for what is no list of lists, lacks the pid, or names an id that is not there."""
    advice = f"exclude is a list of lists of ids, each with pid and another, such as {STANDARD}"
    if isinstance(exclude, str) or any(isinstance(rule, str) for rule in exclude):
        raise ValueError(f"{advice}, not {exclude!r}")
    for rule in exclude:
        if "pid" not in rule or len(set(rule)) < 2:
            raise ValueError(f"{advice}, not {tuple(rule)}")
        for name in rule:
            if name.removeprefix("!") not in names or name == "!pid":
                raise unknown_name("id of exclude", name, [*names, *(f"!{n}" for n in names[1:])])
    return [tuple(rule) for rule in exclude]


def at_least_one(**arguments: int | None) -> None:
    """ValueError that names the first of the arguments that is below 1; None passes."""
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _integers(values: Any, name: str) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a flat list of integers, not {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def rows_of(feats: Any, name: str) -> Tensor:
    """`feats` as a floating tensor (N, D), without a copy where they are one already. ValueError naming `name`."""
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


def check_finite(rows: Tensor, name: str, first: int = 0) -> None:
    """ValueError naming the first of `rows` (N, D) with a NaN or infinite value; row 0 is row `first` of `name`."""
    for part in rows.split(1024):  # isfinite needs as much memory again
        if not (good := part.isfinite().all(1)).all():
            raise ValueError(f"{name} has a NaN or infinite value in row {first + int((~good).nonzero()[0])}")
        first += len(part)


def blocks(gallery: Gallery, size: int, ids: Ids, progress: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Read a gallery in any of its forms, at most `size` rows at a time: (index of the first row, rows (n, D))."""
    from tqdm.auto import tqdm

    if isinstance(gallery, (Tensor, np.ndarray)):
        pieces: Iterable[Feats] = [gallery]
    elif callable(gallery):
        pieces = gallery()
    else:
        pieces = _read([gallery] if isinstance(gallery, (str, Path)) else gallery, size)
    first = ids.first
    with tqdm(total=ids.rows, desc="gallery", unit="img", leave=False, disable=not progress) as bar:
        for piece in pieces:
            for start in range(0, len(piece), size):
                rows = rows_of(piece[start : start + size], "gallery_feats")
                yield first, rows
                first += len(rows)
                bar.update(len(rows))
    if first - ids.first != ids.rows:
        raise ValueError(f"gallery_feats has {first - ids.first} rows, gallery_pids has {ids.rows}")


def _read(paths: Sequence[str | Path], size: int) -> Iterator[Tensor]:
    """The rows of safetensors files, in order, at most `size` at a time."""
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
            rows = file.get_slice("gallery.feats" if "gallery.feats" in keys else keys[0])
            count = rows.get_shape()[0]
            for start in range(0, count, size):
                yield rows[start : min(start + size, count)]


# ---- the space that is ranked in -------------------------------------------------------------------------------------

# Float32 products of rows with norms between these stay in range, and so do float64 products of their squared norms.
ORDINARY = (2.0**-30, 2.0**30)


def scaled(x: Tensor, exponent: Tensor | int) -> Tensor:
    """`x` times 2 ** exponent (-1200 to 1200; broadcast) in float64: exact but for underflow."""
    exponent = torch.as_tensor(exponent, device=x.device).long()
    half = exponent // 2  # two steps: the whole factor may be out of range where the product is not
    first, second = (((1023 + part) << 52).view(torch.float64) for part in (half, exponent - half))
    return x.double() * first * second


def common_exponent(rows: Tensor) -> int:
    """The exponent e that makes the largest value of `rows` / 2 ** e ordinary; 0 where it is, is zero or not finite."""
    largest = max(abs(float(x)) for x in rows.aminmax())
    extreme = 0 < largest < math.inf and not ORDINARY[0] < largest < ORDINARY[1]
    return math.frexp(largest)[1] if extreme else 0


def ordinary_rows(rows: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Scale rows of extreme norms by a power of two each, which changes no cosine.

    Args:
        rows: (N, D), finite.
        squares: Their squared norms (N,) float64; they may have overflowed or underflowed.

    Returns:
        Rows of the same dtype; their squared norms, with 1 for a row of zeros; whether any row was scaled.
    """
    extreme = (~((squares > ORDINARY[0] ** 2) & (squares < ORDINARY[1] ** 2))).nonzero()[:, 0]
    if not len(extreme):
        return rows, squares, False
    largest, squares = rows[extreme].abs().amax(1).double(), squares.clone()
    squares[extreme[largest == 0]] = 1
    extreme, exponent = extreme[largest > 0], torch.frexp(largest[largest > 0]).exponent
    if len(extreme):
        rows = rows.clone()
        rows[extreme] = scaled(rows[extreme], -exponent[:, None]).to(rows.dtype)
        squares[extreme] = kernels.squares(rows[extreme])
    return rows, squares, len(extreme) > 0


@dataclass
class Block:
    """Some gallery rows: score = product * scale - shift grows as the distance falls."""

    first: int
    rows: Tensor  # (n, D) float32 or float64
    squares: Tensor  # (n,) float64 squared norms
    scale: Tensor  # (n,) float32
    shift: Tensor  # (n,) float32
    pids: Tensor  # (n,) int64
    as_given: bool  # whether the rows are those of the caller, not scaled


class Space:
    """The queries on a device, and a metric: scores of tiles, bounds of their error, exact distances of chosen pairs.

    Cosine: score = q·g / |g|; euclidean: score = q·g - |g|² / 2. Features of extreme size are scaled by powers of two,
    which is exact. Cosine: each extreme row by its own. Euclidean: if the queries are extreme, all rows by
    2 ** -exponent, and distances are those of the scaled rows.
    """

    def __init__(self, query_feats: Feats, metric: str, device: torch.device | str | None, ids: Ids) -> None:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        self.cosine = metric == "cosine"
        rows = rows_of(query_feats, "query_feats")
        if len(rows) != len(ids.query_pids):
            raise ValueError(f"query_feats has {len(rows)} rows, query_pids has {len(ids.query_pids)}")
        self.device = torch.device(device) if device is not None else rows.device
        if self.device.type == "mps":
            self.device = torch.device("cpu")  # MPS has no float64
        self.num_query, self.dim = rows.shape
        self.pids = ids.query_pids.to(self.device)
        self.exponent = 0 if self.cosine else common_exponent(rows)
        self.rows, self.squares, _ = self._ready(rows, 0, "query_feats")
        self.norms = kernels.root(self.squares)
        self.tile = torch.empty(0, device=self.device)
        self.product_error = kernels.product_error(self.dim)
        if kernels.kind(self.device) == "triton":
            from reidlib.evaluation import fused

            self.product_error = kernels.product_error(self.dim, **fused.BOUND)

    def _ready(self, rows: Tensor, first: int, name: str, squares: Tensor | None = None) -> tuple[Tensor, Tensor, bool]:
        """Rows as the kernels take them, float32 or float64, exactly; their squared norms; whether none was scaled."""
        rows = rows.to(self.device, torch.float64 if rows.dtype == torch.float64 else torch.float32)
        rows = (scaled(rows, -self.exponent) if self.exponent else rows).contiguous()
        if squares is not None:
            return rows, squares, True
        squares = kernels.squares(rows)
        if not (good := squares < 1e300).all():
            check_finite(rows, name, first)
            if not self.cosine:
                row = first + int((~good).nonzero()[0])
                raise ValueError(
                    f"{name} is so much longer in row {row} than every query that squared distances overflow: "
                    'normalise the features, or use metric="cosine"'
                )
        if not self.cosine:
            return rows, squares, not self.exponent
        rows, squares, changed = ordinary_rows(rows, squares)
        return rows, squares, not changed

    def block(self, first: int, rows: Tensor, ids: Ids, squares: Tensor | None = None) -> Block:
        """Prepare gallery rows (n, D) from row `first` on.

        `squares` of an earlier `as_given` block of the same rows are not computed again.
        """
        if rows.shape[1] != self.dim:
            raise ValueError(f"query_feats has {self.dim} dimensions, gallery_feats has {rows.shape[1]}")
        rows, squares, as_given = self._ready(rows, first, "gallery_feats", squares)
        scale, shift = torch.ones_like(squares), torch.zeros_like(squares)
        if self.cosine:
            scale = 1 / kernels.root(squares)
        else:  # NaN: float32 cannot tell, so decided exactly
            shift = torch.where(squares < 1e37, squares / 2, torch.nan)
        pids = ids.gallery_pids[first : first + len(rows)].to(self.device)
        return Block(first, rows, squares, scale.float(), shift.float(), pids, as_given)

    def product(self, tile: slice, block: Block) -> Tensor:
        """(len(tile), n) float32, in chunks whose error `kernels.product_error` bounds. The next call overwrites it."""
        q, g = self.rows[tile].float(), block.rows.float()
        if self.tile.numel() < len(q) * len(g):
            self.tile = torch.empty(len(q) * len(g), device=self.device)
        out = self.tile[: len(q) * len(g)].view(len(q), len(g))
        torch.mm(q[:, : kernels.CHUNK], g[:, : kernels.CHUNK].T, out=out)
        for c in range(kernels.CHUNK, self.dim, kernels.CHUNK):
            out.addmm_(q[:, c : c + kernels.CHUNK], g[:, c : c + kernels.CHUNK].T)
        return out

    def score(self, distances: Tensor, query: Tensor) -> Tensor:
        """The float64 scores that exact distances stand for."""
        return (1 - distances) * self.norms[query] if self.cosine else (self.squares[query] - distances) / 2

    def error(self, query: Tensor, block: Block) -> Tensor:
        """How far a float32 score of `block` can be from the exact one, relative errors of at most 2^-22 left out."""
        product, slack = self.product_error, self.dim * 2.0**-50  # of screening; of exact distances
        norm = self.norms[query]
        if self.cosine:
            return (product + slack) * norm
        far = block.squares.max().sqrt()
        of_products = product * norm * far + 2.0**-22 * far.square()
        return of_products + slack * (norm + far).square() + self.dim * 2.0**-125  # underflow

    def bounds(self, distances: Tensor, query: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Float32 scores below and above which an item of `block` is surely behind or ahead of these distances."""
        score = self.score(distances, query)
        error = self.error(query, block) + 2.0**-22 * score.abs()
        return (score - error).float(), (score + error).float()

    def exact(self, query: Tensor, item: Tensor, block: Block) -> Tensor:
        """Exact distances (P,) float64 of pairs of rows of the queries and of `block`."""
        return kernels.distances(self.rows, block.rows, self.squares, block.squares, self.cosine, query, item)


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


def tile_sizes(space: Space, block_size: int | None) -> tuple[int, int]:
    """Rows of queries and of gallery in a tile: by default 8 MiB of gallery on a CPU, 512 MiB of scores on a GPU."""
    if block_size is None:
        on_cpu = (1024, min(8192, max(64, (1 << 21) // space.dim)))
        return {"numba": on_cpu, "torch": (2048, 16384), "triton": (4096, 32768)}[kernels.kind(space.device)]
    at_least_one(block_size=block_size)
    return block_size, block_size


@contextmanager
def raised_together(group: Any) -> Iterator[None]:
    """What is raised on one process of the group is raised on all, so that none waits for ever."""
    if group is None:
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    messages: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(messages, error and str(error), group=group)
    if bad := [f"process {i}: {text}" for i, text in enumerate(messages) if text is not None]:
        raise ValueError("; ".join(bad)) from error
