"""Pseudo-labels: clusters in a graph of Jaccard distances, which of them are reliable, and how good they are.

DBSCAN with a fixed eps is what Cluster-Contrast, SpCL, PPLR and CA-Jaccard have in common. SpCL's test of reliability:
Ge et al., "Self-paced Contrastive Learning with Hybrid Memory", NeurIPS 2020, who compare N x N matrices; here pairs of
labels are counted.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_array, csr_matrix, diags_array
from torch import Tensor

from reidlib.errors import unknown_name
from reidlib.training.recipes import METHODS

if TYPE_CHECKING:
    import pandas as pd


def pseudo_labels(
    graph: csr_array,
    *,
    eps: float = 0.6,
    min_samples: int = 4,
    outliers: str = "drop",
    reliable: float | None = None,
    threshold: float | None = None,
    camids: Any = None,
    method: str = "dbscan",
) -> tuple[Tensor, "pd.DataFrame"]:
    """Cluster the images of a graph.

    Args:
        graph: (N, N) distances from `reidlib.evaluation.jaccard_graph`, kept up to `eps` at least.
        eps: Largest distance of neighbours.
        min_samples: Images within eps, itself included, that make an image a core of its cluster; for the other methods
            the size of the smallest cluster.
        outliers: "drop": outliers get -1. "own": each gets a label of its own, after those of the clusters.
        reliable: SpCL's test: clusters are also made at eps - reliable and eps + reliable, and images that do not stay
            together become outliers. SpCL: 0.02 and outliers="own"; labels of clusters that dissolve are then missing.
        threshold: Of that test: the highest dependence (1 - IoU with the looser clusters) that a cluster may have.
            None: that of the cluster at 90 % of all, as SpCL sets it in the first epoch; it is in `table.attrs`.
        camids: (N,) cameras, for the table.
        method: "dbscan" and "hdbscan" of scikit-learn, or "infomap" where that package is installed. The last two see
            neighbours within eps alone.

    Returns:
        Labels (N,) int64, -1 for outliers; and a table with a row for each label: `size`, `cameras` (how many, NaN
        without camids), `mean_distance` of all pairs within (those that the graph lacks count as 1), `nearest`, the
        cluster with the lowest mean distance (-1 without any neighbours), and `nearest_distance`, that mean.
        `table.attrs["threshold"]` is that of `reliable`.

    Raises:
        ValueError: An argument makes no sense, or the graph was kept up to a lower distance than is needed.
        ImportError: infomap is not installed.
    """
    for name, value, choices in (("outliers", outliers, ("drop", "own")), ("method", method, METHODS)):
        if value not in choices:
            raise unknown_name(name, value, choices)
    kept, gap = getattr(graph, "keep", np.inf), reliable or 0
    if not eps > gap >= 0:
        raise ValueError(f"eps must be above 0 and above `reliable`, got eps={eps} and reliable={reliable}")
    if eps + gap > kept:
        raise ValueError(f"eps + reliable is {eps + gap:g}, the graph keeps {kept}: give jaccard_graph a larger `keep`")
    labels = _METHODS[method](graph, eps, min_samples)
    labels = _own(labels) if outliers == "own" else labels
    if reliable is not None:
        tight, loose = (_METHODS[method](graph, eps + gap, min_samples) for gap in (-reliable, reliable))
        stays, threshold = _reliable(_own(labels), _own(tight), _own(loose), threshold)
        if outliers == "own":  # numbers behind all others, as SpCL has it
            labels[~stays] = labels.max() + 1 + np.arange((~stays).sum())
        else:
            labels[~stays] = -1
            labels[np.bincount(labels + 1)[labels + 1] < 2] = -1  # what is left of a cluster
            labels = np.unique(np.append(-1, labels), return_inverse=True)[1][1:] - 1  # without gaps
    table = cluster_table(graph, labels, camids)
    table.attrs["threshold"] = threshold
    return torch.from_numpy(labels.astype(np.int64)), table


def cluster_quality(labels: Any, truth: Any = None, previous: Any = None) -> dict[str, float]:
    """Measure clusters, and compare them with those before and with true people.

    Args:
        labels: (N,) integers, -1 for outliers.
        truth: (N,) true people, for measuring only.
        previous: (N,) labels of the epoch before.

    Returns:
        `clusters` (of two images or more), `outliers` and `largest` (shares of all images); `agreement`, the adjusted
        Rand index with `previous` over the images that are in clusters of both; with `truth` `ari`, `nmi`, and
        `pair_precision` and `pair_recall`: of the pairs in one cluster that are of one person, and the reverse, each
        outlier as a cluster of its own.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labels = np.asarray(labels)
    size = np.bincount(labels[labels >= 0], minlength=1)
    inside = (labels >= 0) & (size[labels] > 1)
    row = {"clusters": int((size > 1).sum()), "outliers": 1 - float(inside.mean()), "largest": size.max() / len(labels)}
    if previous is not None:
        before = np.asarray(previous)
        both = inside & (before >= 0) & (np.bincount(before + 1)[before + 1] > 1)
        row["agreement"] = adjusted_rand_score(before[both], labels[both]) if both.any() else 0.0
    if truth is not None:
        own, truth = _own(labels), np.asarray(truth)
        row["ari"] = adjusted_rand_score(truth, own)
        row["nmi"] = normalized_mutual_info_score(truth, own)
        together = _pairs(np.unique(np.stack([truth, own]), axis=1, return_counts=True)[1])
        row["pair_precision"] = together / max(1, _pairs(np.bincount(own)))
        row["pair_recall"] = together / max(1, _pairs(np.unique(truth, return_counts=True)[1]))
    return {name: value if isinstance(value, int) else float(value) for name, value in row.items()}


def _pairs(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _own(labels: np.ndarray) -> np.ndarray:
    """Labels with a new one for each -1, in the order of images."""
    labels, alone = labels.copy(), labels < 0
    labels[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    return labels


# Methods: (graph, eps, min_samples) → labels (N,), -1 for outliers


def _dbscan(graph: csr_array, eps: float, min_samples: int) -> np.ndarray:
    from sklearn.cluster import DBSCAN

    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(graph)


def _hdbscan(graph: csr_array, eps: float, min_samples: int) -> np.ndarray:
    """Scikit-learn wants a connected graph without zeros: each image is linked to the next ones at distance 1."""
    from sklearn.cluster import HDBSCAN

    count = graph.shape[0]
    if count < min_samples:
        return np.full(count, -1)
    data = np.where(graph.data <= eps, np.maximum(graph.data, 1e-9), 1.0)
    near = csr_array((data, graph.indices, graph.indptr), shape=graph.shape)
    stored = csr_array((np.ones_like(data), graph.indices, graph.indptr), shape=graph.shape)
    steps = [step for step in range(-min_samples, min_samples + 1) if step and abs(step) < count]
    chain = csr_array(diags_array([1.0] * len(steps), offsets=steps, shape=graph.shape))
    far = {"max_distance": 1.0}
    method = HDBSCAN(
        min_cluster_size=max(2, min_samples),
        min_samples=min_samples,
        metric="precomputed",
        metric_params=far,
        copy=True,
    )
    return method.fit_predict(csr_matrix(near + chain - chain * stored))


def _infomap(graph: csr_array, eps: float, min_samples: int) -> np.ndarray:
    """Rosvall and Bergstrom, PNAS 2008, over links of weight 1 - distance, as Cluster-Contrast offers it."""
    try:
        from infomap import Infomap
    except ImportError as error:
        raise ImportError("method='infomap' needs the package infomap: pip install infomap") from error
    network = Infomap("--two-level --silent --seed 1")
    pairs = graph.tocoo()
    network.add_nodes(range(graph.shape[0]))
    for i, j, d in zip(pairs.row.tolist(), pairs.col.tolist(), pairs.data.tolist(), strict=True):
        if i < j and d <= eps:
            network.add_link(i, j, 1 - d)
    network.run()
    module = network.get_modules()
    labels = np.unique([module[i] for i in range(graph.shape[0])], return_inverse=True)[1]
    return np.where(np.bincount(labels)[labels] >= min_samples, labels, -1)


_METHODS = dict(zip(METHODS, (_dbscan, _hdbscan, _infomap), strict=True))


# Reliability


def _distance_of_sets(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - IoU of the cluster of each image in `a` and of its cluster in `b`: (N,), by counting pairs of labels."""
    _, which, common = np.unique(np.stack([a, b]), axis=1, return_inverse=True, return_counts=True)
    common = common[which.reshape(-1)]
    return 1 - common / (np.bincount(a)[a] + np.bincount(b)[b] - common)


def _reliable(
    labels: np.ndarray, tight: np.ndarray, loose: np.ndarray, threshold: float | None
) -> tuple[np.ndarray, float]:
    """Which images (N,) stay in their cluster, of labels that have no -1, and the threshold.

    An image stays if the most independent of its cluster is within the threshold when eps grows, and it is as compact
    as the most compact of its cluster when eps shrinks.
    """
    scores = _distance_of_sets(labels, tight), _distance_of_sets(labels, loose)
    compact, independent = np.full((2, labels.max(initial=-1) + 1), np.inf)
    np.minimum.at(compact, labels, scores[0])
    np.minimum.at(independent, labels, scores[1])
    if threshold is None:
        of_clusters = np.sort(independent[np.bincount(labels) > 1])
        place = min(len(of_clusters) - 1, round(0.9 * len(of_clusters)))
        threshold = float(of_clusters[place]) if len(of_clusters) else 0.0
    slack = 1e-6  # a threshold may have gone through float32
    return (independent[labels] <= threshold + slack) & (scores[0] <= compact[labels] + slack), threshold


def cluster_table(graph: csr_array, labels: Any, camids: Any = None) -> "pd.DataFrame":
    """The table that `pseudo_labels` returns, of any labels (N,) for the images of `graph`, -1 for outliers."""
    import pandas as pd

    labels = np.asarray(labels)
    inside = np.flatnonzero(labels >= 0)
    present, compact = np.unique(labels[inside], return_inverse=True)
    size = np.bincount(compact, minlength=len(present))
    member = csr_array((np.ones(len(inside)), (inside, compact)), shape=(len(labels), len(present)))
    near = csr_array((1 - graph.data.astype(np.float64), graph.indices, graph.indptr), shape=graph.shape)
    between = (member.T @ near @ member).tocoo()  # sums of 1 - distance over pairs of clusters
    row, column = between.coords
    same = row == column
    within = np.bincount(row[same], between.data[same], minlength=len(present)) - size  # without itself
    row, column, mean = row[~same], column[~same], 1 - between.data[~same] / (size[row] * size[column])[~same]
    nearest, distance = np.full(len(present), -1), np.ones(len(present))
    order = np.lexsort((column, mean))[::-1]  # the nearest last
    nearest[row[order]], distance[row[order]] = present[column[order]], mean[order]
    cameras = np.full(len(present), np.nan)
    if camids is not None:
        pairs = np.unique(np.stack([compact, np.asarray(camids)[inside]]), axis=1)
        cameras = np.bincount(pairs[0], minlength=len(present))
    return pd.DataFrame(
        {
            "size": size,
            "cameras": cameras,
            "mean_distance": np.where(size > 1, 1 - within / np.maximum(1, size * (size - 1)), 0),
            "nearest": nearest,
            "nearest_distance": distance,
        },
        index=pd.Index(present, name="cluster"),
    )
