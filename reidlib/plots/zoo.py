"""Accuracy against cost over many models, with the Pareto front."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FuncFormatter, LogLocator

from reidlib.plots.style import GREY, INK, PAGE, Figure, array, label_styles, styled, text_width, titled_figure


@styled
def cost_accuracy(
    costs: Mapping[str, Any],
    fronts: Mapping[str, Any],
    scores: Any,
    names: Sequence[str],
    groups: Sequence[str],
    title: str = "",
    label: str = "mAP (%)",
    earlier: Mapping[str, Any] | None = None,
    earlier_label: str = "the front before",
) -> Figure:
    """Scores over costs, with the Pareto front: no other point is both better and cheaper.

    Costs are on a logarithmic axis; the score axis is stretched towards 100 %. Points of the front are ringed, joined
    and labelled.

    Args:
        costs: label of a panel → (N,) float; a panel each.
        fronts: the same label → (N,) bool, which points are on its front.
        scores: (N,) in percent.
        names: N names.
        groups: N groups, which give colour and marker.
        title: above the figure.
        label: of the score axis.
        earlier: the same labels → (N,) bool, which points were on the front before newer ones came: a dashed line,
            whose best point is labelled, too.
        earlier_label: what the legend calls it.

    Raises:
        ValueError: if lengths differ, or there is nothing to draw.
    """
    scores, names, groups = array(scores, np.float64), list(names), list(groups)
    costs = {key: array(cost, np.float64) for key, cost in costs.items()}
    fronts = {key: array(fronts[key], bool) for key in costs}
    before = {key: array(earlier[key], bool) for key in costs} if earlier else {}
    lengths = {len(values) for values in (scores, names, groups, *costs.values(), *fronts.values(), *before.values())}
    if lengths in ({0}, set()) or len(lengths) > 1 or not costs:
        raise ValueError(f"scores, names, groups, costs and fronts are of one length above 0, got {sorted(lengths)}")
    styles = label_styles(groups)
    figure = titled_figure(title, PAGE / 2 * max(len(costs), 1.2), 5.2)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    low, high = scores.min(), scores.max()
    for axes, (key, cost) in zip(panels, costs.items(), strict=True):
        for group, (colour, marker) in styles.items():
            at = np.array([name == group for name in groups])
            axes.plot(cost[at], scores[at], marker, color=colour, label=group, markersize=5, alpha=0.85, mew=0)
        on = np.flatnonzero(fronts[key])[np.lexsort((scores[fronts[key]], cost[fronts[key]]))]
        axes.step(cost[on], scores[on], where="post", color=GREY, linewidth=1, zorder=1)
        axes.plot(cost[on], scores[on], "o", color=INK, mfc="none", markersize=8.5, mew=0.9, label="on the front")
        if before:
            on = np.flatnonzero(before[key])[np.lexsort((scores[before[key]], cost[before[key]]))]
            axes.step(cost[on], scores[on], "--", where="post", color=GREY, linewidth=1, zorder=1, label=earlier_label)
        axes.set_xscale("log")
        axes.set_xlim(cost.min() / 2.2, cost.max() * 2)
        axes.set_yscale("function", functions=(lambda y: -np.log(105 - np.minimum(y, 104)), lambda t: 105 - np.exp(-t)))
        axes.set_ylim(max(low - 3, 0), high + (100 - high) * 0.4)  # room for labels above the front
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set(xlabel=key)
    panels[0].set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    widest = max(text_width(label, 9) for label in labels) + 0.65
    columns = min(len(labels), int(figure.get_figwidth() / widest))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.draw_without_rendering()  # the layout must stand before labels are placed in it
    for axes, (key, cost) in zip(panels, costs.items(), strict=True):
        best = [int(np.where(before[key], scores, -1).argmax())] if before and before[key].any() else []
        _label(axes, cost, scores, {i: names[i] for i in [*np.flatnonzero(fronts[key]).tolist(), *best]})
    return figure


def _label(axes: Axes, x: np.ndarray, y: np.ndarray, names: Mapping[int, str]) -> None:
    """Names near their points, each in the best place at or above it, with a thin line to the point.

    A place costs its distance, and more for what it would cover or its line would cross. Boxes are (left, low, right,
    high), in typographic points as all that is measured here.
    """
    unit = axes.figure.dpi / 72
    frame = np.asarray(axes.get_window_extent().extents) / unit
    points = axes.transData.transform(np.column_stack([x, y])) / unit
    taken = np.hstack([points - 5.5, points + 5.5])  # boxes of marks, then of labels too
    at: dict[tuple[float, float], list[str]] = {}
    for i, name in names.items():
        at.setdefault((x[i], y[i]), []).append(name)
    front = axes.transData.transform(sorted(at)) / unit
    corners = np.insert(front, range(1, len(front)), np.column_stack([front[1:, 0], front[:-1, 1]]), axis=0)
    drawn = np.concatenate([corners, *(np.linspace(a, b, 60) for a, b in pairwise(corners))])  # points on lines
    for (px, py), alike in sorted(at.items()):
        point = axes.transData.transform((px, py)) / unit
        note = axes.annotate("\n".join(alike), (px, py), (0, 0), textcoords="offset points", fontsize=7, va="center")
        note.set_in_layout(False)
        size = np.array([note.get_window_extent().width / unit + 4, 8.5 * len(alike)])
        places = np.array(list(product(np.arange(-size[0] - 4, 60, 8), np.arange(0, 120, 4))))
        low = point + places - (2, size[1] / 2)
        boxes = np.hstack([low, low + size])  # (places, 4)
        ends = np.clip(point, boxes[:, :2], boxes[:, 2:])
        lines = ends[:, None] + np.linspace(0, 1, 40)[:, None] * (point - ends)[:, None]  # (places, 40, 2)
        cost = np.hypot(*(point - ends).T) + 0.2 * (boxes[:, 2] - point[0]).clip(0)
        cost += 1000 * ((boxes[:, :2] < frame[:2]) | (boxes[:, 2:] > frame[2:])).any(1)
        over = (boxes[:, None, :2] < taken[:, 2:]) & (taken[:, :2] < boxes[:, None, 2:])
        cost += 300 * over.all(2).sum(1)
        cost += 60 * sum(_inside(lines, label).any(1) for label in taken[len(x) :])
        cost += 60 * _inside(drawn, boxes[:, None]).any(1)
        best = cost.argmin()
        note.set_position(places[best])
        if np.hypot(*(ends[best] - point)) > 9:
            axes.plot(*axes.transData.inverted().transform(unit * lines[best][[0, -1]]).T, color=GREY, linewidth=0.5)
        taken = np.vstack([taken, boxes[best]])
        drawn = np.concatenate([drawn, lines[best]])


def _inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.all((box[..., :2] < points) & (points < box[..., 2:]), axis=-1)
