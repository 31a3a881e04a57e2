"""Figures of what was found among images without labels: nearest images, and groups of one person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reidlib.plots.images import _Cell, _grid, _page_share, thumbnail
from reidlib.plots.style import Figure, styled


@styled
def found_images(
    queries: Sequence[Any],
    found: Sequence[Sequence[tuple[Any, float]]],
    *,
    title: str = "",
    threshold: float | None = None,
) -> Figure:
    """One row a query: the image, then what was found, with similarity and file name; no labels are needed.

    Args:
        queries: Q image files.
        found: For each query (image file, similarity), nearest first.
        title: Above the figure.
        threshold: Images that are at least so similar are framed as the same person.
    """
    columns = 1 + max(map(len, found), default=0)
    width, gap = _page_share(columns, columns + 0.5)

    def cell(path: Any, similarity: float) -> _Cell:
        same = threshold is not None and similarity >= threshold
        return _Cell(thumbnail(path, width), (f"{similarity:.3f}", Path(path).name), same or "unframed")

    rows: list[list[_Cell | None]] = []
    for query, hits in zip(queries, found, strict=True):
        rows.append([_Cell(thumbnail(query, width), ("query", Path(query).name))])
        rows[-1] += [cell(*hit) for hit in hits] + [None] * (columns - 1 - len(hits))
    note = "Cosine similarity." if threshold is None else f"Framed: similarity of at least {threshold:.3f}."
    return _grid(
        rows,
        **{"title": title, "headers": ["query", *map(str, range(1, columns))], "set_off": 1, "gap": gap},
        **{"widths": [width] * columns, "height": 2 * width, "lines": 2, "note": note},
    )


@styled
def group_sheet(groups: Sequence[Sequence[Any]], *, columns: int = 10, title: str = "") -> Figure:
    """One row a group of image files: its first `columns` images, and how many it has."""
    width, gap = _page_share(columns, columns, beside=0.9)
    rows = [
        [_Cell(thumbnail(path, width), ()) for path in group[:columns]] + [None] * (columns - len(group[:columns]))
        for group in groups
    ]
    labels = [f"{len(group)} images" if len(group) > 1 else "1 image" for group in groups]
    return _grid(rows, title=title, headers=[""] * columns, labels=labels, widths=[width] * columns, height=2 * width,
                 gap=gap)  # fmt: skip
