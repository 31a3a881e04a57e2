"""The embedding on a plane: t-SNE (van der Maaten and Hinton, JMLR 2008), by identity, by camera, and as images.

Near points are near in the embedding; distances between far groups, and the axes, mean nothing.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from reidlib.plots.images import thumbnail
from reidlib.plots.style import GREY, Figure, array, label_styles, styled

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


def _plane(points: Any, title: str, side: float, pad: float, right: float = 0.0) -> tuple[Figure, Axes, np.ndarray]:
    """An empty frame of at most `side` inches around points (N, 2), and the points in inches, `pad` from its edge."""
    points = array(points, np.float64)
    low, high = points.min(0), points.max(0)
    scale = (side - 2 * pad) / max((high - low).max(), 1e-12)  # one for both, as only distances mean something
    plane = ((high - low) * scale + 2 * pad).clip(0.6 * side, side)
    margin, top = 0.15, 0.4 if title else 0.15
    width, height = plane[0] + 2 * margin + right, plane[1] + margin + top
    figure = Figure(figsize=(width, height))
    box = (margin / width, margin / height, *(plane / (width, height)))
    axes = figure.add_axes(box, xticks=[], yticks=[], title=title, autoscale_on=False)
    axes.set(xlim=(0, plane[0]), ylim=(0, plane[1]))
    axes.spines[:].set(visible=True, color="#CCCCCC")
    return figure, axes, (points - (low + high) / 2) * scale + plane / 2


@styled
def tsne_figure(
    points: Any, labels: Sequence[Any], *, title: str = "", name: str = "pid", count: int = 20, grey: Sequence[Any] = ()
) -> Figure:
    """Points coloured by label.

    Args:
        points: (N, 2) float.
        labels: (N,) identities or cameras. The `count` most frequent ones, 21 at most, differ in colour and marker; the
            rest are grey dots.
        title: above the figure.
        name: put before a label in the legend.
        count: see `labels`.
        grey: labels that are grey dots, such as distractors and junk, (-1, 0).

    Returns:
        The figure.
    """
    labels = array(labels)
    styles = label_styles(labels, count, grey)
    figure, axes, points = _plane(points, title, 5.0, 0.2, right=1.15)
    size = np.clip(6000 / len(points), 8, 42)
    for label, (colour, marker) in styles.items():
        here = points[labels == label]
        axes.scatter(
            *here.T, s=size, color=colour, marker=marker, linewidths=0.4, edgecolors="white", label=f"{name} {label}"
        )
    if (rest := ~np.isin(labels, list(styles))).any():
        axes.scatter(*points[rest].T, s=size / 2, color="#C9C9C9", linewidths=0, label="others", zorder=0.9)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.01), borderaxespad=0, handletextpad=0.2, fontsize=8)
    return figure


@styled
def tsne_images(
    points: Any, paths: Sequence[str | Path], *, title: str = "", height: float = 0.56, seed: int = 0
) -> Figure:
    """The images themselves, at their points.

    An image whose position is taken moves aside by its own size at most, with a line to its point; if there is no room
    its point stays a grey dot.

    Args:
        points: (N, 2) float.
        paths: (N,) image files.
        title: above the figure.
        height: of an image, in inches.
        seed: of the order in which crowded images are placed.

    Returns:
        The figure.
    """
    side, box = 7.6, np.array([height / 2, height])
    edge = box / 2 + 0.04
    figure, axes, points = _plane(points, title, side, edge[1])
    plane = np.array([axes.get_xlim()[1], axes.get_ylim()[1]])
    axes.scatter(*points.T, s=5, color=GREY, linewidths=0, zorder=2)
    steps = np.array(sorted(product(np.linspace(-1.15, 1.15, 9), repeat=2), key=lambda step: np.hypot(*step))) * box
    centres = np.empty((0, 2))
    for i in np.random.default_rng(seed).permutation(len(points)):
        positions = points[i] + steps
        free = ((edge <= positions) & (positions <= plane - edge)).all(1)
        free &= ~(np.abs(positions[:, None] - centres) < 1.1 * box).all(2).any(1)
        if free.any():
            x, y = positions[free.argmax()]
            centres = np.vstack([centres, (x, y)])
            axes.plot(*zip(points[i], (x, y), strict=True), color=GREY, linewidth=0.5, zorder=1)
            extent = (x - box[0] / 2, x + box[0] / 2, y - box[1] / 2, y + box[1] / 2)
            axes.imshow(thumbnail(paths[i], (128, 64)), extent=extent, aspect="auto", zorder=3)
    return figure
