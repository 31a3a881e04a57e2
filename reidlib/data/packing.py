"""A data set resized once and packed into one file of raw pixels, so that training never waits for a decoder.

A pack is a folder: images.u8 (N, 3, H, W) uint8, crc.u64 (N,) with the checksum of each finished picture, and, written
last, index.json. Its pixels are those that `read_image` gives. A picture is checked each time it is read, and a pack
serves only samples whose files still have the size and the time that they had when it was made.
"""

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reidlib.data.images import read_image
from reidlib.data.samples import ReIDDataset, Sample
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
        """Raises OSError for a picture that is no longer what was packed."""
        images, marks = self._files
        rows = self.rows[np.asarray(at, np.int64)]
        batch = images[rows]
        for row, image in zip(rows, batch, strict=True):
            if _mark(image) != marks[row]:
                raise OSError(f"{self.folder} is damaged at picture {row}: remove that folder and pack again")
        return torch.from_numpy(batch)


def _mark(image: np.ndarray) -> int:
    return zlib.crc32(image) | _DONE


def _files(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Each file once, in order, with its size in bytes and when it was changed."""
    stats = ((str(s.path), s.path.stat()) for s in samples)
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats}


def pack(dataset: ReIDDataset, size: tuple[int, int], *, progress: bool = False) -> Path:
    """Pack all pictures of `dataset` at `size` (height, width); returns the folder, in `packs_root()`.

    3 × height × width bytes a picture. One that was interrupted goes on with the pictures that are missing or damaged;
    a finished one is left as it is. Raises OSError for a picture that cannot be read, and for a full disk.
    """
    files = _files(list(chain(*dataset.splits.values())))
    about = {"size": list(size), "files": files}
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    folder = packs_root() / f"{dataset.name}-{size[0]}x{size[1]}-{key}"
    if (folder / "index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    paths, nbytes, step = list(files), 3 * size[0] * size[1], 64
    needed, free = len(paths) * nbytes, shutil.disk_usage(folder).free
    if free < needed and not (folder / "images.u8").exists():
        raise OSError(f"packing needs {needed / 2**30:.1f} GiB in {folder.parent}, {free / 2**30:.1f} GiB are free")
    for name, width in ("images.u8", nbytes), ("crc.u64", 8):
        with (folder / name).open("ab") as file:
            file.truncate(len(paths) * width)  # not yet there is read as 0
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
            there = np.frombuffer(images.read(len(part) * nbytes), np.uint8).reshape(-1, nbytes)
            crc.seek(start * 8)
            marks = np.frombuffer(crc.read(len(part) * 8), np.uint64)
            if [_mark(image) for image in there] == marks.tolist():
                continue
            done = torch.stack(list(pool.map(lambda path: read_image(path, size), part))).numpy()
            images.seek(start * nbytes)
            images.write(done)
            images.flush()
            crc.seek(start * 8)
            crc.write(np.array([_mark(image) for image in done], np.uint64))
            crc.flush()
    with whole_file(folder / "index.json") as part:
        part.write_text(json.dumps(about))
    return folder


@lru_cache(8)
def _index(file: Path) -> tuple[dict[str, list[int]], dict[str, int]]:
    files = json.loads(file.read_text())["files"]
    return files, {path: row for row, path in enumerate(files)}


def find_pack(samples: Sequence[Sample], size: tuple[int, int]) -> Pack | None:
    """The pack that holds every one of `samples` at `size`, as they are now; None where there is none."""
    for file in sorted(packs_root().glob(f"*-{size[0]}x{size[1]}-*/index.json")):
        files, rows = _index(file)
        if all(str(s.path) in files for s in samples):
            with suppress(OSError):  # a file that is gone: whoever reads it says so
                if all(files[path] == now for path, now in _files(samples).items()):
                    return Pack(file.parent, [rows[str(s.path)] for s in samples], size)
    return None


def reading_speed(samples: Sequence[Sample], size: tuple[int, int], *, count: int = 512) -> dict[str, float]:
    """Images per second in one process, in shuffled batches of 64, `decoded` from their files and, if there, `packed`.

    The files are read once before, so this compares decoders, not disks.
    """
    order = np.random.default_rng(0).permutation(len(samples))[:count]
    batches = [order[i : i + 64].tolist() for i in range(0, len(order), 64)]
    found = find_pack(samples, size)
    readers = {"decoded": lambda at: torch.stack([read_image(samples[i].path, size) for i in at])}
    readers |= {"packed": found.read} if found else {}
    speed = {}
    for name, read in readers.items():
        for _ in range(2):
            start = time.perf_counter()
            for batch in batches:
                read(batch)
            speed[name] = len(order) / (time.perf_counter() - start)
    return speed
