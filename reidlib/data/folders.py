"""Pictures in one folder a class, laid out as ImageNet usually is: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`.

ImageNet: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. Any other set of classes
may lie in the same way. Classes are numbered in the order of their folders' names, as everywhere.
"""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reidlib.data.datasets import load_dataset
from reidlib.data.drawn.writer import SETTINGS, SIZES
from reidlib.data.readers import PICTURES, find_root, some
from reidlib.data.samples import Sample
from reidlib.errors import unknown_name
from reidlib.files import whole_folder
from reidlib.paths import data_names, data_path

_HELD_OUT = 4  # of a drawn person's pictures every fourth is for validation


@dataclass(frozen=True)
class ClassDataset:
    """Pictures of classes: each Sample's pid is the index of its class in `classes`, its camid 0."""

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
        """None: nobody says which camera took a picture."""
        return {}

    def fingerprint(self) -> str:
        """A hash over every picture's place and class; files are not opened, for there may be a million."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split in (self.train, self.val):
            for s in split:
                digest.update(f"{self.classes[s.pid]}/{s.path.name}\n".encode())
            digest.update(b"--\n")
        return digest.hexdigest()

    def counts(self) -> list[dict[str, object]]:
        """One row a split: pictures, classes, and pictures of the smallest and the largest class."""
        rows = []
        for split in ("train", "val"):
            sizes = [0] * len(self.classes)
            for s in getattr(self, split):
                sizes[s.pid] += 1
            row = {"split": split, "pictures": sum(sizes), "classes": len(sizes)}
            rows.append(row | {"fewest": min(sizes), "most": max(sizes)})
        return rows


def load_classes(name: str, *, image_size: tuple[int, int] = (128, 64)) -> ClassDataset:
    """Read the set `name`: a line of data_paths.yaml, or the folder itself.

    `synthetic` and `synthetic_b`, with a size behind a dash as in `load_dataset`, are drawn on first use at
    `image_size` (height, width): the people of the training set are the classes. Raises ValueError for a name that is
    nothing here, and for folders that are not one a class or not the same in train and val; FileNotFoundError where
    there are none.
    """
    setting, _, size = name.partition("-")
    if setting in SETTINGS:
        if size and size not in SIZES:
            raise unknown_name("size of the synthetic data set", size, SIZES)
        return read_classes(name, _drawn(name, image_size), "drawn here")
    if name in data_names():
        return read_classes(name, *data_path(name))
    if Path(name).expanduser().is_dir():
        return read_classes(Path(name).resolve().name, Path(name).expanduser().resolve(), "as named")
    raise unknown_name("set of classes (and no folder)", name, {*data_names(), *SETTINGS})


def read_classes(name: str, root: Path, where: str) -> ClassDataset:
    """The set that lies in `root`, which `where` names; see `load_classes`."""
    root, _, notes = find_root(root, {"": ("train", "val")}, name, where)
    train, val = (dict(_split(root / split, name)) for split in ("train", "val"))
    classes = tuple(sorted(train))
    lone = {"train": sorted(train.keys() - val), "val": sorted(val.keys() - train)}
    if any(lone.values()):
        said = " and ".join(f"{some(names)} in {split} only" for split, names in lone.items() if names)
        raise ValueError(f"{name}: the classes of {root / 'train'} and {root / 'val'} differ: {said}")
    if len(classes) < 2:
        raise ValueError(f"{name}: {root / 'train'} holds one class, {classes[0]}: two are needed to tell apart")
    samples = (tuple(Sample(p, i, 0) for i, c in enumerate(classes) for p in found[c]) for found in (train, val))
    return ClassDataset(name, root, classes, *samples, tuple(notes))


def _split(folder: Path, name: str) -> Iterator[tuple[str, list[Path]]]:
    """Each class of a split, with its pictures in the order of their names."""
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    classes = [entry for entry, is_folder in found if is_folder]
    if not classes:
        loose = sum(entry.lower().endswith(PICTURES) for entry, _ in found)
        raise ValueError(f"{name}: {folder} holds {loose} pictures and no folder: sort them into one folder a class")
    empty = []
    for class_name in classes:
        inside = sorted(os.listdir(folder / class_name))
        pictures = [folder / class_name / file for file in inside if file.lower().endswith(PICTURES)]
        if not pictures:
            below = next((file for file in inside if (folder / class_name / file).is_dir()), "")
            empty.append(class_name + (f" (but the folder {below})" if below else ""))
        yield class_name, pictures
    if empty:
        raise ValueError(f"{name}: no .jpeg, .jpg or .png picture lies directly in {folder}/: {some(empty)}")


def _drawn(name: str, image_size: tuple[int, int]) -> Path:
    """The training people of a synthetic data set, laid out as classes beside it; made once, whole or not at all."""
    data = load_dataset(name, image_size=image_size)
    folder = data.root.with_name(f"{data.root.name}-classes")
    if folder.is_dir():
        return folder
    by_person = defaultdict(list)
    for s in data.train:
        by_person[s.pid].append(s.path)
    with whole_folder(folder) as part:
        for pid, paths in by_person.items():
            for at, path in enumerate(paths):
                place = part / ("train" if (at + 1) % _HELD_OUT else "val") / f"{pid:04}" / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(path, place)
    return folder


def _link(path: Path, place: Path) -> None:
    with suppress(OSError):  # a file system without hard links
        return os.link(path, place)
    shutil.copyfile(path, place)
