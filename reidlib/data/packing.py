"""A dataset resized once and packed into one file of raw pixels, so that training never waits for a decoder.

A pack is a folder: images.u8 (N, 3, H, W) uint8, crc.u64 (N,) with the checksum of each finished image, and, written
last, index.json. Its pixels are those that `read_image` gives. An image is checked each time it is read, and a pack
serves only samples whose files are still those that it was made of (size, modification time, inode).
"""

import hashlib
import json
import shutil
import time
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidlib.data.images import read_image
from reidlib.data.samples import ReIDDataset, Sample, file_state
from reidlib.files import whole_file
from reidlib.paths import packs_root

_DONE = 1 << 32  # set beside a checksum, since a checksum may be 0


class Pack:
    """`rows` of a pack as images: `pack.read([3, 1])` is (2, 3, H, W) uint8."""

    def __init__(self, folder: Path, rows: Sequence[int], size: tuple[int, int]) -> None:
        self.folder, self.rows, self.shape = folder, np.asarray(rows, np.int64), (-1, 3, *size)

    def __getstate__(self) -> dict[str, object]:  # a loader process opens the files itself
        return {key: self.__dict__[key] for key in ("folder", "rows", "shape")}

    @cached_property
    def _files(self) -> tuple[np.ndarray, np.ndarray]:
        images = np.memmap(self.folder / "images.u8", np.uint8, "r").reshape(self.shape)
        return images, np.fromfile(self.folder / "crc.u64", np.uint64)

    def read(self, at: Sequence[int]) -> Tensor:
        """Images (len(at), 3, H, W) uint8. Raises OSError for an image that is no longer what was packed."""
        images, checksums = self._files
        rows = self.rows[np.asarray(at, np.int64)]
        batch = images[rows]
        for row, image in zip(rows, batch, strict=True):
            if _checksum(image) != checksums[row]:
                raise OSError(f"{self.folder} is damaged at image {row}: remove that folder and pack again")
        return torch.from_numpy(batch)


def _checksum(image: np.ndarray) -> int:
    return zlib.crc32(image) | _DONE


def _states(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """The state of each file, once each, in order."""
    return {str(s.path): list(file_state(s.path)) for s in samples}


def pack(
    dataset: ReIDDataset, size: tuple[int, int], *, interpolation: str = "bilinear", progress: bool = False
) -> Path:
    """Pack all images of a dataset; 3 × height × width bytes an image.

    An interrupted pack is continued with the images that are missing or damaged; a finished one is left as it is.

    Args:
        dataset: all splits are packed.
        size: (height, width) in pixels.
        interpolation: see `read_image`.
        progress: show a bar.

    Returns:
        The pack's folder, in `packs_root()`.

    Raises:
        OSError: for an image that cannot be read, and for a full disk.
    """
    about: dict[str, Any] = {"size": list(size), "interpolation": interpolation}
    about["files"] = _states(list(chain(*dataset.splits.values())))
    paths, nbytes, step = [*about["files"]], 3 * size[0] * size[1], 64
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    folder = packs_root() / f"{dataset.name}-{size[0]}x{size[1]}-{key}"
    index = folder / "index.json"
    with suppress(OSError, ValueError):
        if json.loads(index.read_text()) == about:
            return folder
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = len(paths) * nbytes, shutil.disk_usage(folder).free
    if free < needed and not (folder / "images.u8").exists():
        raise OSError(f"packing needs {needed / 2**30:.1f} GiB in {folder.parent}, {free / 2**30:.1f} GiB are free")
    for name, width in ("images.u8", nbytes), ("crc.u64", 8):
        with (folder / name).open("ab") as file:
            file.truncate(len(paths) * width)  # not yet there is read as 0
    read = partial(read_image, size=size, interpolation=interpolation)
    starts = range(0, len(paths), step)
    if progress:
        from tqdm.auto import tqdm

        starts = tqdm(starts, desc=folder.name, unit_scale=step, unit="image", leave=False)
    # Written, not mapped: where the disk is full a write raises, but a map kills the process.
    with (
        ThreadPoolExecutor(4) as pool,
        (folder / "images.u8").open("rb+") as images,
        (folder / "crc.u64").open("rb+") as crc,
    ):
        for start in starts:
            part = paths[start : start + step]
            images.seek(start * nbytes)
            written = np.frombuffer(images.read(len(part) * nbytes), np.uint8).reshape(-1, nbytes)
            crc.seek(start * 8)
            checksums = np.frombuffer(crc.read(len(part) * 8), np.uint64)
            if [_checksum(image) for image in written] == checksums.tolist():
                continue
            decoded = torch.stack(list(pool.map(read, part))).numpy()
            images.seek(start * nbytes)
            images.write(decoded)
            images.flush()
            crc.seek(start * 8)
            crc.write(np.array([_checksum(image) for image in decoded], np.uint64))
            crc.flush()
    with whole_file(index) as part:
        part.write_text(json.dumps(about))
    return folder


@lru_cache(8)
def _index(file: Path, changed: int) -> tuple[dict[str, Any], dict[str, int]]:
    """What a pack's index says, and each file's row; None of both, and a warning, where the pack is damaged."""
    try:
        about = json.loads(file.read_text())
        count, (height, width), _ = len(about["files"]), about["size"], about["interpolation"]
        for name, nbytes in ("images.u8", 3 * height * width), ("crc.u64", 8):
            if (file.parent / name).stat().st_size != count * nbytes:
                raise ValueError(f"{name} is not of {count} images")
        return about, {path: row for row, path in enumerate(about["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        warnings.warn(f"the pack {file.parent} is not used: remove it and pack again ({reason})", stacklevel=2)
        return {}, {}


def find_pack(samples: Sequence[Sample], size: tuple[int, int], interpolation: str = "bilinear") -> Pack | None:
    """The pack that holds every one of `samples` at `size`, as they are now; None where there is none."""
    for file in sorted(packs_root().glob(f"*-{size[0]}x{size[1]}-*/index.json")):
        about, rows = _index(file, file.stat().st_mtime_ns)
        if about.get("interpolation") == interpolation and all(str(s.path) in rows for s in samples):
            with suppress(OSError):  # a file that is gone: whoever reads it says so
                if all(about["files"][path] == state for path, state in _states(samples).items()):
                    return Pack(file.parent, [rows[str(s.path)] for s in samples], size)
    return None


def reading_speed(
    samples: Sequence[Sample], size: tuple[int, int], *, interpolation: str = "bilinear", count: int = 512
) -> dict[str, float]:
    """Images per second in one process, in shuffled batches of 64, `decoded` from their files and, if there, `packed`.

    The files are read once before, so this compares decoders, not disks.
    """
    order = np.random.default_rng(0).permutation(len(samples))[:count]
    batches = [order[i : i + 64].tolist() for i in range(0, len(order), 64)]
    found = find_pack(samples, size, interpolation)
    read = partial(read_image, size=size, interpolation=interpolation)
    readers = {"decoded": lambda at: torch.stack([read(samples[i].path) for i in at])}
    readers |= {"packed": found.read} if found else {}
    speed = {}
    for name, read_batch in readers.items():
        for _ in range(2):
            start = time.perf_counter()
            for batch in batches:
                read_batch(batch)
            speed[name] = len(order) / (time.perf_counter() - start)
    return speed
