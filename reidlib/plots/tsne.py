"""The embedding on a plane: t-SNE (van der Maaten and Hinton, JMLR 2008), by identity, by camera, and as images.

Near points are near in the embedding; distances between far groups, and the axes, mean nothing.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from reidlib.errors import unknown_name
from reidlib.plots.images import thumbnail
from reidlib.plots.names import Named, camera_name, person_name
from reidlib.plots.style import GREY, PAGE, Figure, array, fit_title, label_styles, shorten, styled, text_width

_OF = {"person": ("pid", "people"), "camera": ("camid", "cameras")}  # attribute of a sample, and the plural
_OTHER = ("#B5B5B5", "o")  # colour and marker of what has none of its own
_SAME = 1e-5  # distance up to which features of length 1 differ by rounding only


class Embedding(NamedTuple):
    """Points (N, 2) float32, and one sentence on what they can show."""

    points: np.ndarray
    note: str


def tsne_map(feats: Any, seed: int = 0, perplexity: float | None = None) -> Embedding:
    """Features on a plane.

    Rows are scaled to length 1 first, as for the cosine distance, then reduced to 50 dimensions by PCA if they have
    more. Equal rows are one point: t-SNE would draw copies apart, and scikit-learn's dies where all rows are equal.
    Fewer than four different rows are laid out by PCA.

    Args:
        feats: (N, D) float, N at least 1.
        seed: of t-SNE; equal seeds give equal points on one machine.
        perplexity: about how many neighbours count; 30 if None. At most a third of the different rows.

    Returns:
        The points, and a sentence: how many different features there are, or that the network has collapsed.

    Raises:
        ValueError: if there is no row, or a row has a value that is NaN or infinite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    feats = array(feats, np.float32)
    if feats.ndim != 2 or not len(feats):
        raise ValueError(f"there is nothing to map: feats must be (N, D) with N above 0, not {feats.shape}")
    if not (finite := np.isfinite(feats).all(1)).all():
        raise ValueError(f"feats has a value that is NaN or infinite in row {finite.argmin()}")
    feats = feats / np.linalg.norm(feats, axis=1, keepdims=True).clip(1e-12)
    if len(feats) > 1 and np.linalg.norm(feats - feats[0], axis=1).max() <= _SAME:
        note = f"all {len(feats)} features are the same: the network has collapsed, and this map shows nothing"
        return Embedding(np.zeros((len(feats), 2), np.float32), note)
    rows, row_of = np.unique(feats, axis=0, return_inverse=True)
    row_of = row_of.ravel()  # (N, 1) in NumPy 2.0
    count, dim = rows.shape
    note = f"{len(feats)} images, {count} different features of {dim} values"
    if dim > 50 and count > 50:
        rows = PCA(50, random_state=seed).fit_transform(rows)
    if count < 4 or dim < 2:
        rows = rows - rows.mean(0)
        u, s, _ = np.linalg.svd(np.pad(rows, ((0, 2), (0, 2))), full_matrices=False)
        return Embedding((u * s)[:count, :2][row_of].astype(np.float32), f"{note}: too few for t-SNE, drawn by PCA")
    perplexity = max(min(30 if perplexity is None else perplexity, (count - 1) / 3), 1)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1 if count < 5000 else None):  # on so little work, waiting threads cost ten times the work
        return Embedding(tsne.fit_transform(rows)[row_of], f"{note}, perplexity {perplexity:.3g}")


class _Groups:
    """Points by person or by camera: (N,) labels, the colour and marker of the most frequent, and their legend."""

    def __init__(self, samples: Sequence[Any], by: str, count: int, dataset: Named | None) -> None:
        if by not in _OF:
            raise unknown_name("grouping", by, _OF)
        self.by, self.dataset = by, dataset
        self.labels = np.array([getattr(sample, _OF[by][0]) for sample in samples], np.int64)
        self.nobody = (-1, 0) if by == "person" else ()
        self.styles = label_styles(self.labels, count, self.nobody)

    def handles(self) -> list[Line2D]:
        """One a style, and one that says what is grey."""
        name = person_name if self.by == "person" else camera_name
        marks = [(name(label, self.dataset, f"{self.by} "), style) for label, style in self.styles.items()]
        rest = set(self.labels.tolist()) - set(self.styles)
        others = len(rest - set(self.nobody))
        grey = [f"{others} other {_OF[self.by][1]}"] if others else []
        grey += [person_name(pid) for pid in self.nobody if pid in rest]
        marks += [(text, _OTHER) for text in grey]
        line = {"linestyle": "", "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.4}
        return [
            Line2D([], [], color=colour, marker=marker, label=shorten(text, 1.6, 8), **line)
            for text, (colour, marker) in marks
        ]

    def scatter(self, axes: Axes, points: np.ndarray, size: float) -> None:
        grey = ~np.isin(self.labels, list(self.styles))
        x, y = points[grey].T
        axes.scatter(x, y, s=size / 2, color=_OTHER[0], linewidths=0, zorder=0.9)
        for label, (colour, marker) in self.styles.items():
            x, y = points[self.labels == label].T
            axes.scatter(x, y, s=size, color=colour, marker=marker, linewidths=0.4, edgecolors="white", zorder=2)


def _plane(
    points: Any, title: str, side: float, pad: float, handles: Sequence[Line2D]
) -> tuple[Figure, Axes, np.ndarray]:
    """A frame of at most `side` inches around points (N, 2), with a legend at its right, and the points in inches.

    No point is closer to the edge than `pad` inches.
    """
    points = array(points, np.float64)
    low, high = points.min(0), points.max(0)
    scale = (side - 2 * pad) / max((high - low).max(), 1e-12)  # one for both, as only distances mean something
    plane = ((high - low) * scale + 2 * pad).clip(0.6 * side, side)
    rows = max(int(plane[1] / 0.2), 1)  # of the legend
    columns = -(-len(handles) // rows)
    right = columns * (0.4 + max(text_width(str(handle.get_label()), 8) for handle in handles))
    margin, top = 0.15, 0.4 if title else 0.15
    needed = min(text_width(title, 8, "bold") + 2 * margin, PAGE)
    width, height = max(plane[0] + 2 * margin + right, needed), plane[1] + margin + top
    figure = Figure(figsize=(width, height))
    box = (margin / width, margin / height, *(plane / (width, height)))
    axes = figure.add_axes(box, xticks=[], yticks=[], autoscale_on=False)
    if title:
        text, size = fit_title(title, width - 2 * margin)
        axes.set_title(text, size=size)
    axes.set(xlim=(0, plane[0]), ylim=(0, plane[1]))
    axes.spines[:].set(visible=True, color="#CCCCCC")
    outside = {"bbox_to_anchor": (1.01, 1.01), "borderaxespad": 0, "handletextpad": 0.2}
    axes.legend(handles=handles, loc="upper left", ncols=columns, fontsize=8, columnspacing=0.8, **outside)
    return figure, axes, (points - (low + high) / 2) * scale + plane / 2


@styled
def tsne_figure(
    points: Any,
    samples: Sequence[Any],
    *,
    by: str = "person",
    title: str = "",
    count: int = 20,
    dataset: Named | None = None,
) -> Figure:
    """Points coloured by person or by camera.

    Args:
        points: (N, 2) float.
        samples: N, with `pid` and `camid`.
        by: "person" or "camera". The `count` most frequent ones, 21 at most, differ in colour and marker; the rest,
            distractors and junk are grey dots, and the legend says which.
        title: above the figure.
        count: see `by`.
        dataset: that the samples are of, which knows the names of people and cameras.

    Raises:
        ValueError: for another `by`.
    """
    groups = _Groups(samples, by, count, dataset)
    figure, axes, points = _plane(points, title, 5.0, 0.2, groups.handles())
    groups.scatter(axes, points, float(np.clip(6000 / len(points), 8, 42)))
    return figure


@styled
def tsne_images(
    points: Any,
    samples: Sequence[Any],
    *,
    title: str = "",
    height: float = 0.56,
    seed: int = 0,
    count: int = 20,
    dataset: Named | None = None,
) -> Figure:
    """The images themselves, at their points, framed and marked by person as in `tsne_figure`.

    An image whose position is taken moves aside by its own size at most, with a line to its point; if there is no room
    its point stays a mark.

    Args:
        points: (N, 2) float.
        samples: N, with `path`, `pid` and `camid`.
        title: above the figure.
        height: of an image, in inches.
        seed: of the order in which crowded images are placed.
        count, dataset: as in `tsne_figure`.
    """
    groups = _Groups(samples, "person", count, dataset)
    side, box = 7.6, np.array([height / 2, height])
    edge = box / 2 + 0.06
    figure, axes, points = _plane(points, title, side, edge[1], groups.handles())
    plane = np.array([axes.get_xlim()[1], axes.get_ylim()[1]])
    groups.scatter(axes, points, 18)
    steps = np.array(sorted(product(np.linspace(-1.15, 1.15, 9), repeat=2), key=lambda step: np.hypot(*step))) * box
    centres = np.empty((0, 2))
    for i in np.random.default_rng(seed).permutation(len(points)):
        positions = points[i] + steps
        free = ((edge <= positions) & (positions <= plane - edge)).all(1)
        free &= ~(np.abs(positions[:, None] - centres) < 1.15 * box).all(2).any(1)
        if free.any():
            x, y = positions[free.argmax()]
            centres = np.vstack([centres, (x, y)])
            colour, marker = groups.styles.get(groups.labels[i], _OTHER)
            axes.plot(*zip(points[i], (x, y), strict=True), color=GREY, linewidth=0.5, zorder=1)
            left, low = (x, y) - box / 2
            extent = (left, left + box[0], low, low + box[1])
            axes.imshow(thumbnail(samples[i].path, height / 2), extent=extent, aspect="auto", zorder=3)
            axes.add_patch(Rectangle((left, low), *box, fill=False, edgecolor=colour, linewidth=1.8, zorder=4))
            axes.plot(left, low + box[1], marker, color=colour, markersize=5.5, mec="white", mew=0.5, zorder=5)
    return figure
