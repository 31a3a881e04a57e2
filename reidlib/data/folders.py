"""Images in one folder a class, laid out as ImageNet usually is: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`.

ImageNet: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. Any other set of classes
may lie in the same way. Classes are numbered in the order of their folders' names.
"""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reidlib.data.datasets import load_dataset
from reidlib.data.drawn.writer import SETTINGS
from reidlib.data.readers import find_root, image_files, some
from reidlib.data.samples import Sample
from reidlib.errors import unknown_name
from reidlib.files import whole_folder
from reidlib.paths import data_names, data_path

_HELD_OUT = 4  # of a drawn person's images every fourth is for validation


@dataclass(frozen=True)
class ClassDataset:
    """Images of classes: each Sample's pid is the index of its class in `classes`, its camid 0."""

    name: str
    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def camera_labels(self) -> dict[int, int]:
        """Empty: which camera took an image is not known."""
        return {}

    def fingerprint(self) -> str:
        """A hash over the name and the class of every image; files are not opened, for there may be a million."""
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for split in (self.train, self.val):
            for s in split:
                digest.update(f"{self.classes[s.pid]}/{s.path.name}\n".encode("utf-8", "surrogateescape"))
            digest.update(b"--\n")
        return digest.hexdigest()

    def stamp(self) -> dict[str, object]:
        """What a result says about the data behind it: fingerprint, and how many images each split has."""
        return {"data": self.fingerprint(), "images": {"train": len(self.train), "val": len(self.val)}}

    def counts(self) -> list[dict[str, object]]:
        """One row a split: images, classes, and images of the smallest and the largest class."""
        rows: list[dict[str, object]] = []
        for split in ("train", "val"):
            sizes = [0] * len(self.classes)
            for s in getattr(self, split):
                sizes[s.pid] += 1
            row: dict[str, object] = {"split": split, "images": sum(sizes), "classes": len(sizes)}
            rows.append(row | {"fewest": min(sizes), "most": max(sizes)})
        return rows


def load_classes(name: str) -> ClassDataset:
    """Read a dataset of classes.

    Args:
        name: a line of data_paths.yaml, or a folder. "synthetic" and others, with a size as in `load_dataset`,
            are drawn on first use: the people of the training set are the classes.

    Raises:
        ValueError: for an unknown name, and for folders that are not one a class or not the same in train and val.
        FileNotFoundError: where there are none.
    """
    if name.partition("-")[0] in SETTINGS:
        return read_classes(name, _drawn(name), "drawn here")
    if name in data_names():
        return read_classes(name, *data_path(name))
    if Path(name).expanduser().is_dir():
        return read_classes(Path(name).resolve().name, Path(name).expanduser().resolve(), "as named")
    raise unknown_name("dataset of classes (and no folder)", name, {*data_names(), *SETTINGS})


def read_classes(name: str, root: Path, where: str) -> ClassDataset:
    """The dataset that lies in `root`, which `where` names; see `load_classes`."""
    root, _, notes = find_root(root, {"": ("train", "val")}, name, where)
    train, val = (dict(_split(root / split, name)) for split in ("train", "val"))
    classes = tuple(sorted(train))
    lone = {"train": sorted(train.keys() - val), "val": sorted(val.keys() - train)}
    if any(lone.values()):
        differ = " and ".join(f"{some(names)} in {split} only" for split, names in lone.items() if names)
        raise ValueError(f"{name}: the classes of {root / 'train'} and {root / 'val'} differ: {differ}")
    if len(classes) < 2:
        raise ValueError(f"{name}: {root / 'train'} holds one class, {classes[0]}: two are needed to tell apart")
    in_train, in_val = (
        tuple(Sample(p, i, 0) for i, c in enumerate(classes) for p in found[c]) for found in (train, val)
    )
    return ClassDataset(name, root, classes, in_train, in_val, tuple(notes))


def _split(folder: Path, name: str) -> Iterator[tuple[str, list[Path]]]:
    """Each class of a split, with its images in the order of their names."""
    with os.scandir(folder) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not classes:
        loose = len(image_files(folder))
        raise ValueError(f"{name}: {folder} holds {loose} images and no folder: sort them into one folder a class")
    empty = []
    for class_name in classes:
        images = [folder / class_name / file for file in image_files(folder / class_name)]
        if not images:
            inner = next((p.name for p in sorted((folder / class_name).iterdir()) if p.is_dir()), "")
            empty.append(class_name + (f" (but the folder {inner})" if inner else ""))
        yield class_name, images
    if empty:
        raise ValueError(f"{name}: no .jpeg, .jpg or .png image lies directly in {folder}/: {some(empty)}")


def _drawn(name: str) -> Path:
    """The training people of a drawn dataset, laid out as classes beside it; made once, whole or not at all."""
    data = load_dataset(name)
    folder = data.root.with_name(f"{data.root.name}-classes")
    if folder.is_dir():
        return folder
    by_person = defaultdict(list)
    for s in data.train:
        by_person[s.pid].append(s.path)
    with whole_folder(folder) as part:
        for pid, paths in by_person.items():
            for at, path in enumerate(paths):
                copy = part / ("train" if (at + 1) % _HELD_OUT else "val") / f"{pid:04}" / path.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(path, copy)
    return folder


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, copy)
