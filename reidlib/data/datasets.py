"""Data sets of person re-identification: samples, splits, and one reader a folder layout.

Market-1501: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015. Pids -1 (junk: bad boxes) and 0
(distractors: nobody) of its gallery are kept as they are; it is the evaluator that knows what they mean.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from reidlib.data import synthetic
from reidlib.data.paths import data_path
from reidlib.errors import unknown_name


class Sample(NamedTuple):
    """One picture: its file, the person in it (-1 junk, 0 distractor), and the camera that took it."""

    path: Path
    pid: int
    camid: int


@dataclass(frozen=True)
class ReIDDataset:
    """A data set with its three splits, each a tuple of samples in the order of their file names."""

    name: str
    root: Path
    train: tuple[Sample, ...]
    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]

    @cached_property
    def labels(self) -> dict[int, int]:
        """Training pid → class index, numbered by sorted pid, so that every process agrees."""
        return {pid: label for label, pid in enumerate(sorted({s.pid for s in self.train}))}

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @cached_property
    def num_cameras(self) -> int:
        return len({s.camid for split in (self.train, self.query, self.gallery) for s in split})

    def fingerprint(self) -> str:
        """A hash over every sample's place, pid, camera and file size, by which cached features know their data."""
        digest = hashlib.sha256()
        for split in (self.train, self.query, self.gallery):
            for s in split:
                place = s.path.relative_to(self.root) if s.path.is_relative_to(self.root) else s.path
                digest.update(f"{place}|{s.pid}|{s.camid}|{s.path.stat().st_size}\n".encode())
            digest.update(b"--\n")
        return digest.hexdigest()

    def counts(self) -> list[dict[str, object]]:
        """One row a split: images, people, cameras, distractors, junk. Ready for a table."""
        rows = []
        for split in ("train", "query", "gallery"):
            samples = getattr(self, split)
            pids = Counter(s.pid for s in samples)
            rows.append(
                {
                    "split": split,
                    "images": len(samples),
                    "people": len(pids.keys() - {-1, 0}),
                    "cameras": len({s.camid for s in samples}),
                    "distractors": pids[0],
                    "junk": pids[-1],
                }
            )
        return rows


_MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)s\d+_\d+_\d+")
_MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def read_market1501(name: str, root: Path, where: str) -> ReIDDataset:
    """Read a folder tree as Market-1501's authors publish it. `where` names the line that led here.

    Raises FileNotFoundError where the folders are missing (they are looked for one level up and down as well), and
    ValueError for names that do not parse, and for a split that holds no image.
    """
    root = _find_root(root, _MARKET_FOLDERS, name, where)
    splits = [_market_folder(root / folder, name) for folder in _MARKET_FOLDERS]
    train = tuple(s for s in splits[0] if s.pid > 0)
    return ReIDDataset(name, root, train, *splits[1:])


def _market_folder(folder: Path, name: str) -> tuple[Sample, ...]:
    samples, bad = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        match = _MARKET_NAME.match(path.name)
        if match:
            samples.append(Sample(path, int(match[1]), int(match[2])))
        else:
            bad.append(path.name)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"{name}: {folder} holds names not of the form 0002_c1s1_000451_03.jpg: {', '.join(bad[:3])}{more}"
        )
    if not samples:
        raise ValueError(f"{name}: {folder} holds no .jpg or .png image")
    return tuple(samples)


def _find_root(root: Path, folders: tuple[str, ...], name: str, where: str) -> Path:
    """The folder that holds all of `folders`: `root`, one below it, or the one above it."""

    def holds(folder: Path) -> bool:
        return all((folder / f).is_dir() for f in folders)

    below = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    found = [p for p in (root, *below, root.parent) if holds(p)]
    if found:
        return found[0]
    if not root.exists():
        seen = "that folder does not exist"
    else:
        seen = "found " + (", ".join(p.name for p in sorted(root.iterdir())[:6]) or "an empty folder")
    raise FileNotFoundError(f"{name}: looked in {root} ({where}) for {', '.join(folders)}; {seen}")


_READERS: dict[str, Callable[[str, Path, str], ReIDDataset]] = {"market1501": read_market1501}


def list_datasets() -> list[str]:
    """Every name that `load_dataset` knows. Synthetic ones take a size: `synthetic-tiny`."""
    return sorted([*_READERS, *(f"{s}-{size}" for s in synthetic.SETTINGS for size in synthetic.SIZES)])


def load_dataset(name: str, *, image_size: tuple[int, int] = (128, 64)) -> ReIDDataset:
    """Read data set `name` from where data_paths.yaml says it lies.

    `synthetic` and `synthetic_b`, with a size behind a dash (`synthetic-tiny`; no dash: small), are drawn on first use
    at `image_size` (height, width), which other data sets ignore: their pictures are resized when they are loaded.
    Raises ValueError for an unknown name, FileNotFoundError where the files are not.
    """
    setting, _, size = name.partition("-")
    if setting in synthetic.SETTINGS:
        size = size or "small"
        if size not in synthetic.SIZES:
            raise unknown_name("size of the synthetic data set", size, synthetic.SIZES)
        folder, where = data_path(setting)
        root = synthetic.write_synthetic(folder, setting, size, image_size=image_size)
        return read_market1501(f"{setting}-{size}", root, where)
    if name not in _READERS:
        raise unknown_name("data set", name, list_datasets())
    return _READERS[name](name, *data_path(name))
