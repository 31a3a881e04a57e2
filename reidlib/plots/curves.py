"""Curves and summaries of numbers: training, CMC, average precision by query, mAP by pair of cameras.

Scores come as fractions and are drawn in percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reidlib.plots.style import COLOURS, GREY, INK, LINES, VERDICTS, Figure, array, styled

# Panel title, the keys drawn in it (in small letters), factor.
_PANELS = (
    ("loss", ("loss", "cross_entropy", "triplet", "circle", "center"), 1),
    ("accuracy (%)", ("accuracy",), 100),
    ("retrieval (%)", ("map", "rank1"), 100),
    ("learning rate (10⁻⁴)", ("lr",), 1e4),
)


def _line(axes: Axes, i: int, x: Sequence[float], y: Sequence[float], label: str, **look: Any) -> None:
    marker = {"marker": "o", "markersize": 3.5} if len(x) <= 30 else {}
    axes.plot(x, y, LINES[i % 4], color=COLOURS[i % 7], label=label, **marker, **look)


@styled
def training_curves(metrics: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Loss, accuracy, retrieval scores and learning rate by epoch, from one dict an epoch.

    Drawn are `loss` and its parts, `accuracy`, `mAP` and `rank1` (fractions) and `lr`, each after any prefix such as
    `market1501/`; what is missing, None or NaN in an epoch is passed over. Raises ValueError where nothing is left.
    """
    drawn: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for at, row in enumerate(metrics):
        for key, value in row.items():
            word = key.rpartition("/")[2].lower()
            panel = next((i for i, (_, keys, _) in enumerate(_PANELS) if word in keys), None)
            if panel is not None and isinstance(value, int | float) and np.isfinite(value):
                drawn.setdefault(panel, {}).setdefault(key, []).append((row.get("epoch", at + 1), value))
    if not drawn:
        raise ValueError(f"no loss, accuracy, mAP, rank or lr in the {len(metrics)} epochs given")
    figure = Figure(figsize=(2.9 * len(drawn) + 0.3, 2.7 + (0.25 if title else 0)), layout="constrained")
    figure.suptitle(title or None, x=0.01, ha="left")
    panels = figure.subplots(1, len(drawn), squeeze=False, sharex=True)[0]
    for axes, panel in zip(panels, sorted(drawn), strict=True):
        name, _, factor = _PANELS[panel]
        for i, (key, points) in enumerate(drawn[panel].items()):
            epochs, values = np.array(points, float).T
            _line(axes, i, epochs, factor * values, key)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_ylim(bottom=min(0, axes.dataLim.ymin))
        if len(drawn[panel]) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handlelength=1.6, columnspacing=1)
    if len(metrics) == 1:
        panels[0].set_xlim(epochs[0] - 1, epochs[0] + 1)
    return figure


@styled
def cmc_curves(curves: Mapping[str, Any], title: str = "", max_rank: int = 20) -> Figure:
    """Cumulative matching characteristic of each named result, (max_rank,) fractions from rank 1 on."""
    figure = Figure(figsize=(6.8, 3.4), layout="constrained")
    axes = figure.subplots()
    for i, (name, cmc) in enumerate(curves.items()):
        cmc = 100 * array(cmc)[:max_rank]
        _line(axes, i, range(1, len(cmc) + 1), cmc, f"{name}: Rank-1 {cmc[0]:.1f} %")
    axes.set(title=title, xlabel="rank", ylabel="queries with a match by then (%)")
    axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.01))
    return figure


@styled
def ap_histogram(ap: Any, title: str = "", worst: int = 10) -> Figure:
    """How average precision, `ap` (Q,), is spread over the queries, with mAP and the `worst` marked; NaN is left."""
    ap = array(ap, np.float64)
    ap = 100 * np.sort(ap[~np.isnan(ap)])
    if not len(ap):
        raise ValueError("no query has a match, so there is no average precision to draw")
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(ap, np.linspace(0, 100, 21), color=COLOURS[4], edgecolor="white")
    axes.axvline(ap.mean(), color=INK, linestyle="--", linewidth=1.2, label=f"mAP {ap.mean():.1f} %")
    few, (colour, _, _) = ap[:worst], VERDICTS[False]
    label = f"the {len(few)} worst (up to {few[-1]:.1f} %)"
    axes.plot(few, np.zeros(len(few)), "^", color=colour, markersize=7, clip_on=False, zorder=3, label=label)
    axes.set(title=title, xlabel="average precision of a query (%)", ylabel="queries", xlim=(0, 100))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@styled
def camera_pair_heatmap(
    matrix: Any, query_camids: Any, gallery_camids: Any = None, title: str = "", label: str = "mAP (%)"
) -> Figure:
    """Scores (Cq, Cg) by camera of the query (rows) and of the gallery (columns), as fractions; NaN is left blank.

    The cameras of the columns default to those of the rows.
    """
    matrix = 100 * array(matrix, np.float64)
    rows, columns = (
        array(c, np.int64).tolist() for c in (query_camids, query_camids if gallery_camids is None else gallery_camids)
    )
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"{len(rows)} × {len(columns)} cameras do not fit a matrix of shape {matrix.shape}")
    width, height = 0.42 * max(len(columns), 4), 0.42 * max(len(rows), 4)
    figure = Figure(figsize=(width + 1.7, height + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#F7F7F7")
    axes.grid(False)
    low, high = (np.nanmin(matrix), np.nanmax(matrix)) if np.isfinite(matrix).any() else (0, 100)
    picture = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9))
    for (i, j), value in np.ndenumerate(matrix):
        if np.isnan(value):
            axes.text(j, i, "–", ha="center", va="center", size=8, color=GREY)
        else:
            red, green, blue, _ = colormaps["cividis"](picture.norm(value))
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", size=8, color=ink)
    axes.set(title=title, xlabel="camera of the gallery picture", ylabel="camera of the query")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, label=label, shrink=0.8).outline.set_visible(False)
    return figure
