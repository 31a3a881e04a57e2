"""Figures about a dataset before anything is trained: who was seen where, and how large the images are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from reidlib.plots.style import GREY, Figure, array, styled

_CMAP = "crest"  # seaborn's: one image is well darker than the white of none, and more is darker


@styled
def image_counts(tables: Mapping[str, tuple[Any, Sequence[int]]], title: str = "") -> Figure:
    """How many images each camera (down) took of each person (across, most images first): a heat map for each split.

    All splits share one scale. White is a camera that never saw the person.

    Args:
        tables: split → counts (P, C) int, and the C camids. Splits without a person are left out.
        title: above the figure.

    Raises:
        ValueError: if no split shows a person.
    """
    import seaborn

    tables = {name: (array(counts), list(camids)) for name, (counts, camids) in tables.items() if array(counts).size}
    if not tables:
        raise ValueError("no split shows a person, so there is nothing to count")
    rows = [0.5 + 0.22 * max(3, len(camids)) for _, camids in tables.values()]
    figure = Figure(figsize=(8.4, 0.7 + sum(rows) + 0.35 * len(rows)), layout="constrained")
    figure.suptitle(title or None, x=0.01, ha="left")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    most = max(counts.max() for counts, _ in tables.values())
    scale = {"vmin": 0.5, "vmax": max(most, 1.5), "cmap": _CMAP, "cbar": False}
    for axes, (name, (counts, camids)) in zip(panels, tables.items(), strict=True):
        cameras = (counts > 0).sum(1)
        counted = counts[np.lexsort((-cameras, -counts.sum(1)))].T  # (C, P)
        seaborn.heatmap(
            counted, mask=counted == 0, xticklabels=False, yticklabels=camids, rasterized=True, ax=axes, **scale
        )
        axes.set_title(f"{name}: {len(counts)} people, {counts.sum()} images; {(cameras < 2).sum()} in one camera only")
        axes.set(xlabel="people, most images first", ylabel="camera")
        axes.tick_params(axis="y", labelrotation=0)
        axes.grid(False)
    ticks = MaxNLocator(integer=True)
    figure.colorbar(axes.collections[0], ax=list(panels), label="images", ticks=ticks, shrink=0.8).outline.set_lw(0)
    return figure


@styled
def image_sizes(sizes: Any, title: str = "", wanted: tuple[int, int] = (256, 128)) -> Figure:
    """Distribution of heights and widths, with the shape that images are resized to as a dashed line.

    Args:
        sizes: (N, 2) int, height and width in pixels; those with a zero, of unreadable files, are left out.
        title: above the figure; the commonest size if empty.
        wanted: (height, width) of the dashed line.

    Raises:
        ValueError: if no image has a size.
    """
    import seaborn

    sizes = array(sizes, np.int64)
    sizes = sizes[sizes.min(1) > 0]
    if not len(sizes):
        raise ValueError("no image has a size")
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    high, wide = (1.15 * sizes.max(0)).clip((32, 16))
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    seaborn.histplot(
        **{"x": sizes[:, 1], "y": sizes[:, 0], "ax": axes, "cmap": _CMAP, "vmin": 1},
        **{"bins": 40, "binrange": ((0, wide), (0, high)), "cbar": True, "cbar_kws": {"label": "images in a bin"}},
    )
    across = min(wide, high * wanted[1] / wanted[0])
    axes.plot([0, across], [0, across * wanted[0] / wanted[1]], "--", c=GREY, label="shape of {} × {}".format(*wanted))
    most = "{} × {}".format(*different[counts.argmax()])
    several = f"{len(different)} sizes, most often" if len(different) > 1 else "all of"
    axes.set_title(title or f"{len(sizes)} images, {several} {most}")
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=(0, wide), ylim=(0, high))
    axes.legend(loc="lower right")
    return figure
