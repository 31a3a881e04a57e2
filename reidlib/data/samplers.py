"""Which images make a batch: a fixed function of seed, epoch and step, so that any epoch can be drawn again.

PK batches (P people × K images each): Hermans et al., In Defense of the Triplet Loss, 2017. Different from torchreid's
sampler: an epoch is given in whole batches over a shuffled cycle of all people, so no person is dropped at its end.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from reidlib.seeds import generator_for


class PKSampler(Sampler[list[int]]):
    """Batches of `people` × `images` indices into `labels`; every batch holds `people` different labels.

    With `frames` > 1 the images of a person come in runs of that many, each of one tracklet.

    An epoch has as many batches as it takes to show as many images as there are. A person's images come in a shuffled
    cycle; one with fewer than `images` of them is repeated within a batch.

    Args:
        labels: (N,) the person of each image.
        people, images: what a batch holds.
        frames: images of one tracklet in a row; `images` is a multiple. A shorter tracklet repeats its own.
        tracks: (N,) the tracklet of each image, for `frames`.
        seed: an epoch's batches are a function of it and of `set_epoch`.
        rank, world: a step of `world` processes draws `world` × `people` people, of whom process `rank` takes its
            share: nobody appears on two processes.

    Raises:
        ValueError: where there are fewer people than a step needs, or `images` is no multiple of `frames`.
    """

    frames = 1

    def __init__(
        self,
        labels: Sequence[int],
        people: int,
        images: int,
        *,
        frames: int = 1,
        tracks: Sequence[Hashable] = (),
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if images % frames:
            raise ValueError(f"{images} images of a person are no multiple of {frames} frames: change `images`")
        self.frames, self.tracks = frames, tracks
        self.people, self.images, self.seed, self.rank, self.world = people, images, seed, rank, world
        self.epoch = 0
        labels = np.asarray(labels)
        self.by_label = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if min(people, images) < 1:
            raise ValueError(f"a batch needs at least one person and one image each, got {people} × {images}")
        if len(self.by_label) < people * world:
            raise ValueError(
                f"a batch of {people} people on {world} process(es) needs {people * world} different people, "
                f"the training set has {len(self.by_label)}: lower `people`"
            )
        self.steps = max(1, len(labels) // (people * images * world))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = generator_for(self.seed, "batches", self.epoch)
        queues: list[list[int]] = [[] for _ in self.by_label]
        order: list[int] = []
        for _ in range(self.steps):
            chosen: list[int] = []
            while len(chosen) < self.people * self.world:
                if not order:
                    # A new cycle: people already in this batch go to its end, so that a batch never repeats one.
                    fresh = rng.permutation(len(self.by_label)).tolist()
                    order = [p for p in fresh if p not in chosen] + [p for p in fresh if p in chosen]
                chosen.append(order.pop(0))
            picks = [self._take(p, queues[p], rng) for p in chosen]
            mine = picks[self.rank * self.people : (self.rank + 1) * self.people]
            yield [i for images in mine for i in images]

    def _take(self, person: int, queue: list[int], rng: np.random.Generator) -> list[int]:
        taken: list[int] = []
        while len(taken) < self.images:
            if not queue:
                queue.extend(self._cycle(person, rng).tolist())
            taken.append(queue.pop(0))
        return taken

    def _cycle(self, person: int, rng: np.random.Generator) -> np.ndarray:
        """All images of a person, in the order in which they are taken."""
        images = rng.permutation(self.by_label[person])
        if self.frames == 1:
            return images
        of_track: dict[Hashable, list[int]] = {}
        for image in images.tolist():
            of_track.setdefault(self.tracks[image], []).append(image)
        runs = []
        for each in of_track.values():
            short = -len(each) % self.frames
            filled = each + [each[i % len(each)] for i in range(short)]
            runs += [(n, filled[n : n + self.frames]) for n in range(0, len(filled), self.frames)]
        runs.sort(key=lambda run: run[0])  # a run of every tracklet before the second one of any
        return np.array([image for _, run in runs for image in run])


class ClusterSampler(PKSampler):
    """PK batches over labels that change between epochs, such as clusters, by camera where cameras are given.

    Batches always hold `people` × `images` indices, and an epoch has `steps` of them: images of a small cluster repeat,
    and with fewer clusters than a step needs, so do clusters. Cluster-Contrast's and SpCL's sampler gives short batches
    there, or none.

    Args:
        people, images: what a batch holds.
        steps: batches of an epoch.
        cameras: (N,) integers: a cluster's images are taken from its cameras in turn, as long as each has any left.
        seed, rank, world: see `PKSampler`.
    """

    def __init__(
        self,
        people: int,
        images: int,
        steps: int,
        *,
        cameras: Sequence[int] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.people, self.images, self.steps, self.seed, self.rank, self.world = (
            people,
            images,
            steps,
            seed,
            rank,
            world,
        )
        self.cameras = None if cameras is None else np.asarray(cameras)
        self.epoch, self.by_label = 0, []

    def set_labels(self, labels: Sequence[int]) -> None:
        """Take batches from these labels (N,); images with -1 are left out. ValueError if there is no other."""
        labels = np.asarray(labels)
        order = np.argsort(labels, kind="stable")
        found = labels[order]
        self.by_label = np.split(order, np.flatnonzero(np.diff(found)) + 1)
        self.by_label = [images for images in self.by_label if len(images) and labels[images[0]] >= 0]
        if not self.by_label:
            raise ValueError("there is no cluster to take images from: raise eps, or begin with better weights")

    def _cycle(self, person: int, rng: np.random.Generator) -> np.ndarray:
        images = super()._cycle(person, rng)
        if self.cameras is None:
            return images
        cameras, nth = self.cameras[images], np.empty(len(images), np.int64)
        for camera in np.unique(cameras):
            nth[cameras == camera] = np.arange((cameras == camera).sum())
        return images[np.argsort(nth, kind="stable")]


class JoinedSampler(Sampler[list[int]]):
    """Batches that are those of several samplers in a row, which all have as many."""

    def __init__(self, *parts: PKSampler) -> None:
        self.parts = parts

    def set_epoch(self, epoch: int) -> None:
        for part in self.parts:
            part.set_epoch(epoch)

    def __len__(self) -> int:
        return min(map(len, self.parts))

    def __iter__(self) -> Iterator[list[int]]:
        return ([i for batch in batches for i in batch] for batches in zip(*self.parts, strict=False))


class ShuffledSampler(Sampler[list[int]]):
    """Batches of `batch_size` over all `count` images in a new order each epoch; a rest too small for a batch waits."""

    def __init__(self, count: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if count < batch_size * world:
            raise ValueError(
                f"a step takes {batch_size * world} images, the training set has {count}: lower the batch size"
            )
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[int]]:
        order = generator_for(self.seed, "batches", self.epoch).permutation(self.count)
        step = self.batch_size * self.world
        for start in range(0, len(self) * step, step):
            share = start + self.rank * self.batch_size
            yield order[share : share + self.batch_size].tolist()
