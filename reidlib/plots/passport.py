"""Figures about a dataset before anything is trained: who was seen where, and how large the images are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from reidlib.plots.names import Named, camera_name, person_name
from reidlib.plots.style import GREY, Figure, array, shorten, styled, titled_figure

_CMAP = "crest"  # seaborn's: one image is well darker than the white of none, and more is darker
_NAMED = 40  # people up to which a heat map has room for their names


@styled
def image_counts(
    tables: Mapping[str, tuple[Any, Sequence[int], Sequence[int]]], title: str = "", dataset: Named | None = None
) -> Figure:
    """How many images each camera (down) took of each person (across, most images first): a heat map for each split.

    All splits share one scale. White is a camera that never saw the person. Up to 40 people are named.

    Args:
        tables: split → counts (P, C) int, the P pids and the C camids. Splits without a person are left out.
        title: above the figure.
        dataset: that knows the names of people and cameras.

    Raises:
        ValueError: if no split shows a person.
    """
    import seaborn

    shown = {split: (array(table[0]), *table[1:]) for split, table in tables.items() if array(table[0]).size}
    if not shown:
        raise ValueError("no split shows a person, so there is nothing to count")
    rows = [0.5 + 0.22 * max(3, len(camids)) + 0.4 * (len(pids) <= _NAMED) for _, pids, camids in shown.values()]
    figure = titled_figure(title, 8.4, 0.45 + sum(rows) + 0.35 * len(rows))
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    most = max(counts.max() for counts, *_ in shown.values())
    scale = {"vmin": 0.5, "vmax": max(most, 1.5), "cmap": _CMAP, "cbar": False}
    for axes, (split, (counts, pids, camids)) in zip(panels, shown.items(), strict=True):
        cameras = (counts > 0).sum(1)
        order = np.lexsort((-cameras, -counts.sum(1)))
        counted = counts[order].T  # (C, P)
        people = [shorten(person_name(pids[i], dataset), 1.2, 7) for i in order] if len(pids) <= _NAMED else False
        labels = {"xticklabels": people, "yticklabels": [shorten(camera_name(c, dataset), 1.6, 9) for c in camids]}
        seaborn.heatmap(counted, mask=counted == 0, rasterized=True, ax=axes, **labels, **scale)
        axes.set_title(
            f"{split}: {len(counts)} people, {counts.sum()} images; {(cameras < 2).sum()} seen by one camera only"
        )
        axes.set(xlabel="people (those with most images on the left)", ylabel="camera")
        axes.tick_params(axis="y", labelrotation=0)
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
        axes.grid(False)
    ticks = MaxNLocator(integer=True)
    bar = figure.colorbar(axes.collections[0], ax=list(panels), label="images of a person", ticks=ticks, shrink=0.8)
    bar.outline.set_linewidth(0)
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
    most = "{} × {}".format(*different[counts.argmax()])
    several = f"{len(different)} sizes, most often" if len(different) > 1 else "all of"
    figure = titled_figure(title or f"{len(sizes)} images, {several} {most}", 5.2, 3.4)
    axes = figure.subplots()
    seaborn.histplot(
        **{"x": sizes[:, 1], "y": sizes[:, 0], "ax": axes, "cmap": _CMAP, "vmin": 1},
        **{"bins": 40, "binrange": ((0, wide), (0, high)), "cbar": True, "cbar_kws": {"label": "images in a bin"}},
    )
    across = min(wide, high * wanted[1] / wanted[0])
    axes.plot([0, across], [0, across * wanted[0] / wanted[1]], "--", c=GREY, label="shape of {} × {}".format(*wanted))
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=(0, wide), ylim=(0, high))
    axes.legend(loc="lower right")
    return figure
