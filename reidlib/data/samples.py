"""What a dataset is, whatever layout it came in: samples in three splits, and several datasets joined into one."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "query", "gallery")
COMBINED = "-combineall"  # behind the name of a training set that holds query and gallery as well
_HASHED = 2**28  # bytes up to which a fingerprint reads the files themselves


STANDARD = (("pid", "camid"),)
# Which gallery images are left out for a query: those that agree with it in all ids of one tuple; "!": that differ.
PROTOCOLS = {
    "standard": STANDARD,
    "cloth-changing": (*STANDARD, ("pid", "clothes")),
    "same clothes": (*STANDARD, ("pid", "!clothes")),
    "same track left out": (("pid", "track"),),
    "nothing left out": (),
}


class Sample(NamedTuple):
    """One image, or one tracklet: its file, the person in it (-1 junk, 0 distractor or unknown), the camera (0
    unknown), and, where they are known, its tracklet (a name that is unique within its camera), time and clothes (a
    name that is unique within its person), as they were written.

    `frames`: all images of a tracklet that is tested as one; `path` is the first of them.
    """

    path: Path
    pid: int
    camid: int
    track: str = ""
    time: str = ""
    clothes: str = ""
    frames: tuple[Path, ...] = ()


def is_left_out(query: Sample, item: Sample, exclude: Sequence[Sequence[str]]) -> bool:
    """Whether `item` is left out of the gallery for `query`; see `PROTOCOLS`. Unknown clothes neither agree nor differ.

    The evaluator has the same rule over columns of numbers, `reidlib.evaluation.spaces.Ids.kept`.
    """
    return any(all(_holds(name, query, item) for name in rule) for rule in exclude)


def _holds(name: str, query: Sample, item: Sample) -> bool:
    a, b = (_id_of(sample, name.removeprefix("!")) for sample in (query, item))
    return (a != b if name[0] == "!" else a == b) and a is not None and b is not None


def _id_of(sample: Sample, name: str) -> object:
    """An id of a sample, None where it is unknown."""
    if name in ("pid", "camid"):
        return getattr(sample, name)
    if not getattr(sample, name):
        return None
    # Clothes are numbered within a person, tracklets within a camera.
    return getattr(sample, name), (sample.pid if name == "clothes" else sample.camid)


def frames_of(samples: Sequence[Sample]) -> tuple[Sequence[Sample], list[str]]:
    """Every image of samples, and for each the position of its sample, as text; [] where no sample is a tracklet.

    `average_tracks` of their features then gives one row a sample, in their order.
    """
    if not any(s.frames for s in samples):
        return samples, []
    numbered = [(n, s, path) for n, s in enumerate(samples) for path in s.frames or (s.path,)]
    return [s._replace(path=path, frames=()) for _, s, path in numbered], [str(n) for n, _, _ in numbered]


def file_state(path: str | Path) -> tuple[int, int, int]:
    """Size in bytes, modification time in nanoseconds, and inode: together they change with every replaced file."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _content(path: Path) -> str:
    """A hash of the file's bytes, read once in a process unless the file changes; "" where it cannot be read."""
    try:
        return _hash(path, os.stat(path).st_ctime_ns, *file_state(path))
    except OSError:
        return ""


@lru_cache(2**17)
def _hash(path: Path, *state: int) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ReIDDataset:
    """A dataset with its three splits, each a tuple of samples in the order of their file names or of their list.

    Attributes:
        version: tells editions apart that share a name.
        notes: what a user should know about how it was found.
        people, cameras: names of pids and camids whose numbers were made here.
        exclude: the protocol: which gallery images are left out for a query, see `PROTOCOLS`.
        single_shot: CUHK03's first protocol, with one gallery image a person.
        tested_on: the dataset whose query and gallery these are, where they are another's.
        labelled: people of the training set whose pids may be learned from, where the rest is to be clustered.
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
    exclude: tuple[tuple[str, ...], ...] = STANDARD
    single_shot: bool = False
    tested_on: str = ""
    labelled: frozenset[int] = frozenset()

    @cached_property
    def labels(self) -> dict[int, int]:
        """Training pid → class index, numbered by sorted pid, so that every process agrees."""
        return {pid: label for label, pid in enumerate(sorted({s.pid for s in self.train}))}

    @cached_property
    def camera_labels(self) -> dict[int, int]:
        """Training camid → camera label 0, 1, … (camid - 1 in the published datasets)."""
        return {camid: label for label, camid in enumerate(sorted({s.camid for s in self.train}))}

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @cached_property
    def num_cameras(self) -> int:
        return len({s.camid for s in self.samples})

    @property
    def splits(self) -> dict[str, tuple[Sample, ...]]:
        return {split: getattr(self, split) for split in SPLITS}

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those of all splits."""
        return self.train + self.query + self.gallery

    @property
    def protocol_name(self) -> str:
        """The protocol in words."""
        return next((name for name, rules in PROTOCOLS.items() if rules == self.exclude), str(self.exclude))

    def protocol(
        self, query: Sequence[Sample] | None = None, gallery: Sequence[Sample] | None = None
    ) -> dict[str, Any]:
        """What `evaluate_ranking` is to be told of this dataset: nothing for the standard protocol, else `exclude`, and
        the `other_ids` that it names, as numbers.

        Args:
            query, gallery: Some of the dataset's samples; default: all.
        """
        if self.exclude == STANDARD:
            return {}
        sides = (self.query if query is None else query, self.gallery if gallery is None else gallery)
        names = sorted({name.removeprefix("!") for rule in self.exclude for name in rule} - {"pid", "camid"})
        numbers = {name: self._numbers(name) for name in names}
        columns: dict[str, Any] = {
            name: tuple(np.array([numbers[name][_id_of(s, name)] for s in side], np.int64) for side in sides)
            for name in names
        }
        return {"exclude": self.exclude, "other_ids": columns}

    def _numbers(self, name: str) -> dict[object, int]:
        """Id of that name → number, over query and gallery, so that all processes agree; unknown is -1."""
        found = dict.fromkeys(_id_of(s, name) for s in (*self.query, *self.gallery))
        found.pop(None, None)
        return {value: number for number, value in enumerate(found)} | {None: -1}

    def relative(self, sample: Sample) -> str:
        """The sample's path from the dataset's root: the same on every computer."""
        return sample.path.as_posix().removeprefix(f"{self.root.as_posix()}/")

    def fingerprint(self, *, files: bool = True) -> str:
        """A hash over every sample's relative path, pid, camid and file size, by which results know their data.

        A file that is not there counts as one of no size.

        Args:
            files: include the files' bytes, or, where they are more than 256 MiB, modification time and inode, which
                a copy of the dataset does not share. Without, it is the same on every computer, but replaced files of
                equal size go unnoticed.
        """
        states: dict[Path, tuple[int, ...]] = {s.path: (-1,) for s in self.samples}
        for path in states:
            with suppress(OSError):
                states[path] = file_state(path)
        marks: dict[Path, object] = {path: state[0] for path, state in states.items()}
        if files and sum(state[0] for state in states.values()) > _HASHED:
            marks = dict(states)
        elif files:
            with ThreadPoolExecutor(4) as pool:
                marks = dict(zip(states, pool.map(_content, states), strict=True))
        digest = hashlib.sha256()
        for split in self.splits.values():
            for s in split:
                more = f"|{s.clothes}" * bool(s.clothes) + f"|{len(s.frames)}" * bool(s.frames)
                line = f"{self.relative(s)}|{s.pid}|{s.camid}|{marks[s.path]}{more}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
            digest.update(b"--\n")
        return digest.hexdigest()

    def stamp(self) -> dict[str, object]:
        """What a result says about the data behind it: version, fingerprint, images of each split, protocol."""
        images = {split: len(samples) for split, samples in self.splits.items()}
        about: dict[str, object] = {"version": self.version, "data": self.fingerprint(), "images": images}
        return about | {"protocol": self.protocol_name}

    def counts(self) -> list[dict[str, object]]:
        """One row a split: images, people, cameras, distractors, junk. Ready for a table."""
        rows = []
        for split, samples in self.splits.items():
            pids = Counter(s.pid for s in samples)
            row = {"split": split, "images": len(samples), "people": len(pids.keys() - {-1, 0})}
            row |= {"cameras": len({s.camid for s in samples}), "distractors": pids[0], "junk": pids[-1]}
            rows.append(row)
        return rows


def merge(
    datasets: Sequence[ReIDDataset], *, combineall: bool = False, tested_on: ReIDDataset | None = None
) -> ReIDDataset:
    """One dataset of several. Pids and camids of each follow those of the one before, whatever split they are in.

    Args:
        datasets: their training sets are joined.
        combineall: train on their query and gallery as well, without distractors and junk; then only another dataset's
            query and gallery say anything.
        tested_on: whose query and gallery to take (default: those of all `datasets`).

    Returns:
        The joined dataset; its `people` and `cameras` say where they come from ("dukemtmcreid:5").

    Raises:
        ValueError: for a dataset that is given twice.
    """
    names = [d.name for d in datasets]
    if len(set(names)) < len(names):
        raise ValueError(f"a dataset is merged with itself: {', '.join(names)}")
    if len(datasets) == 1 and not combineall and tested_on is None:
        return datasets[0]
    extra = [tested_on] if tested_on is not None and tested_on.name not in names else []
    moved: dict[str, ReIDDataset] = {}
    next_pid = next_camid = 0
    for data in (*datasets, *extra):
        splits = {
            split: tuple(s._replace(pid=s.pid + next_pid * (s.pid > 0), camid=s.camid + next_camid) for s in samples)
            for split, samples in data.splits.items()
        }
        pids, camids = {s.pid for s in data.samples if s.pid > 0}, {s.camid for s in data.samples}
        people = {pid + next_pid: f"{data.name}:{data.people.get(pid, pid)}" for pid in pids}
        cameras = {camid + next_camid: f"{data.name}:{data.cameras.get(camid, camid)}" for camid in camids}
        moved[data.name] = replace(data, **splits, people=people, cameras=cameras)
        next_pid, next_camid = next_pid + max(pids, default=0), next_camid + max(camids, default=0)
    parts = [moved[name] for name in names]
    tests = parts if tested_on is None else [moved[tested_on.name]]
    whole = {d.name for d in parts if d.train and all(s.pid == 0 for s in d.train)}  # no labels: nobody is left out
    train = [s for d in parts for s in (d.samples if combineall else d.train) if s.pid > 0 or d.name in whole]
    return ReIDDataset(
        name="+".join(names) + COMBINED * combineall,
        root=Path(os.path.commonpath([d.root for d in moved.values()])),
        train=tuple(dict.fromkeys(train)),
        query=tuple(s for d in tests for s in d.query),
        gallery=tuple(s for d in tests for s in d.gallery),
        version="+".join(d.version or d.name for d in parts),
        notes=tuple(f"{d.name}: {note}" for d in moved.values() for note in d.notes),
        people=dict(chain(*(d.people.items() for d in moved.values()))),
        cameras=dict(chain(*(d.cameras.items() for d in moved.values()))),
        exclude=_common_protocol(tests),
        single_shot=any(d.single_shot for d in tests),
        tested_on="" if tested_on is None else tested_on.name,
    )


def _common_protocol(datasets: Sequence[ReIDDataset]) -> tuple[tuple[str, ...], ...]:
    """Of the datasets whose query and gallery are joined. ValueError where they have several."""
    if len(found := dict.fromkeys(d.exclude for d in datasets)) > 1:
        several = ", ".join(f"{d.name}: {d.protocol_name}" for d in datasets)
        raise ValueError(f"query and gallery of several protocols cannot be joined ({several}): name one in tested_on")
    return next(iter(found))
