"""Labels that a run finds for itself: before each epoch its images are clustered, for a memory or for classifiers.

Cluster-Contrast extracts all features anew and begins each epoch with a memory of cluster means; MMT and PPLR begin it
with classifiers of these means. SpCL clusters the rows of its memory, one of each image, which is never made anew.
People whose labels may be read, of a source dataset, have class rows in front of all.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib.data.loaders import ImageSet, in_order
from reidlib.data.samplers import ClusterSampler, JoinedSampler
from reidlib.data.samples import ReIDDataset
from reidlib.evaluation import jaccard_graph
from reidlib.training.clusters import cluster_quality, pseudo_labels
from reidlib.training.fixed import features_in_all
from reidlib.training.memory import ClusterMemory
from reidlib.training.recipes import Recipe
from reidlib.training.refinement import PartHeads, WithParts, agreement


def cluster_batches(
    dataset: ReIDDataset, recipe: Recipe, rank: int = 0, world: int = 1
) -> ClusterSampler | JoinedSampler:
    """The sampler of a training without labels, whose labels `Relabel` sets.

    Where the data set has labelled people, each batch holds as many images of theirs in front.
    """
    cameras = [s.camid for s in dataset.train] if recipe.camera_batches else None
    labels = [dataset.labels[s.pid] if s.pid in dataset.labelled else -1 for s in dataset.train]
    images = labels.count(-1) if recipe.steps == 0 else 0
    steps = recipe.steps or max(1, images // (recipe.people * recipe.images * world))
    make = lambda: ClusterSampler(  # noqa: E731
        recipe.people, recipe.images, steps, cameras=cameras, seed=recipe.seed, rank=rank, world=world
    )
    if not dataset.labelled:
        return make()
    source = make()
    source.set_labels(labels)
    return JoinedSampler(source, make())


def num_classes(dataset: Any, recipe: Recipe) -> int:
    """The classes that a model is built with: people; 0 for a memory; for classified clusters as many as there can be.

    DBSCAN's clusters have `min_samples` images or more, but for those that lose shared ones to others.
    """
    if not recipe.clusters:
        return 0 if recipe.contrast_weight else dataset.num_classes
    return len(dataset.labelled) + max(2, len(dataset.train) // recipe.min_samples)


class Relabel:
    """Clusters the training images: `relabel(model, epoch)` sets the attributes and gives what it found, for a log.

    Args:
        dataset: Pids are read of its `labelled` people alone, and to measure the clusters with.
        images: Its training images.
        sampler: From `cluster_batches`; gets the labels.
        recipe: Its settings of clusters and memory.
        device: Where features are extracted and the memory lies.
        workers, rank, world: Loader processes of extraction, and this process among those of the run.

    Attributes:
        labels: (N,) int64 clusters of the images that are not labelled, -1 for outliers and for labelled ones.
        rows: (N,) int64, on the device: each image's row of the memory, -1 where it has none.
        memory: The memory, on the device; None where clusters are classified.
        centers: (R, D) features of length 1 that classifiers begin the epoch with, in place of a memory.
        part_centers: The same of each part.
        agreement: (N, parts), on the device: how far each part's neighbours are those of the whole image.
        source_rows: How many rows stand in front for the classes of the source.
    """

    memory: ClusterMemory | None = None
    labels: Tensor | None = None
    rows: Tensor
    centers: Tensor
    agreement: Tensor | None = None

    def __init__(
        self,
        dataset: ReIDDataset,
        images: ImageSet,
        sampler: ClusterSampler | JoinedSampler,
        recipe: Recipe,
        device: torch.device,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.recipe, self.device, self.rank, self.world = recipe, device, rank, world
        self.sampler: Any = sampler.parts[-1] if isinstance(sampler, JoinedSampler) else sampler
        self.batches = in_order(images, workers=workers, rank=rank, world=world)
        pids = torch.tensor([s.pid for s in dataset.train])
        self.target = torch.tensor([s.pid not in dataset.labelled for s in dataset.train])  # (N,)
        classes, self.classes = pids[~self.target].unique(return_inverse=True)
        self.source_rows = len(classes)
        self.camids = torch.tensor([s.camid for s in dataset.train])[self.target].numpy()
        truth = pids[self.target]
        self.truth = truth.numpy() if len(truth.unique()) > 1 else None
        self.threshold: float | None = None
        self.resumed: Tensor | None = None  # rows of a checkpoint
        self.part_centers: list[Tensor] = []

    def __call__(self, model: nn.Module, parts: PartHeads | None = None) -> dict[str, Any]:
        """Cluster the images before an epoch.

        Args:
            model: Its features are clustered.
            parts: Its parts, where they refine the labels.

        Returns:
            What `cluster_quality` measures, and the seconds that it took.

        Raises:
            ValueError: There is no cluster, or too few, too many outliers or one that is too large to learn from.
        """
        start, source = time.perf_counter(), self.source_rows
        rows = self.resumed if self.memory is None else self.memory.rows.cpu()
        of_parts: list[Tensor] = []
        if rows is None or self.recipe.memory == "cluster":
            feats = self._extract(WithParts(model, parts) if parts else model)
            if parts:
                feats, *of_parts = feats.split([parts.whole, *(head.feature_dim for head in parts)], dim=1)
            feats = normalize(feats)
            rows = torch.cat([_means(feats[~self.target], self.classes, source), feats[self.target]])
        found, self.threshold, row = self._agreed(rows[source:])
        images = torch.full((len(self.target),), -1)  # the row of each
        images[~self.target] = self.classes
        if self.recipe.memory == "cluster":
            rows = torch.cat(
                [rows[:source], _means(rows[source:][found >= 0], found[found >= 0], int(found.max()) + 1)]
            )
            groups = torch.arange(len(rows))
            images[self.target] = torch.where(found >= 0, found + source, -1)
        else:
            groups = torch.cat([torch.arange(source), torch.where(found >= 0, found + source, -1)])
            images[self.target] = torch.where(found >= 0, source + torch.arange(len(found)), -1)
        self.labels = torch.full_like(images, -1)
        self.labels[self.target] = found
        self.sampler.set_labels(self.labels.numpy())
        self.rows = images.to(self.device)
        if parts:
            self.agreement = torch.ones(len(images), len(parts))
            self.agreement[self.target] = agreement(
                feats[self.target], [x[self.target] for x in of_parts], self.recipe.part_neighbours, self.device
            )
            self.agreement = self.agreement.to(self.device)
            self.part_centers = [_means(x[images >= 0], images[images >= 0], len(rows)) for x in of_parts]
        if self.recipe.clusters:
            self.centers = rows
            return row | {"cluster_seconds": round(time.perf_counter() - start, 3)}
        self.memory = ClusterMemory(
            rows,
            groups,
            momentum=self.recipe.memory_momentum,
            temperature=self.recipe.temperature,
            update=self.recipe.memory_update,
            floor=0.0 if self.recipe.memory == "cluster" else 1e-6,  # SpCL's masked softmax
        ).to(self.device)
        return row | {"cluster_seconds": round(time.perf_counter() - start, 3)}

    def _extract(self, model: nn.Module) -> Tensor:
        """Features (N, D) of all training images, on the CPU, in every process."""
        return features_in_all(model, self.batches, self.device)

    def _agreed(self, feats: Tensor) -> tuple[Tensor, float | None, dict[str, Any]]:
        """What the first process found, in every process."""
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [self._cluster(feats)]
            except ValueError as error:
                found = [error]
        if self.world > 1:
            dist.broadcast_object_list(found)
        if isinstance(found[0], ValueError):
            raise found[0]
        return found[0]

    def _cluster(self, feats: Tensor) -> tuple[Tensor, float | None, dict[str, Any]]:
        """Labels of the target's images, the threshold of the reliability test, and the row of the log."""
        r = self.recipe
        gap = r.reliable or None
        graph = jaccard_graph(
            feats,
            k1=r.k1,
            k2=r.k2,
            camids=self.camids,
            camera=r.camera or None,
            keep=min(1.0, max(0.65, r.eps + r.reliable + 0.01)),
            device=self.device,
        )
        labels, table = pseudo_labels(
            graph,
            eps=r.eps,
            min_samples=r.min_samples,
            outliers="drop" if r.memory == "cluster" else "own",
            reliable=gap,
            threshold=self.threshold,
            method=r.clustering,
        )
        before = None if self.labels is None else self.labels[self.target].numpy()
        row = cluster_quality(labels, truth=self.truth, previous=before)
        if r.check_clusters and (advice := cluster_advice(row, r.people)):
            raise ValueError(advice)
        return labels, table.attrs["threshold"], row

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to find the same clusters."""
        rows = self.memory.rows.cpu() if self.memory is not None and self.recipe.memory == "image" else None
        return {"rows": rows, "labels": self.labels, "threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.resumed, self.labels, self.threshold = state["rows"], state["labels"], state["threshold"]


def cluster_advice(row: Mapping[str, Any], people: int) -> str:
    """Say in a sentence why clusters are nothing to learn from, and what to change; "" if they are sound.

    Args:
        row: From `cluster_quality`.
        people: Clusters in a batch.
    """
    unsound = {
        f"{row['clusters']} clusters are fewer than the {people} of a batch": row["clusters"] < people,
        f"{row['outliers']:.0%} of the images are outliers": row["outliers"] > 0.8,
        f"one cluster holds {row['largest']:.0%} of the images": row["largest"] > 0.2,
    }
    why = "; ".join(text for text, true in unsound.items() if true)
    change = "lower eps" if row["largest"] > 0.2 else "raise eps, lower min_samples, or begin with better weights"
    return f"{why}: {change}; check_clusters=False goes on all the same" if why else ""


def _means(feats: Tensor, labels: Tensor, count: int) -> Tensor:
    """Means of length 1, (count, D), of feats (N, D) by labels (N,)."""
    return normalize(feats.new_zeros(count, feats.shape[1]).index_add_(0, labels, feats))
