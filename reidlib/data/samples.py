"""What a data set is, whatever layout it came in: samples in three splits, and several data sets joined into one."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "query", "gallery")
COMBINED = "-combineall"  # behind the name of a training set that holds query and gallery as well


class Sample(NamedTuple):
    """One picture: its file, the person in it (-1 junk, 0 distractor), and the camera that took it."""

    path: Path
    pid: int
    camid: int


def file_state(path: str | Path) -> tuple[int, int, int]:
    """Size in bytes, modification time in nanoseconds, and inode: together they change with every replaced file."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@dataclass(frozen=True)
class ReIDDataset:
    """A data set with its three splits, each a tuple of samples in the order of their file names or of their list.

    `version` tells editions apart that share a name. `notes` say what a user should know about how it was found.
    `people` and `cameras` name pids and camids where their numbers were made here. `single_shot` marks CUHK03's first
    protocol: one gallery picture a person. `tested_on` is whose query and gallery these are, where they are another's.
    """

    name: str
    root: Path
    train: tuple[Sample, ...]
    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    version: str = ""
    notes: tuple[str, ...] = ()
    people: Mapping[int, str] = field(default_factory=dict)
    cameras: Mapping[int, str] = field(default_factory=dict)
    single_shot: bool = False
    tested_on: str = ""

    @cached_property
    def labels(self) -> dict[int, int]:
        """Training pid → class index, numbered by sorted pid, so that every process agrees."""
        return {pid: label for label, pid in enumerate(sorted({s.pid for s in self.train}))}

    @cached_property
    def camera_labels(self) -> dict[int, int]:
        """Training camid → what a model that embeds the camera calls it: 0, 1, … (camid - 1 in the published sets)."""
        return {camid: label for label, camid in enumerate(sorted({s.camid for s in self.train}))}

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @cached_property
    def num_cameras(self) -> int:
        return len({s.camid for split in self.splits.values() for s in split})

    @property
    def splits(self) -> dict[str, tuple[Sample, ...]]:
        return {split: getattr(self, split) for split in SPLITS}

    def place(self, sample: Sample) -> str:
        """Where a sample lies, as seen from the data set: the same on every computer."""
        return sample.path.as_posix().removeprefix(f"{self.root.as_posix()}/")

    def fingerprint(self) -> str:
        """A hash over every sample's place, pid, camera and file size, by which cached features know their data."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            for s in split:
                digest.update(f"{self.place(s)}|{s.pid}|{s.camid}|{s.path.stat().st_size}\n".encode())
            digest.update(b"--\n")
        return digest.hexdigest()

    def stamp(self) -> dict[str, object]:
        """What a result says about the data behind it: version, fingerprint, and how many images each split has."""
        images = {split: len(samples) for split, samples in self.splits.items()}
        return {"version": self.version, "data": self.fingerprint(), "images": images}

    def counts(self) -> list[dict[str, object]]:
        """One row a split: images, people, cameras, distractors, junk. Ready for a table."""
        rows = []
        for split, samples in self.splits.items():
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


def merge(
    datasets: Sequence[ReIDDataset], *, combineall: bool = False, tested_on: ReIDDataset | None = None
) -> ReIDDataset:
    """One data set of several: all of their training sets, and the query and gallery of `tested_on` (default: of all).

    `combineall` trains on query and gallery as well, without distractors and junk; then only another data set's
    query and gallery say anything. Pids and camids of each data set follow those of the one before, whatever split they
    are in, and `people` and `cameras` hold where they come from ("dukemtmcreid:5"). Raises ValueError for a data set
    that is given twice.
    """
    names = [d.name for d in datasets]
    if len(set(names)) < len(names):
        raise ValueError(f"a data set is merged with itself: {', '.join(names)}")
    if len(datasets) == 1 and not combineall and tested_on is None:
        return datasets[0]
    extra = [tested_on] if tested_on is not None and tested_on.name not in names else []
    moved: dict[str, ReIDDataset] = {}
    next_pid = next_camid = 0
    for data in (*datasets, *extra):
        splits = {
            split: tuple(Sample(s.path, s.pid + next_pid * (s.pid > 0), s.camid + next_camid) for s in samples)
            for split, samples in data.splits.items()
        }
        every = list(chain(*data.splits.values()))
        pids, camids = {s.pid for s in every if s.pid > 0}, {s.camid for s in every}
        people = {pid + next_pid: f"{data.name}:{data.people.get(pid, pid)}" for pid in pids}
        cameras = {camid + next_camid: f"{data.name}:{data.cameras.get(camid, camid)}" for camid in camids}
        moved[data.name] = replace(data, **splits, people=people, cameras=cameras)
        next_pid, next_camid = next_pid + max(pids, default=0), next_camid + max(camids, default=0)
    parts = [moved[name] for name in names]
    tests = parts if tested_on is None else [moved[tested_on.name]]
    train = [s for d in parts for split in (d.splits.values() if combineall else (d.train,)) for s in split]
    return ReIDDataset(
        name="+".join(names) + COMBINED * combineall,
        root=Path(os.path.commonpath([d.root for d in moved.values()])),
        train=tuple(dict.fromkeys(s for s in train if s.pid > 0)),
        query=tuple(s for d in tests for s in d.query),
        gallery=tuple(s for d in tests for s in d.gallery),
        version="+".join(d.version or d.name for d in parts),
        notes=tuple(f"{d.name}: {note}" for d in moved.values() for note in d.notes),
        people={pid: name for d in moved.values() for pid, name in d.people.items()},
        cameras={camid: name for d in moved.values() for camid, name in d.cameras.items()},
        single_shot=any(d.single_shot for d in tests),
        tested_on="" if tested_on is None else tested_on.name,
    )
