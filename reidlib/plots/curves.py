"""Curves and summaries of scores: training, CMC, average precision by query, seeds, and scores by row and column.

Scores come as fractions and are drawn in percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from reidlib.plots.style import (
    COLOURS,
    GREY,
    INK,
    LINES,
    VERDICTS,
    Figure,
    array,
    shorten,
    styled,
    text_width,
    titled_figure,
)  # fmt: skip
from reidlib.scores import CLASSIFICATION, NAMES

# Panel title, the keys drawn in it, factor. A factor of 100 makes an axis from 0 to 100.
_PANELS = (
    ("loss", ("loss", "cross_entropy", "triplet", "circle", "center"), 1),
    ("training accuracy (%)", ("accuracy",), 100),
    ("clusters", ("clusters",), 1),
    ("images (%)", ("outliers", "largest", "agreement", "ari"), 100),
    ("retrieval (%)", ("mAP", "rank1"), 100),
    ("validation (%)", CLASSIFICATION, 100),
    ("learning rate (10⁻⁴)", ("lr",), 1e4),
)


def _line(axes: Axes, i: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    marker = {"marker": "o", "markersize": 3.5} if len(x) <= 30 else {}
    axes.plot(x, y, LINES[i % 4], color=COLOURS[i % 7], label=label, clip_on=False, **marker)  # whole at 0 and 100


@styled
def training_curves(metrics: Sequence[Mapping[str, Any]], title: str = "", epochs: int | None = None) -> Figure:
    """Loss, accuracy on the training images, retrieval scores and learning rate by epoch; the best epoch is marked.

    The best epoch is the one with the highest mAP (top-1 without an mAP), the earlier of equals; epoch 0, the untrained
    network, does not count.

    Args:
        metrics: one dict an epoch, as in metrics.jsonl. Drawn are `loss` and its parts, `lr`, and the fractions
            `accuracy`, `mAP`, `rank1`, `top1` and `top5`, each after any prefix such as `market1501/`. What is missing,
            None, NaN or infinite in an epoch is left out.
        title: above the figure.
        epochs: of the whole training, the right end of the axis; None ends it at the last epoch given.

    Raises:
        ValueError: if there is nothing to draw.
    """
    drawn: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for at, row in enumerate(metrics):
        for key, value in row.items():
            prefix, slash, word = key.rpartition("/")
            panel = next((i for i, (_, keys, _) in enumerate(_PANELS) if word in keys), None)
            if panel is not None and isinstance(value, int | float) and np.isfinite(value):
                label = prefix + slash + NAMES.get(word, word.replace("_", " "))
                drawn.setdefault(panel, {}).setdefault(label, []).append((row.get("epoch", at + 1), value))
    if not drawn:
        raise ValueError(f"no loss, accuracy, mAP, rank or lr in the {len(metrics)} epochs given")
    figure = titled_figure(title, 2.6 * len(drawn) + 0.3, 2.2)
    panels = figure.subplots(1, len(drawn), squeeze=False, sharex=True)[0]
    rows = 0  # of the longest legend
    for axes, panel in zip(panels, sorted(drawn), strict=True):
        name, _, factor = _PANELS[panel]
        for i, (label, points) in enumerate(drawn[panel].items()):
            x, y = np.array(points, float).T
            _line(axes, i, x, factor * y, label)
        for score, points in drawn[panel].items():
            trained = [(value, -epoch) for epoch, value in points if epoch > 0]
            if score in (NAMES["mAP"], NAMES["top1"]) and trained:
                value, epoch = max(trained)
                label = f"best: {factor * value:.1f} % in epoch {-epoch:.0f}"
                axes.axvline(-epoch, color=GREY, linestyle=":", linewidth=1, zorder=0.9)
                axes.plot(
                    -epoch,
                    factor * value,
                    "*",
                    color=INK,
                    markersize=11,
                    mec="white",
                    zorder=4,
                    label=label,
                    clip_on=False,
                )
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if factor == 100:
            axes.set_ylim(0, 100)
        else:
            axes.set_ylim(bottom=min(0, axes.dataLim.ymin))
        handles, labels = axes.get_legend_handles_labels()
        if len(handles) > 1:
            labels = [shorten(label, 2.0, 9) for label in labels]
            columns = 3 if sum(text_width(label, 9) + 0.45 for label in labels[:3]) < 2.5 else 1
            rows = max(rows, -(-len(labels) // columns))
            below = axes.transAxes + ScaledTranslation(-0.3, -0.45, figure.dpi_scale_trans)
            place = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below, "ncols": columns}
            legend = axes.legend(handles, labels, handlelength=1.6, columnspacing=1, borderaxespad=0, **place)
            legend.set_in_layout(False)  # panels are equally wide, however long a label is
    height = 0.2 * rows + 0.08 * bool(rows)  # of the legends
    figure.set_figheight(figure.get_figheight() + height)
    bottom = height / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, bottom, 1, 1 - bottom))
    if epochs:
        panels[0].set_xlim(
            min(row.get("epoch", at + 1) for at, row in enumerate(metrics)) - 0.02 * epochs, epochs * 1.02
        )
    elif len(metrics) == 1:
        panels[0].set_xlim(x[0] - 1, x[0] + 1)
    return figure


@styled
def cmc_curves(curves: Mapping[str, Any], title: str = "", max_rank: int = 20) -> Figure:
    """Cumulative matching characteristic of each result: the share of queries with a match up to each rank.

    Args:
        curves: name → (R,) fractions, from rank 1 on.
        title: above the figure.
        max_rank: the last rank drawn.
    """
    figure = titled_figure(title, 5.2, 3.4 + 0.18 * len(curves))
    axes = figure.subplots()
    for i, (name, cmc) in enumerate(curves.items()):
        cmc = 100 * array(cmc)[:max_rank]
        label = f": Rank-1 {cmc[0]:.1f} %"
        _line(axes, i, range(1, len(cmc) + 1), cmc, shorten(name, 4.4 - text_width(label, 9), 9) + label)
    axes.set(xlabel="rank", ylabel="queries with a match by then (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.legend(loc="outside lower left")
    return figure


@styled
def ap_histogram(ap: Any, title: str = "", worst: int = 10) -> Figure:
    """Distribution of average precision over the queries, in bins of 5 %.

    Args:
        ap: (Q,) fractions; NaN, of queries without a match, is left out.
        title: above the figure.
        worst: how many of the worst queries are marked.

    Raises:
        ValueError: if no query has a match.
    """
    import seaborn

    ap = array(ap, np.float64)
    ap = 100 * np.sort(ap[~np.isnan(ap)])
    if not len(ap):
        raise ValueError("no query has a match, so there is no average precision to draw")
    figure = titled_figure(title, 5.2, 3.2)
    axes = figure.subplots()
    seaborn.histplot(x=ap, bins=20, binrange=(0, 100), color=COLOURS[4], alpha=1, edgecolor="white", ax=axes)
    axes.axvline(ap.mean(), color=INK, linestyle="--", linewidth=1.2, label=f"mAP {ap.mean():.1f} %")
    few, (colour, _, _) = ap[:worst], VERDICTS[False]
    label = f"the {len(few)} worst (up to {few[-1]:.1f} %)"
    axes.plot(
        few, np.zeros(len(few)), "^", color=colour, markersize=7, mec="white", clip_on=False, zorder=3, label=label
    )
    axes.set(xlabel="average precision of a query (%)", ylabel="queries", xlim=(0, 100))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@styled
def score_spread(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "") -> Figure:
    """Scores of several runs by setting: a dot a run, with mean and sample standard deviation.

    Args:
        panels: score → setting → fractions, one of each run. A panel a score, a row a setting.
        title: above the figure.

    Raises:
        ValueError: if no setting has a score.
    """
    import seaborn

    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    if not names:
        raise ValueError("no setting has a score yet, so there is nothing to draw")
    width = 0.5 + 0.075 * max(map(len, names)) + 2.6 * len(panels)
    figure = titled_figure(title, width, 1.2 + 0.32 * len(names))
    figure.supxlabel("○ a run   ◆ mean ± standard deviation of the runs", size=8, color=GREY)
    for axes, (score, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        runs = {
            "x": np.concatenate([100 * array(values, np.float64) for values in rows.values()]),
            "y": [names.index(name) for name, values in rows.items() for _ in values],
        }
        seaborn.scatterplot(**runs, color="white", edgecolor=INK, linewidth=1, s=45, zorder=1, ax=axes)
        seaborn.lineplot(  # pointplot would keep every figure that it draws
            **{**runs, "orient": "y", "linestyle": "", "marker": "D", "markersize": 5, "color": COLOURS[0], "ax": axes},
            **{"errorbar": "sd", "err_style": "bars", "err_kws": {"capsize": 4}},
        )
        axes.set_yticks(range(len(names)), names)
        axes.set(title=f"{NAMES.get(score, score)} (%)", xlabel="", ylabel="", ylim=(len(names) - 0.5, -0.5))
    return figure


@styled
def score_matrix(matrix: Any, rows: Any, columns: Any, title: str = "", labels: tuple[str, str] = ("", "")) -> Figure:
    """Heat map of scores, each written into its cell, on a scale of 0 to 100 %.

    Args:
        matrix: (R, C) fractions; NaN is a hatched cell with a dash.
        rows: R names or numbers; `columns`, C.
        title: above the figure.
        labels: what rows and columns are, such as cameras of query and gallery, or sources and targets.

    Raises:
        ValueError: if rows and columns do not fit the matrix.
    """
    import seaborn

    matrix = 100 * array(matrix, np.float64)
    rows, columns = ([str(name) for name in array(names).tolist()] for names in (rows, columns))
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"{len(rows)} rows and {len(columns)} columns do not fit a matrix of shape {matrix.shape}")
    rows, columns = ([shorten(name, 2.4, 9) for name in names] for names in (rows, columns))
    width = max(0.7, *(text_width(name, 9) + 0.15 for name in columns))
    width = 1.6 + max(text_width(name, 9) for name in rows) + width * len(columns)
    figure = titled_figure(title, width, 1.1 + 0.45 * len(rows))
    axes = figure.subplots()
    axes.patch.set(facecolor="#F7F7F7", hatch="///", edgecolor="#CCCCCC")
    axes.grid(False)
    # The light half of a map whose lightness rises evenly: black numbers are legible in every cell.
    cmap = LinearSegmentedColormap.from_list("light", seaborn.color_palette("mako", 256)[128:])
    seaborn.heatmap(
        **{"data": matrix, "vmin": 0, "vmax": 100, "cmap": cmap, "xticklabels": columns, "yticklabels": rows},
        **{"annot": True, "fmt": ".1f", "annot_kws": {"color": "black"}, "linewidths": 0.5, "ax": axes},
        cbar_kws={"label": "%", "ticks": [0, 50, 100]},
    )
    for row, column in np.argwhere(np.isnan(matrix)):
        axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center")
    axes.set(ylabel=labels[0], xlabel=labels[1])
    axes.tick_params(length=0, labelrotation=0)
    return figure
