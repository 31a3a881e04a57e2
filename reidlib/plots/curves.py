"""Curves and summaries of numbers: training, CMC, average precision by query, mAP by pair of cameras.

Scores come as fractions and are drawn in percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reidlib.plots.style import COLOURS, INK, LINES, VERDICTS, Figure, array, styled

# Panel title, the keys drawn in it (in small letters), factor.
_PANELS = (
    ("loss", ("loss", "cross_entropy", "triplet", "circle", "center"), 1),
    ("accuracy (%)", ("accuracy",), 100),
    ("retrieval (%)", ("map", "rank1"), 100),
    ("validation (%)", ("top1", "top5"), 100),
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
def score_spread(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "") -> Figure:
    """Scores of several runs by setting: a panel a score, a row a setting, a dot a run; mean and standard deviation.

    `panels[score][setting]` are shares, drawn in percent; they may be of different lengths.
    """
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    if not names:
        raise ValueError("no setting has a score yet, so there is nothing to draw")
    width = 0.5 + 0.075 * max(map(len, names)) + 2.6 * len(panels)
    figure = Figure(figsize=(width, 1.0 + 0.32 * len(names) + (0.25 if title else 0)), layout="constrained")
    figure.suptitle(title or None, x=0.01, ha="left")
    for axes, (score, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        for name, values in rows.items():
            at, values = names.index(name), 100 * array(values, np.float64)
            axes.plot(values, np.full(len(values), at), "o", color=COLOURS[4], markersize=4, alpha=0.8)
            deviation = values.std(ddof=1) if len(values) > 1 else None
            axes.errorbar(values.mean(), at, xerr=deviation, fmt="D", color=COLOURS[0], markersize=5, capsize=4)
        axes.set(title=f"{score} (%)", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
    return figure


@styled
def score_matrix(matrix: Any, rows: Any, columns: Any, title: str = "", labels: tuple[str, str] = ("", "")) -> Figure:
    """Scores (R, C) as fractions, drawn in percent, with names or numbers of `rows` and `columns`; NaN is a dash.

    `labels` say what rows and columns are, such as cameras of query and gallery, or sources and targets.
    """
    matrix = 100 * array(matrix, np.float64)
    rows, columns = ([str(name) for name in array(names).tolist()] for names in (rows, columns))
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"{len(rows)} rows and {len(columns)} columns do not fit a matrix of shape {matrix.shape}")
    width = max(0.7, 0.085 * max(map(len, columns), default=0))
    width = 0.8 + 0.075 * max(map(len, rows), default=0) + width * len(columns)
    figure = Figure(figsize=(width, 1.1 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#F7F7F7")
    axes.grid(False)
    low, high = (np.nanmin(matrix), np.nanmax(matrix)) if np.isfinite(matrix).any() else (0, 100)
    picture = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        red, green, blue, _ = colormaps["cividis"](picture.norm(0 if np.isnan(value) else value))
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 and not np.isnan(value) else "black"
        axes.text(j, i, "–" if np.isnan(value) else f"{value:.1f}", ha="center", va="center", color=ink)
    axes.set(title=title, ylabel=labels[0], xlabel=labels[1])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
