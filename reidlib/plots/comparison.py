"""Two things in one figure: runs by epoch, rankings query by query, and pairs of the same and of different people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from reidlib.plots.style import COLOURS, GREY, INK, LINES, Figure, array, styled, titled_figure
from reidlib.scores import NAMES


@styled
def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], score: str = "mAP", title: str = ""
) -> Figure:
    """One score by epoch, a line a run; the best epoch of each is marked.

    Args:
        histories: Run → rows as in metrics.jsonl. Rows without the score are left out.
        score: A fraction, such as "mAP" or "rank1".
        title: Above the figure.

    Raises:
        ValueError: No run has the score.
    """
    drawn = {
        name: [(row["epoch"], 100 * row[score]) for row in rows if row.get(score) is not None]
        for name, rows in histories.items()
    }
    if not any(drawn.values()):
        raise ValueError(f"no run has a score called {score!r}, so there is nothing to draw")
    figure = titled_figure(title, 5.6, 3.2 + 0.18 * len(drawn))
    axes = figure.subplots()
    for i, (name, points) in enumerate(drawn.items()):
        if points:
            epochs, values = np.array(points).T
            colour, best = COLOURS[i % 7], values.argmax()
            axes.plot(epochs, values, LINES[i % 4], color=colour, label=f"{name}: {values[best]:.1f} %", clip_on=False)
            axes.plot(epochs[best], values[best], "o", color=colour, markersize=6, mec="white", clip_on=False, zorder=3)
    axes.set(xlabel="epoch (● the best)", ylabel=f"{NAMES.get(score, score)} (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower left")
    return figure


@styled
def ap_scatter(first: Any, second: Any, labels: tuple[str, str], title: str = "") -> Figure:
    """Average precision of each query in two rankings: above the diagonal the second is better.

    Args:
        first: (Q,) fractions; queries that are NaN in either are left out.
        second: (Q,) likewise.
        labels: What the two rankings are called.
        title: Above the figure.

    Raises:
        ValueError: The lengths differ.
    """
    x, y = (100 * array(values, np.float64) for values in (first, second))
    if len(x) != len(y):
        raise ValueError(f"both rankings must have the same queries, got {len(x)} and {len(y)}")
    keep = ~(np.isnan(x) | np.isnan(y))
    x, y = x[keep], y[keep]
    figure = titled_figure(title, 4.6, 4.6)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1)
    for better, marker, colour in ((y > x, "^", COLOURS[0]), (y < x, "v", COLOURS[5]), (y == x, "o", GREY)):
        axes.plot(x[better], y[better], marker, color=colour, markersize=4.5, alpha=0.7, mew=0, clip_on=False)
    counts = f"▲ better: {(y > x).sum()}   ▼ worse: {(y < x).sum()}   ● equal: {(y == x).sum()}"
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xlabel(f"average precision in {labels[0]} (%)\n{counts}", color=INK)
    axes.set_ylabel(f"average precision in {labels[1]} (%)")
    return figure


@styled
def pair_similarities(
    edges: Any, same: Any, different: Any, thresholds: Mapping[float, float] | None = None, title: str = ""
) -> Figure:
    """How similar pairs of one person and of two people are, and the ROC of a threshold between them.

    Args:
        edges: (B + 1,) similarities, the edges of bins.
        same: (B,) pairs of one person.
        different: (B,) pairs of two people.
        thresholds: False accept rate → similarity from which a pair is accepted; drawn in both panels.
        title: Above the figure.

    Raises:
        ValueError: There is no pair of one of the two kinds.
    """
    edges, same, different = (array(values, np.float64) for values in (edges, same, different))
    if not (same.sum() and different.sum()):
        raise ValueError(f"{same.sum():.0f} pairs of one person, {different.sum():.0f} of two: both are needed")
    figure = titled_figure(title, 8.4, 3.4)
    left, right = figure.subplots(1, 2)
    kinds = ((different, "different people", COLOURS[5], "--"), (same, "the same person", COLOURS[0], "-"))
    for counts, label, colour, line in kinds:
        share = 100 * counts / counts.sum()
        left.stairs(share, edges, color=colour, linestyle=line, linewidth=1.6, label=f"{label} ({counts.sum():,.0f})")
    used = np.flatnonzero(same + different)
    left.set(xlabel="cosine similarity", ylabel="pairs in a bin (%)", ylim=(0, None))
    left.set_xlim(edges[used[0]], edges[used[-1] + 1])
    left.legend(loc="upper left", fontsize=8)
    accepted = [np.append(counts[::-1].cumsum()[::-1] / counts.sum(), 0) for counts in (different, same)]
    right.plot(100 * accepted[0], 100 * accepted[1], color=INK)
    near: dict[str, Any] = {"textcoords": "offset points", "size": 8}
    for far, threshold in (thresholds or {}).items():
        tar = 100 * np.interp(threshold, edges, accepted[1])
        left.axvline(threshold, color=GREY, linewidth=0.9)
        right.plot(100 * far, tar, "o", color=COLOURS[0], markersize=5)
        right.annotate(f"≥ {threshold:.2f}: {tar:.0f} %", (100 * far, tar), (7, 3 if tar < 12 else -9), **near)
    right.set(xscale="log", xlim=(0.005, 100), ylim=(0, 100))
    right.set(xlabel="different people accepted (%)", ylabel="same person accepted (%)")
    return figure
