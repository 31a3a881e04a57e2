"""From files to batches: uint8 images (B, 3, H, W), resized and not normalised (the model does that itself).

Images are decoded several at a time. Samples that fit into memory (see `memory`) are decoded once and kept: on small
datasets decoding would otherwise take as long as the network. A packed dataset is read from its pack.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from reidlib.data.folders import ClassDataset
from reidlib.data.images import read_image, unreadable_images
from reidlib.data.memory import CACHE_GIB, cache_room
from reidlib.data.packing import find_pack
from reidlib.data.samplers import PKSampler, ShuffledSampler
from reidlib.data.samples import ReIDDataset, Sample

ENLARGED = 1.4  # times the input size of the model: what random crops of training images are cut from
CENTRE = 0.875  # share of a validation image's sides that is shown: 224 of 256 pixels


class Batch(NamedTuple):
    """images (B, 3, H, W) uint8; the rest (B,) int64.

    `camids` are the dataset's own, for ranking. `cameras` are camera labels for a model that embeds the camera, -1 for
    a camera that it was not trained on. `indices` are positions in the samples.
    """

    images: Tensor
    pids: Tensor
    camids: Tensor
    cameras: Tensor
    indices: Tensor


_in_memory: "WeakSet[ImageSet]" = WeakSet()  # those of this process that hold their images in memory


class ImageSet(Dataset[Batch]):
    """Samples as batches: `images[[3, 1, 2]]` is a Batch.

    Args:
        samples: what to read.
        size: (height, width) in pixels.
        labels: pid → class index; without it Batch.pids are the pids.
        cameras: camid → camera label.
        interpolation, centre, exif: see `read_image`. Packs hold whole images, rotated as EXIF says.
        cache_gib: GiB that `preload` may keep, in all ImageSets of all processes of this computer.
        world: number of processes.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        *,
        labels: dict[int, int] | None = None,
        cameras: dict[int, int] | None = None,
        interpolation: str = "bilinear",
        centre: float = 0.0,
        exif: bool = True,
        cache_gib: float = CACHE_GIB,
        world: int = 1,
    ) -> None:
        self.samples, self.size, self.cache_gib, self.world = samples, tuple(size), cache_gib, world
        self.reading = {"interpolation": interpolation, "centre": centre, "exif": exif}
        self.pids = torch.tensor([s.pid if labels is None else labels[s.pid] for s in samples], dtype=torch.int64)
        self.camids = torch.tensor([s.camid for s in samples], dtype=torch.int64)
        self.cameras = torch.tensor([(cameras or {}).get(s.camid, -1) for s in samples], dtype=torch.int64)
        self.nbytes = len(samples) * 3 * size[0] * size[1]
        self.pack = None if centre or not exif else find_pack(samples, self.size, interpolation)
        self._images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def in_memory(self) -> bool:
        return self._images is not None

    def preload(self) -> "ImageSet":
        """Read all images into memory, if there is room for them; otherwise say so.

        Raises:
            OSError: with the number and the names of images that cannot be read.
        """
        room = cache_room(self.cache_gib, sum(images.nbytes for images in _in_memory), self.world)
        if self.in_memory or self.nbytes > room:
            if not (self.in_memory or self.pack) and self.cache_gib:
                warnings.warn(
                    f"{len(self)} images of {self.size[0]} × {self.size[1]} are decoded anew each time: they take "
                    f"{self.nbytes / 2**30:.1f} GiB in each of {self.world} processes, and there is room for "
                    f"{max(room, 0) / 2**30:.1f}; raise `workers`, or pack the dataset (dataset notebook)",
                    stacklevel=2,
                )
            return self
        if self.pack:
            self._images = self.pack.read(range(len(self)))
        else:
            images = torch.empty(len(self), 3, *self.size, dtype=torch.uint8)
            bad: list[str] = []

            def read(i: int) -> None:
                try:
                    images[i] = self._read(i)
                except OSError as error:
                    bad.append(str(error))

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(read, range(len(self))))
            _raise_for_bad(sorted(bad), len(self))
            self._images = images
        _in_memory.add(self)
        return self

    def __getitem__(self, indices: list[int]) -> Batch:
        at = torch.as_tensor(indices, dtype=torch.int64)
        if self._images is not None:
            images = self._images[at]
        elif self.pack:
            images = self.pack.read(indices)
        else:
            images = torch.stack([self._read(i) for i in at.tolist()])
        return Batch(images, self.pids[at], self.camids[at], self.cameras[at], at)

    def _read(self, i: int) -> Tensor:
        return read_image(self.samples[i].path, self.size, **self.reading)


def _raise_for_bad(bad: list[str], count: int) -> None:
    if len(bad) == 1:
        raise OSError(f"{bad[0]} (1 of {count} images)")
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise OSError(f"{len(bad)} of {count} images cannot be read: {'; '.join(bad[:3])}{more}")


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn an error of a loader process into one sentence, where torch quotes its traceback or only names its id.

    Around the whole block that iterates: torch reports a killed process whatever the block is doing then.
    """
    killed = "a loader process was killed (is the memory full?): lower `workers`"
    try:
        yield
    except (ConnectionError, EOFError) as error:
        # A killed process closes its connection a moment before torch's signal handler reports its death: wait for that
        # report, which would otherwise come in the middle of what handles this error.
        try:
            time.sleep(1)
        except RuntimeError:
            raise RuntimeError(killed) from error
        raise
    except (OSError, RuntimeError) as error:
        message = str(error)
        if "in DataLoader worker process" in message:
            raise type(error)(message.strip().splitlines()[-1].partition(": ")[2]) from error
        if "DataLoader worker" in message:
            raise RuntimeError(killed) from error
        raise


def draw_batches(
    images: ImageSet,
    people: int,
    each: int,
    pk: bool = True,
    *,
    frames: int = 1,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Sampler[list[int]]:
    """What draws training batches; see `train_loader`, where `each` is `images`."""
    share = {"seed": seed, "rank": rank, "world": world}
    tracks = [(s.camid, s.track) for s in images.samples] if frames > 1 else []
    if tracks and not any(track for _, track in tracks):
        raise ValueError(f"the dataset has no tracklets to draw {frames} frames of: set frames=1")
    if pk:
        return PKSampler(images.pids.tolist(), people, each, frames=frames, tracks=tracks, **share)
    return ShuffledSampler(len(images), people * each, **share)


def load_batches(images: Any, batches: Sampler[list[int]], workers: int) -> DataLoader[Batch]:
    """A loader of an ImageSet, or of what gives Batches like one."""
    # `sampler` with batch_size=None: a whole list of indices goes to ImageSet at once, and comes back as a Batch.
    # Images in memory need no workers: they would only be copied.
    return DataLoader(
        images,
        sampler=batches,
        batch_size=None,
        num_workers=0 if getattr(images, "in_memory", True) else workers,
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
    frames: int = 1,
    sampler: Sampler[list[int]] | None = None,
    interpolation: str = "bilinear",
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_gib: float = CACHE_GIB,
) -> DataLoader[Batch]:
    """Training batches; their pids are class labels.

    Args:
        dataset: its training samples are read, into memory where they fit.
        size: (height, width) in pixels.
        people, images: a batch holds `people` × `images` images.
        pk: `people` people with `images` images each; False mixes all images.
        frames: of the images of a person, how many are drawn of one tracklet.
        sampler: what gives the batches in place of all that.
        interpolation: see `read_image`.
        seed: batches are a function of seed and epoch (`loader.sampler.set_epoch`).
        workers: loader processes, where the images are not in memory.
        rank, world: this process gets its share of each step of `world` processes.
        cache_gib: see `ImageSet`.

    Raises:
        OSError: for images that cannot be read.
        ValueError: for a batch that the training set cannot fill.
    """
    samples = ImageSet(
        dataset.train,
        size,
        labels=dataset.labels,
        cameras=dataset.camera_labels,
        interpolation=interpolation,
        cache_gib=cache_gib,
        world=world,
    )
    if sampler is None:
        share = {"seed": seed, "rank": rank, "world": world}
        sampler = draw_batches(samples, people, images, pk, frames=frames, **share)
    if not samples.preload().in_memory and not samples.pack:  # better now than in the middle of an epoch
        _raise_for_bad(unreadable_images(dataset.train), len(samples))
    return load_batches(samples, sampler, workers)


def in_order(
    images: ImageSet, *, batch_size: int = 64, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """All images once, in their order; of `world` processes each reads a consecutive part."""
    mine = range(len(images) * rank // world, len(images) * (rank + 1) // world)
    return load_batches(images, BatchSampler(mine, batch_size, drop_last=False), workers)


def slice_of(samples: Sequence[Sample], rank: int, world: int) -> Sequence[Sample]:
    """The consecutive part of `samples` that process `rank` of `world` reads."""
    return samples[len(samples) * rank // world : len(samples) * (rank + 1) // world]


def eval_loader(
    samples: Sequence[Sample],
    size: tuple[int, int],
    *,
    cameras: dict[int, int] | None = None,
    interpolation: str = "bilinear",
    batch_size: int = 64,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_gib: float = CACHE_GIB,
) -> DataLoader[Batch]:
    """All samples once, in their order; of `world` processes each reads a consecutive part.

    Args:
        samples: a query or gallery.
        size: (height, width) in pixels.
        cameras: `camera_labels` of the dataset that the model was trained on, if these are its cameras.
        interpolation: see `read_image`.
        batch_size: images a batch.
        workers, rank, world, cache_gib: see `train_loader`.
    """
    mine = slice_of(samples, rank, world)
    images = ImageSet(
        mine, size, cameras=cameras, interpolation=interpolation, cache_gib=cache_gib, world=world
    ).preload()
    return load_batches(images, BatchSampler(SequentialSampler(images), batch_size, drop_last=False), workers)


def class_loaders(
    dataset: ClassDataset,
    size: tuple[int, int],
    *,
    batch: int,
    interpolation: str = "bilinear",
    exif: bool = True,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    cache_gib: float = CACHE_GIB,
) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Batches of a dataset of classes: shuffled for training, and validation's in its order. Images keep their shape.

    Args:
        dataset: its training images are read `ENLARGED` times as large, for random crops; of validation images the
            centre is shown.
        size: (height, width) in pixels.
        batch: images a batch.
        interpolation, exif: see `read_image`.
        seed, workers, rank, world, cache_gib: see `train_loader`.

    Returns:
        The training loader and the validation loader.

    Raises:
        OSError: for images that cannot be read.
        ValueError: where the training set cannot fill a batch.
    """
    reading = {"interpolation": interpolation, "exif": exif, "cache_gib": cache_gib, "world": world}
    train = ImageSet(dataset.train, tuple(round(side * ENLARGED) for side in size), centre=1.0, **reading)
    val = ImageSet(dataset.val[rank::world], size, centre=CENTRE, **reading)
    shuffled = ShuffledSampler(len(train), batch, seed=seed, rank=rank, world=world)
    in_order = BatchSampler(SequentialSampler(val), batch, drop_last=False)
    return load_batches(train.preload(), shuffled, workers), load_batches(val.preload(), in_order, workers)
