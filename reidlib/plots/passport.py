"""Figures about a data set before anything is trained: who was seen where, how large, how alike; matrices of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from reidlib.plots.images import _Cell, _grid, thumbnail
from reidlib.plots.style import COLOURS, GREY, Figure, array, styled


@styled
def image_counts(tables: Mapping[str, tuple[Any, Sequence[int]]], title: str = "") -> Figure:
    """How many pictures (P, C) of each person (across, most seen first) each camera (down) took; one panel a split.

    `tables` gives counts and camids for each split. White is a camera that never saw the person.
    """
    tables = {name: (array(counts), list(camids)) for name, (counts, camids) in tables.items() if array(counts).size}
    if not tables:
        raise ValueError("no split shows a person, so there is nothing to count")
    rows = [0.5 + 0.22 * max(3, len(camids)) for _, camids in tables.values()]
    figure = Figure(figsize=(8.4, 0.7 + sum(rows) + 0.35 * len(rows)), layout="constrained")
    figure.suptitle(title or None, x=0.01, ha="left")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    most = max(counts.max() for counts, _ in tables.values())
    colours = colormaps["cividis_r"].with_extremes(under="white")
    for axes, (name, (counts, camids)) in zip(panels, tables.items(), strict=True):
        order = np.lexsort((-(counts > 0).sum(1), -counts.sum(1)))
        shown = axes.imshow(
            counts[order].T, cmap=colours, vmin=0.5, vmax=max(most, 1.5), aspect="auto", interpolation="none"
        )
        single = int(((counts > 0).sum(1) < 2).sum())
        axes.set_title(f"{name}: {len(counts)} people, {counts.sum()} pictures; {single} before one camera only")
        axes.set_yticks(range(len(camids)), camids)
        axes.set(xlabel="people, most pictures first", ylabel="camera")
        axes.set_xticks([])
        axes.grid(False)
    bar = figure.colorbar(shown, ax=list(panels), label="pictures", ticks=MaxNLocator(integer=True), shrink=0.8)
    bar.outline.set_visible(False)
    return figure


@styled
def image_sizes(sizes: Any, title: str = "", wanted: tuple[int, int] = (256, 128)) -> Figure:
    """Height over width of every picture, `sizes` (N, 2) in pixels, with the shape that they are resized to."""
    sizes = array(sizes, np.int64)
    sizes, counts = np.unique(sizes[sizes.min(1) > 0], axis=0, return_counts=True)
    if not len(sizes):
        raise ValueError("no picture has a size")
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    area = (4 + 400 * counts / counts.sum()).clip(max=60)
    axes.scatter(sizes[:, 1], sizes[:, 0], s=area, color=COLOURS[0], alpha=0.5)
    edge = 1.15 * np.array([max(sizes[:, 1].max(), 16), max(sizes[:, 0].max(), 32)])
    across = np.array([0, min(edge[0], edge[1] * wanted[1] / wanted[0])])
    axes.plot(across, across * wanted[0] / wanted[1], "--", color=GREY, label=f"shape of {wanted[0]} × {wanted[1]}")
    most = sizes[counts.argmax()]
    several = f"{len(sizes)} sizes, most often" if len(sizes) > 1 else "all of"
    axes.set_title(title or f"{counts.sum()} pictures, {several} {most[0]} × {most[1]}")
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=(0, edge[0]), ylim=(0, edge[1]))
    axes.legend(loc="lower right")
    return figure


@styled
def pair_sheet(pairs: Sequence[tuple[Any, Any, str]], title: str = "", columns: int = 4) -> Figure:
    """Pairs of samples side by side, each with one line of text below; `columns` pairs in a row."""
    cells: list[list[_Cell | None]] = [
        [_Cell(thumbnail(s.path), (f"pid {s.pid}, cam {s.camid}", text)) for s, text in ((a, text), (b, ""))]
        for a, b, text in pairs
    ]
    if not cells:
        raise ValueError("there is no pair to show")
    rows = [[c for pair in cells[i : i + columns] for c in (*pair, None)] for i in range(0, len(cells), columns)]
    across = len(rows[0]) // 3
    return _grid(rows, title=title, headers=[""] * 3 * across, lines=2, widths=[0.8, 0.8, 0.2] * across)
