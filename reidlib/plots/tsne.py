"""The embedding on a plane: t-SNE (van der Maaten and Hinton, JMLR 2008), by identity, by camera, and as pictures.

Near points are near in the embedding; distances between far groups, and the axes, mean nothing.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reidlib.plots.images import thumbnail
from reidlib.plots.style import GREY, Figure, array, label_styles, styled


def tsne_map(feats: Any, seed: int = 0, perplexity: float | None = None) -> np.ndarray:
    """Features (N, D) to points (N, 2) float32, the same for the same seed on one machine.

    Rows are scaled to length one first, as cosine ranking does, then brought to 50 dimensions by PCA if they have more.
    `perplexity` defaults to 30, less where the points are few. Raises ValueError for a row that is not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    feats = array(feats, np.float32)
    if feats.ndim != 2 or not len(feats):
        raise ValueError(f"feats must be (N, D) with N above 0, not {feats.shape}")
    if not (fine := np.isfinite(feats).all(1)).all():
        raise ValueError(f"feats has a value that is not finite in row {fine.argmin()}")
    feats = feats / np.linalg.norm(feats, axis=1, keepdims=True).clip(1e-12)
    count, dim = feats.shape
    if dim > 50 and count > 50:
        feats = PCA(50, random_state=seed).fit_transform(feats)
    if count < 4 or dim < 2:  # too few for neighbours
        feats = feats - feats.mean(0)
        u, s, _ = np.linalg.svd(np.pad(feats, ((0, 2), (0, 2))), full_matrices=False)
        return (u * s)[:count, :2].astype(np.float32)
    perplexity = min(30 if perplexity is None else perplexity, (count - 1) / 3)
    tsne = TSNE(perplexity=max(perplexity, 1), init="pca", random_state=seed)
    with threadpool_limits(1 if count < 5000 else None):  # on so little work, waiting threads cost ten times the work
        return tsne.fit_transform(feats)


def _plane(points: Any, title: str, side: float, pad: float, right: float = 0.0) -> tuple[Figure, Axes, np.ndarray]:
    """A bare frame of at most `side` inches that fits the points (N, 2), and these in inches, `pad` from its edge."""
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
    """Points (N, 2) by label (identity, camera): the `count` commonest labels, 21 at most, differ in colour and marker.

    The rest, and those in `grey` (distractors and junk, say: `grey=(-1, 0)`), are grey dots. `name` goes before a label
    in the legend.
    """
    labels = array(labels)
    known = label_styles(labels, count, grey)
    figure, axes, points = _plane(points, title, 5.0, 0.2, right=1.15)
    size = np.clip(6000 / len(points), 8, 42)
    for label, (colour, marker) in known.items():
        here = points[labels == label]
        axes.scatter(
            *here.T, s=size, color=colour, marker=marker, linewidths=0.4, edgecolors="white", label=f"{name} {label}"
        )
    if (rest := ~np.isin(labels, list(known))).any():
        axes.scatter(*points[rest].T, s=size / 2, color="#C9C9C9", linewidths=0, label="others", zorder=0.9)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.01), borderaxespad=0, handletextpad=0.2, fontsize=8)
    return figure


@styled
def tsne_images(
    points: Any, paths: Sequence[str | Path], *, title: str = "", height: float = 0.56, seed: int = 0
) -> Figure:
    """The pictures themselves, `height` inches high, at their places on the map.

    A picture whose place is taken moves aside by its own size at most, a line leading to its point; where there is no
    room it stays a grey dot. Which of crowded pictures come first is drawn by `seed`.
    """
    side, box = 7.6, np.array([height / 2, height])
    edge = box / 2 + 0.04
    figure, axes, points = _plane(points, title, side, edge[1])
    plane = np.array([axes.get_xlim()[1], axes.get_ylim()[1]])
    axes.scatter(*points.T, s=5, color=GREY, linewidths=0, zorder=2)
    steps = np.array(sorted(product(np.linspace(-1.15, 1.15, 9), repeat=2), key=lambda step: np.hypot(*step))) * box
    centres = np.empty((0, 2))
    for i in np.random.default_rng(seed).permutation(len(points)):
        places = points[i] + steps
        free = ((edge <= places) & (places <= plane - edge)).all(1)
        free &= ~(np.abs(places[:, None] - centres) < 1.1 * box).all(2).any(1)
        if free.any():
            x, y = places[free.argmax()]
            centres = np.vstack([centres, (x, y)])
            axes.plot(*zip(points[i], (x, y), strict=True), color=GREY, linewidth=0.5, zorder=1)
            extent = (x - box[0] / 2, x + box[0] / 2, y - box[1] / 2, y + box[1] / 2)
            axes.imshow(thumbnail(paths[i], (128, 64)), extent=extent, aspect="auto", zorder=3)
    return figure
