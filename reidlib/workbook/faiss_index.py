"""Approximate search of an `ImageIndex` by FAISS (faiss-cpu or faiss-gpu, not installed with this package).

Worth it above some millions of images: below, the exact search takes less than a second.
"""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.files import whole_file

if TYPE_CHECKING:
    from reidlib.workbook.image_index import ImageIndex

_LISTS = 4096  # at most, of the inverted file
_PROBED = 32  # lists that a query looks into
_TRAINED_ON = 64  # rows for each list


def build(index: "ImageIndex") -> Any:
    """The FAISS index of all features, read from the index's folder, or made if features have changed since.

    Raises:
        ImportError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("approximate search needs FAISS: pip install faiss-cpu, or search exactly") from error
    numbers, starts, used, _ = index._layout
    count = int(starts[-1])
    mark = f"{numbers[-1] if numbers else 0}-{count}-{len(index)}"
    file = index.path / f"faiss-{mark}.index"
    if file.is_file():
        return faiss.read_index(str(file))
    lists = max(1, min(_LISTS, count // _TRAINED_ON))
    found = faiss.IndexIVFFlat(faiss.IndexFlatIP(index.extractor.model.feature_dim), index.extractor.model.feature_dim,
                               lists, faiss.METRIC_INNER_PRODUCT)  # fmt: skip
    sample = torch.cat([part[:: max(1, count // (lists * _TRAINED_ON))] for part in index._parts()])
    found.train(normalize(sample).numpy())
    for start, part in zip(starts.tolist(), index._parts(), strict=False):
        rows = (used[start : start + len(part)] == 0).nonzero()[:, 0]
        found.add_with_ids(normalize(part[rows]).numpy(), (rows + start).numpy())
    for old in index.path.glob("faiss-*.index"):
        old.unlink()
    with whole_file(file) as part:
        faiss.write_index(found, str(part))
    return found


def search(index: "ImageIndex", feats: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `ImageIndex.ranked`, approximately. See `build` for the errors."""
    found = build(index)
    found.nprobe = _PROBED
    similarity, rows = found.search(np.ascontiguousarray(normalize(feats.float()).numpy()), k)
    return torch.from_numpy(rows), torch.from_numpy(similarity)


def recall(index: "ImageIndex", k: int = 10, *, queries: int = 100, seed: int = 0) -> float:
    """The share of the k nearest images, exactly, that the approximate search finds, for random images of the index."""
    _, starts, used, _ = index._layout
    rows = (used == 0).nonzero()[:, 0]
    rows = rows[torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:queries])].sort().values
    feats = torch.cat(
        [part[rows[(rows >= a) & (rows < a + len(part))] - a]
         for a, part in zip(starts.tolist(), index._parts(), strict=False)]
    )  # fmt: skip
    with warnings.catch_warnings():
        exact, approximate = index.ranked(feats, k)[0], search(index, feats, k)[0]
    hits = sum(len(set(a.tolist()) & set(e.tolist()) - {-1}) for a, e in zip(approximate, exact, strict=True))
    return hits / max(1, int((exact >= 0).sum()))
