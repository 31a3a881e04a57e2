"""From files to batches: uint8 images (B, 3, H, W), resized and not normalised (the model does that itself).

Pictures are decoded several at a time. A set that fits into `cache_gib` is decoded once and kept: on small sets
decoding would otherwise take as long as the network. A set that was packed is read from its pack.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from reidlib.data.folders import ClassDataset
from reidlib.data.images import read_image, unreadable_images
from reidlib.data.packing import find_pack
from reidlib.data.samplers import PKSampler, ShuffledSampler
from reidlib.data.samples import ReIDDataset, Sample

CACHE_GIB = 2.0
ENLARGED = 1.4  # times the size that a model sees: what random crops of training pictures are cut from
CENTRE = 0.875  # share of a validation picture's sides that is shown: 224 of 256 pixels


class Batch(NamedTuple):
    """images (B, 3, H, W) uint8; the rest (B,) int64.

    `camids` are the data set's own, for ranking; `cameras` what a model that embeds the camera is told, -1 for one that
    it was not trained on. `indices` count in the samples' order.
    """

    images: Tensor
    pids: Tensor
    camids: Tensor
    cameras: Tensor
    indices: Tensor


class ImageSet(Dataset[Batch]):
    """Samples as batches: `images[[3, 1, 2]]` is a Batch. `labels` and `cameras` say what stands for pid and camid.

    `centre`: see `read_image`; packs hold whole pictures only.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        *,
        labels: dict[int, int] | None = None,
        cameras: dict[int, int] | None = None,
        centre: float = 0.0,
        cache_gib: float = CACHE_GIB,
    ) -> None:
        self.samples, self.size, self.centre = samples, tuple(size), centre
        self.pids = torch.tensor([s.pid if labels is None else labels[s.pid] for s in samples], dtype=torch.int64)
        self.camids = torch.tensor([s.camid for s in samples], dtype=torch.int64)
        self.cameras = torch.tensor([(cameras or {}).get(s.camid, -1) for s in samples], dtype=torch.int64)
        self.fits = len(samples) * 3 * size[0] * size[1] <= cache_gib * 2**30
        self._cache: Tensor | None = None
        self.pack = None if centre else find_pack(samples, self.size)

    def __len__(self) -> int:
        return len(self.samples)

    def preload(self) -> "ImageSet":
        """Read everything now if it fits. Raises OSError that counts and names the pictures that cannot be read."""
        if not self.fits or self._cache is not None:
            return self
        if self.pack:
            self._cache = self.pack.read(range(len(self)))
            return self
        cache = torch.empty(len(self), 3, *self.size, dtype=torch.uint8)
        bad: list[str] = []

        def read(i: int) -> None:
            try:
                cache[i] = self._read(i)
            except OSError as error:
                bad.append(str(error))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(len(self))))
        _raise_for_bad(sorted(bad), self)
        self._cache = cache
        return self

    def __getitem__(self, indices: list[int]) -> Batch:
        at = torch.as_tensor(indices, dtype=torch.int64)
        if self._cache is not None:
            images = self._cache[at]
        elif self.pack:
            images = self.pack.read(indices)
        else:
            images = torch.stack([self._read(i) for i in at.tolist()])
        return Batch(images, self.pids[at], self.camids[at], self.cameras[at], at)

    def _read(self, i: int) -> Tensor:
        return read_image(self.samples[i].path, self.size, centre=self.centre)


def _raise_for_bad(bad: list[str], images: ImageSet) -> None:
    if not bad:
        return
    if len(bad) == 1:
        raise OSError(f"{bad[0]} (1 of {len(images)} images)")
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise OSError(f"{len(bad)} of {len(images)} images cannot be read: {'; '.join(bad[:3])}{more}")


@contextmanager
def loader_errors() -> Iterator[None]:
    """What happens in a loader process, said in one sentence: torch quotes that process at length, or names its id.

    Around all of the block that iterates: torch tells of a killed process whatever the block is doing then.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = str(error)
        if "in DataLoader worker process" in said:
            raise type(error)(said.strip().splitlines()[-1].partition(": ")[2]) from error
        if "DataLoader worker" in said:
            raise RuntimeError("a loader process was killed (is the memory full?): lower `workers`") from error
        raise


def _loader(images: ImageSet, batches: Sampler[list[int]], workers: int) -> DataLoader[Batch]:
    # `sampler` with batch_size=None: a whole list of indices goes to ImageSet at once, and comes back as a Batch.
    # A set that is in memory needs no workers: they would only copy it.
    return DataLoader(
        images,
        sampler=batches,
        batch_size=None,
        num_workers=0 if images.fits else workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )


def train_loader(
    dataset: ReIDDataset,
    size: tuple[int, int],
    *,
    people: int,
    images: int,
    pk: bool = True,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_gib: float = CACHE_GIB,
) -> DataLoader[Batch]:
    """Training batches of `people` × `images`; `pk=False` mixes all images instead. Batch.pids are class labels.

    Decodes the set first where it fits into memory. Raises OSError for unreadable pictures, ValueError for a batch that
    the set cannot fill.
    """
    samples = ImageSet(dataset.train, size, labels=dataset.labels, cameras=dataset.camera_labels, cache_gib=cache_gib)
    place = {"seed": seed, "rank": rank, "world": world}
    if pk:
        sampler = PKSampler(samples.pids.tolist(), people, images, **place)
    else:
        sampler = ShuffledSampler(len(samples), people * images, **place)
    if not samples.fits and not samples.pack:  # better now than in the middle of an epoch
        _raise_for_bad([f"cannot read image {path}: {why}" for path, why in unreadable_images(dataset.train)], samples)
    return _loader(samples.preload(), sampler, workers)


def eval_loader(
    samples: Sequence[Sample],
    size: tuple[int, int],
    *,
    cameras: dict[int, int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_gib: float = CACHE_GIB,
) -> DataLoader[Batch]:
    """All samples once, in their order. `cameras`: the training set's `camera_labels`, where these are its cameras.

    With `world` processes, the part of process `rank`: theirs in a row are all.
    """
    samples = samples[len(samples) * rank // world : len(samples) * (rank + 1) // world]
    images = ImageSet(samples, size, cameras=cameras, cache_gib=cache_gib).preload()
    return _loader(images, BatchSampler(SequentialSampler(images), batch_size, drop_last=False), workers)


def class_loaders(
    dataset: ClassDataset,
    size: tuple[int, int],
    *,
    batch: int,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_gib: float = CACHE_GIB,
) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Training batches, shuffled and `ENLARGED`, for random crops, and validation's centres at `size`, in their order.

    Both keep the shape of what they show. A set that does not fit into memory is read as it is needed, `workers` ahead.
    With `world` processes, each has its part of both. Raises ValueError where the training set cannot fill a batch.
    """
    larger = tuple(round(side * ENLARGED) for side in size)
    train = ImageSet(dataset.train, larger, centre=1.0, cache_gib=cache_gib)
    val = ImageSet(dataset.val[rank::world], size, centre=CENTRE, cache_gib=cache_gib)
    shuffled = ShuffledSampler(len(train), batch, seed=seed, rank=rank, world=world)
    in_order = BatchSampler(SequentialSampler(val), batch, drop_last=False)
    return _loader(train.preload(), shuffled, workers), _loader(val.preload(), in_order, workers)
