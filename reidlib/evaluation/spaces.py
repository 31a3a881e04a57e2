"""What is ranked, made ready: checked ids, galleries of any form block by block, scores with their error bound."""

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
METRICS = ("cosine", "euclidean")


# ---- ids and features ------------------------------------------------------------------------------------------------


class Ids:
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


def at_least_one(**arguments: int | None) -> None:
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _integers(values: Any, name: str) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a flat list of integers, not {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def rows_of(feats: Any, name: str) -> Tensor:
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


def blocks(gallery: Gallery, size: int, ids: Ids, progress: bool = False) -> Iterator[tuple[int, Tensor]]:
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
                rows = rows_of(piece[start : start + size], "gallery_feats")
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
class Block:
    """Some gallery rows, ready: score = product * scale - shift grows as the distance falls."""

    first: int
    rows: Tensor  # (n, D) exact
    norms: Tensor  # (n,) float64
    scale: Tensor  # (n,) dtype of the scores
    shift: Tensor
    pids: Tensor  # (n,) int64


class Space:
    """Queries under a metric on a device: scores of a tile, how far they can be off, exact distances of chosen pairs.

    Cosine: score = s q·g / |g|; euclidean: score = s (q·g - |g|^2 / 2). s is 1 for features of ordinary size, otherwise
    a power of two with s |q| in [1/2, 1) (one for all queries if euclidean): exact, and it keeps products in range.
    """

    given = False

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
        self.rows, self.pids = _exact(rows, self.device), ids.query_pids.to(self.device)
        self.num_query, self.dim = rows.shape
        self.tile = torch.empty(0, device=self.device)
        self.product_error = kernels.product_error(self.dim)
        if kernels.kind(self.device) == "triton":
            from reidlib.evaluation import fused

            self.product_error = kernels.product_error(self.dim, **fused.BOUND)
        self.norms = _norms(self.rows, 0, "query_feats")
        largest = self.norms if self.cosine else self.norms.max().expand(self.num_query)
        self.norms = self.norms.clamp(min=1e-12) if self.cosine else self.norms
        self.power = torch.ones_like(largest)
        self.plain = self.rows.dtype == torch.float32 and bool((self.norms > 1e-15).all() and (self.norms < 1e15).all())
        if not self.plain:
            self.power = torch.ldexp(self.power, -torch.frexp(largest.clamp(min=1e-12)).exponent)

    def block(self, first: int, rows: Tensor, ids: Ids, norms: Tensor | None = None) -> Block:
        """`norms` spares the work where an earlier block of the same rows has them."""
        if rows.shape[1] != self.dim:
            raise ValueError(f"query_feats has {self.dim} dimensions, gallery_feats has {rows.shape[1]}")
        rows = _exact(rows, self.device)
        norms = _norms(rows, first, "gallery_feats") if norms is None else norms
        if self.cosine:
            norms = norms.clamp(min=1e-12)
            scale = torch.where(norms < 1e22, 1 / norms, torch.nan)  # NaN: float32 cannot tell, so decided exactly
            shift = torch.zeros_like(norms)
        else:
            scale = torch.ones_like(norms)
            shift = norms.square() * (self.power[0] / 2)
            shift = torch.where(shift < 1e37, shift, torch.nan)
        pids = ids.gallery_pids[first : first + len(rows)].to(self.device)
        return Block(first, rows, norms, scale.float(), shift.float(), pids)

    def product(self, tile: slice, block: Block) -> Tensor:
        """(len(tile), n) float32, in chunks whose error `kernels.product_error` bounds. The next call overwrites it."""
        q, g = self.scaled(tile), block.rows.float()
        if self.tile.numel() < len(q) * len(g):
            self.tile = torch.empty(len(q) * len(g), device=self.device)
        out = self.tile[: len(q) * len(g)].view(len(q), len(g))
        torch.mm(q[:, : kernels.CHUNK], g[:, : kernels.CHUNK].T, out=out)
        for c in range(kernels.CHUNK, self.dim, kernels.CHUNK):
            out.addmm_(q[:, c : c + kernels.CHUNK], g[:, c : c + kernels.CHUNK].T)
        return out

    def scaled(self, tile: slice) -> Tensor:
        return self.rows[tile] if self.plain else (self.rows[tile] * self.power[tile, None].to(self.rows.dtype)).float()

    def score(self, distances: Tensor, query: Tensor) -> Tensor:
        """The float64 scores that exact distances stand for."""
        norm, power = self.norms[query], self.power[query]
        return (1 - distances) * norm * power if self.cosine else (norm.square() - distances) * (power / 2)

    def error(self, query: Tensor, block: Block) -> Tensor:
        """How far a float32 score of `block` can be from the exact one, relative errors of at most 2^-22 left out."""
        product, slack = self.product_error, self.dim * 2.0**-50  # of screening; of exact distances
        norm, power = self.norms[query], self.power[query]
        if self.cosine:
            return (product + slack) * norm * power
        far = block.norms.max()
        of_products = product * norm * far + 2.0**-22 * far.square()
        return power * (of_products + slack * (norm + far).square()) + self.dim * 2.0**-125  # underflow

    def bounds(self, distances: Tensor, query: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Float32 scores below and above which an item of `block` is surely behind or ahead of these distances."""
        score = self.score(distances, query)
        error = self.error(query, block) + 2.0**-22 * score.abs()
        return (score - error).float(), (score + error).float()

    def exact(self, query: Tensor, item: Tensor, block: Block) -> Tensor:
        return kernels.distances(self.rows, block.rows, self.norms, block.norms, self.cosine, query, item)


class Given:
    """A matrix of distances (Q, G) under the same interface: scores are its negated entries, and not off at all."""

    given, cosine = True, False

    def __init__(self, matrix: Tensor) -> None:
        self.device = torch.device("cpu")
        self.num_query = self.dim = len(matrix)
        self.rows = torch.empty(self.num_query, 1)  # the kernels take no features here
        self.norms = torch.ones(self.num_query, dtype=torch.float64)

    def block(self, first: int, rows: Tensor, ids: Ids, norms: Tensor | None = None) -> Block:
        rows = _exact(rows, self.device)  # (n, Q): some columns of the matrix
        if not (good := rows.isfinite().all(0)).all():
            raise ValueError(f"distances has a NaN or infinite value in row {int((~good).nonzero()[0])}")
        ones = rows.new_ones(len(rows))
        return Block(first, rows, ones.double(), -ones, 0 * ones, ids.gallery_pids[first : first + len(rows)])

    def product(self, tile: slice, block: Block) -> Tensor:
        return block.rows[:, tile].T.clone(memory_format=torch.contiguous_format)

    def bounds(self, distances: Tensor, query: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        score = -distances.to(block.rows.dtype)
        return score, score

    def exact(self, query: Tensor, item: Tensor, block: Block) -> Tensor:
        return block.rows[item, query].double()


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


def tile_sizes(space: Space | Given, block_size: int | None) -> tuple[int, int]:
    """Rows of queries and of gallery in a tile: by default 8 MiB of gallery on a CPU, 512 MiB of scores on a GPU."""
    if block_size is None:
        on_cpu = (1024, min(8192, max(64, (1 << 21) // space.dim)))
        return {"numba": on_cpu, "torch": (2048, 16384), "triton": (4096, 32768)}[kernels.kind(space.device)]
    at_least_one(block_size=block_size)
    return block_size, block_size


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
