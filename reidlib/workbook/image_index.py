"""An index of a folder of images on disk: features in safetensors files, and a manifest that says whose they are. ::

    index.json                        what the features depend on: weights, input size, folder
    manifest.sqlite                   a row a file: its state, the hash of its bytes, where its feature is or why
                                      it has none
    feats-000001.safetensors, ...     `feats` (n, D) float32 as the network gives them, and their squared norms

A features file is written whole before the manifest speaks of it, in one transaction: a kill at any moment costs what
was extracted since the last file. Only files that are new or changed (size, modification time, inode; then bytes) are
extracted. Features are read from the files as they are searched: memory stays fixed but for 24 bytes an image.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reidlib.data.own_images import fields_of_name, walk_folder
from reidlib.data.samples import file_state
from reidlib.evaluation import Features, average_tracks, rank_gallery
from reidlib.evaluation.kernels import squares
from reidlib.evaluation.spaces import ORDINARY
from reidlib.files import clear_parts, whole_file
from reidlib.paths import slug

if TYPE_CHECKING:
    from reidlib.workbook.extractor import Extracted, Extractor

KIND = {"kind": "reidlib index", "format": 1}
ROWS = 16384  # of a features file
SECONDS = 60.0  # after which a features file is written even if it has fewer rows: what a kill may cost
_TABLE = """
CREATE TABLE IF NOT EXISTS images (
    path BLOB PRIMARY KEY, state TEXT, digest TEXT, file INTEGER, row INTEGER, note TEXT, seen INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_digest ON images (digest);
CREATE INDEX IF NOT EXISTS by_feature ON images (file, row);
"""
_INSERT = "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)"
# A copy whose original is gone stands for itself.
_PROMOTE = """
UPDATE images SET note = '' WHERE row IS NOT NULL AND note != '' AND NOT EXISTS (
    SELECT 1 FROM images AS other WHERE other.file = images.file AND other.row = images.row AND other.note = '')
"""


@dataclass(frozen=True)
class Update:
    """What an update of an index found.

    Attributes:
        images: Files whose features are in the index.
        extracted: Images that the network saw now.
        removed: Files that are gone.
        skipped: Files without a feature of their own; `ImageIndex.skipped` names them.
    """

    images: int
    extracted: int
    removed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.images} images ({self.extracted} new), {self.skipped} files skipped, {self.removed} gone"


class Hit(NamedTuple):
    """An image that was found, and its cosine similarity."""

    path: str
    similarity: float


class ImageIndex:
    """The features of all images below a folder, kept on disk.

    Args:
        extractor: Whose features they are.
        folder: The images.
        path: Where the index lies; default: in the features folder of the extractor's run.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: `path` holds something else or the index of other weights, or there is neither path nor run.
    """

    def __init__(self, extractor: "Extractor", folder: str | Path, path: str | Path = "") -> None:
        self.extractor, self.folder = extractor, Path(folder).expanduser().absolute()
        next(walk_folder(self.folder), None)  # raises where there is no folder
        if not str(path):
            if extractor.run is None:
                raise ValueError("an extractor without a run has no place for an index: name its `path`")
            digest = blake2b(os.fsencode(self.folder), digest_size=4).hexdigest()
            path = extractor.run.out / "features" / f"{slug(self.folder.name)}-{digest}.index"
        self.path = Path(path).expanduser().absolute()
        about = self.path / "index.json"
        wanted = KIND | extractor.stamp | {"folder": os.fsencode(self.folder).decode(errors="backslashreplace")}
        if about.is_file():
            try:
                found = json.loads(about.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{about} is damaged ({error}): remove {self.path}, it will be made anew") from error
            if differs := [key for key in wanted if found.get(key) != wanted[key]]:
                raise ValueError(f"the index {self.path} is of another {' and '.join(differs)}: choose another path")
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} exists and is no index: choose another path")
        else:
            with whole_file(about) as part:
                part.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        self._feats: Tensor | None = None
        with self._manifest() as manifest:
            manifest.executescript(_TABLE)

    @contextmanager
    def _manifest(self) -> Iterator[sqlite3.Connection]:
        file = self.path / "manifest.sqlite"
        try:
            with closing(sqlite3.connect(file, timeout=60)) as manifest:
                yield manifest
        except sqlite3.DatabaseError as error:
            raise OSError(f"{file} cannot be used ({error}): remove {self.path}, it will be made anew") from error

    def _file(self, number: int) -> Path:
        return self.path / f"feats-{number:06}.safetensors"

    # Update

    def update(self, *, progress: bool = False) -> Update:
        """Extract what is new or changed, and forget what is gone.

        Raises:
            OSError: Another process is updating the index, or the folder is empty all of a sudden.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0), self._manifest() as manifest:
                clear_parts(self.path)
                return self._update(manifest, progress)
        except Timeout as error:
            raise OSError(f"the index {self.path} is being updated by another process: wait for it") from error
        finally:
            self.__dict__.pop("_layout", None)
            self._feats = None

    def _update(self, manifest: sqlite3.Connection, progress: bool) -> Update:
        with manifest:
            for (number,) in manifest.execute("SELECT DISTINCT file FROM images WHERE file IS NOT NULL").fetchall():
                if self._count(number) is None:  # lost or damaged: extracted again
                    manifest.execute("DELETE FROM images WHERE file = ?", (number,))
        newest = manifest.execute("SELECT max(seen) FROM images").fetchone()[0]
        writer = _Writer(self, manifest, (newest or 0) + 1)
        for found in self.extractor.stream(writer.changed(), is_copy=writer.is_copy, progress=progress):
            writer.add(found)
        writer.write()
        if newest and not writer.files:
            raise OSError(f"{self.folder} holds no file any more: the index {self.path} is left as it was")
        with manifest:
            removed = manifest.execute("DELETE FROM images WHERE seen < ?", (writer.seen,)).rowcount
            manifest.execute(_PROMOTE)
        used = {number for (number,) in manifest.execute("SELECT DISTINCT file FROM images")}
        for file in self.path.glob("feats-*.safetensors"):
            if int(file.stem[6:]) not in used:
                file.unlink()
        images, files = manifest.execute(
            "SELECT count(CASE WHEN note = '' THEN 1 END), count(*) FROM images"
        ).fetchone()
        return Update(images, writer.extracted, removed, files - images)

    def _count(self, number: int) -> int | None:
        """Rows of a features file; None if it is not there or damaged."""
        try:
            with safe_open(self._file(number), "pt") as file:
                return file.get_slice("feats").get_shape()[0]
        except (OSError, SafetensorError):
            return None

    def skipped(self) -> Iterator[tuple[str, str]]:
        """Path and reason of each file that has no feature of its own: no image, damaged, too small, or a copy."""
        with self._manifest() as manifest:
            for path, note in manifest.execute("SELECT path, note FROM images WHERE note != '' ORDER BY path"):
                yield os.fsdecode(path), note

    # Read

    @cached_property
    def _layout(self) -> tuple[list[int], Tensor, Tensor, Tensor | None]:
        """Numbers of the features files; where each begins, and the end; 0 for rows in use, else -1; squared norms."""
        with self._manifest() as manifest:
            numbers = [n for (n,) in manifest.execute("SELECT DISTINCT file FROM images WHERE note = '' ORDER BY file")]
            counts = [self._count(number) for number in numbers]
            if None in counts:
                raise OSError(f"{self._file(numbers[counts.index(None)])} is lost or damaged: update the index")
            starts = torch.tensor([0, *counts]).cumsum(0)
            used = torch.full((int(starts[-1]),), -1)
            for number, start in zip(numbers, starts.tolist(), strict=False):
                rows = manifest.execute("SELECT row FROM images WHERE file = ? AND note = ''", (number,))
                used[start + torch.tensor([row for (row,) in rows], dtype=torch.int64)] = 0
        norms = [self._tensor(number, "squares") for number in numbers]
        joined = torch.cat(norms) if norms else torch.empty(0, dtype=torch.float64)
        ordinary = bool(((joined > ORDINARY[0] ** 2) & (joined < ORDINARY[1] ** 2)).all())
        return numbers, starts, used, joined if ordinary else None

    def _tensor(self, number: int, name: str) -> Tensor:
        with safe_open(self._file(number), "pt") as file:
            return file.get_tensor(name)

    def __len__(self) -> int:
        return int((self._layout[2] == 0).sum())

    def load(self) -> Self:
        """Keep all features in memory, so that each search is as fast as it can be. Gives the index itself."""
        self._feats = torch.cat([torch.empty(0, self.extractor.model.feature_dim), *self._parts()])
        return self

    def _parts(self) -> Iterator[Tensor]:
        return (self._tensor(number, "feats") for number in self._layout[0])

    def paths(self, rows: Tensor) -> list[str]:
        """The path of each of these rows of all features files in order; "" for a row that is not in use."""
        numbers, starts = self._layout[:2]
        at = torch.searchsorted(starts, rows, right=True) - 1
        query = "SELECT path FROM images WHERE file = ? AND row = ? AND note = '' LIMIT 1"
        with self._manifest() as manifest:
            found = [
                manifest.execute(query, (numbers[n], row)).fetchone()
                for n, row in zip(at.tolist(), (rows - starts[at]).tolist(), strict=True)
            ]
        return [str(self.folder / os.fsdecode(path[0])) if path else "" for path in found]

    def table(self, pattern: str = "") -> Iterator[tuple[list[str], list[dict[str, str]], Tensor]]:
        """Paths, what the names say (see `own_images.fields_of_name`) and features, one features file at a time."""
        for number in self._layout[0]:
            with self._manifest() as manifest:
                order = "SELECT row, path FROM images WHERE file = ? AND note = '' ORDER BY row"
                rows, names = zip(*manifest.execute(order, (number,)), strict=True)
            relative = [Path(os.fsdecode(name)).as_posix() for name in names]
            fields = [fields_of_name(name, pattern) for name in relative]
            yield [str(self.folder / name) for name in relative], fields, self._tensor(number, "feats")[list(rows)]

    # Search

    def ranked(self, feats: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
        """The rows of the nearest images by the cosine, exactly: the evaluator's search, block by block.

        Args:
            feats: (Q, D) of the queries.
            k: Length of the lists.

        Returns:
            Rows (Q, k) int64, -1 where there are fewer images, for `paths`; similarities (Q, k) float32.
        """
        _, _, used, norms = self._layout
        if not len(self):
            raise ValueError(f"the index {self.path} holds no image: call update()")
        gallery: Any = self._parts if self._feats is None else self._feats
        ids = (torch.ones(len(feats), dtype=torch.int64), used, torch.zeros(len(feats), dtype=torch.int64), used)
        found = rank_gallery(feats, gallery, *ids, k=k, gallery_squares=norms)
        return found.indices, 1 - found.distances

    def find(self, images: Any, k: int = 10, *, approximate: bool = False) -> list[list[Hit]]:
        """The nearest images of each query, nearest first.

        Args:
            images: One or more in any form that an `Extractor` takes, or features (Q, D).
            k: Length of the lists.
            approximate: Search by FAISS (`faiss_index.search`), if its package is installed, in place of exactly.

        Raises:
            ValueError: A query cannot be read, or the index is empty.
        """
        feats = self._queries(images)
        if approximate:
            from reidlib.workbook import faiss_index

            rows, similarity = faiss_index.search(self, feats, k)
        else:
            rows, similarity = self.ranked(feats, k)
        lists = []
        for row, value in zip(rows, similarity.tolist(), strict=True):
            paths = self.paths(row[row >= 0])
            lists.append([Hit(path, s) for path, s in zip(paths, value, strict=False) if path])
        return lists

    def _queries(self, images: Any) -> Tensor:
        if isinstance(images, Tensor) and images.ndim == 2 and images.is_floating_point():
            return images
        found = self.extractor.extract(images)
        if found.skipped:
            raise ValueError(f"queries cannot be read: {found.summary()}")
        return found.feats

    def tracks(self, pattern: str) -> "TrackIndex":
        """The same index with one feature a tracklet, the mean over its images; see `average_tracks`.

        Args:
            pattern: What file names say, with `{track}` in it; see `own_images.compile_pattern`. An image whose name
                is not of this form is a tracklet by itself.

        Raises:
            ValueError: The pattern has no `{track}`.
        """
        if "{track}" not in pattern:
            raise ValueError(f"the pattern {pattern!r} names no {{track}}: write it as in '{{camid}}_{{track}}_*.jpg'")
        paths, fields, feats = [], [], [torch.empty(0, self.extractor.model.feature_dim)]
        for some, said, part in self.table(pattern):
            paths += some
            fields += said
            feats.append(part)
        cameras = {camera: n for n, camera in enumerate(sorted({said.get("camid") or "" for said in fields}))}
        camids = torch.tensor([cameras[said.get("camid") or ""] for said in fields], dtype=torch.int64)
        images = Features(torch.cat(feats), torch.zeros_like(camids), camids)
        averaged, track_of = average_tracks(images, [said.get("track") or "" for said in fields])
        members: list[list[str]] = [[] for _ in range(len(averaged))]
        for path, track in zip(paths, track_of.tolist(), strict=True):
            members[track].append(path)
        return TrackIndex(self, averaged.feats, members)

    def groups(self, threshold: float) -> list[list[str]]:
        """Paths of the images that show the same person, the largest group first; see `group_features`.

        Copies of an image are not listed. All features are held in memory.
        """
        rows = (self._layout[2] == 0).nonzero()[:, 0]
        found: dict[int, list[str]] = {}
        if not len(rows):
            return []
        groups = group_features(torch.cat(list(self._parts()))[rows], threshold)
        for group, path in zip(groups.tolist(), self.paths(rows), strict=True):
            found.setdefault(group, []).append(path)
        return [sorted(found[group]) for group in sorted(found)]


@dataclass(frozen=True)
class TrackIndex:
    """An index with one feature a tracklet, in memory.

    Attributes:
        index: Of the images.
        feats: (T, D) float32, normalised.
        members: Paths of the images of each tracklet.
    """

    index: ImageIndex
    feats: Tensor
    members: list[list[str]]

    @property
    def extractor(self) -> "Extractor":
        return self.index.extractor

    @property
    def folder(self) -> Path:
        return self.index.folder

    def find(self, images: Any, k: int = 10) -> list[list[Hit]]:
        """The nearest tracklets of each query, each as its first image; see `ImageIndex.find`."""
        queries = self.index._queries(images)
        ones, zeros = torch.ones(len(queries), dtype=torch.int64), torch.zeros(len(self.feats), dtype=torch.int64)
        found = rank_gallery(queries, self.feats, ones, zeros, ones, zeros, k=min(k, len(self.feats)))
        lists = zip(found.indices.tolist(), (1 - found.distances).tolist(), strict=True)
        return [[Hit(self.members[t][0], s) for t, s in zip(*row, strict=True)] for row in lists]

    def groups(self, threshold: float) -> list[list[str]]:
        """Paths of the images that show the same person, found by tracklet, the largest group of tracklets first."""
        found: dict[int, list[str]] = {}
        for group, paths in zip(group_features(self.feats, threshold).tolist(), self.members, strict=True):
            found.setdefault(group, []).extend(paths)
        return [sorted(found[group]) for group in sorted(found)]


class _Writer:
    """One update: which files are to be extracted, and where their features go."""

    def __init__(self, index: ImageIndex, manifest: sqlite3.Connection, seen: int) -> None:
        self.index, self.manifest, self.seen = index, manifest, seen
        self.extracted = self.files = 0
        newest = manifest.execute("SELECT max(file) FROM images").fetchone()[0] or 0
        on_disk = [int(file.stem[6:]) for file in index.path.glob("feats-*.safetensors")]
        self.number = 1 + max([newest, *on_disk])
        self._clear()

    def _clear(self) -> None:
        self.feats: list[Tensor] = []
        self.rows: list[tuple[Any, ...]] = []  # of the manifest, for features that are not yet written
        self.row_of: dict[str, tuple[int, str]] = {}  # digest → row in the file to come, path
        self.count, self.began = 0, time.monotonic()

    def _key(self, path: str | Path) -> bytes:
        return os.fsencode(Path(path).relative_to(self.index.folder))

    @staticmethod
    def _state(path: str | Path) -> str:
        try:
            return " ".join(map(str, file_state(path)))
        except OSError:  # it has gone since
            return ""

    def changed(self) -> Iterator[Path]:
        """The files whose bytes have to be read; all others are marked as seen."""
        self.states: dict[str, str] = {}
        for path, reason in walk_folder(self.index.folder):
            self.files += 1
            key, state = self._key(path), self._state(path)
            if self.manifest.execute(
                "UPDATE images SET seen = ? WHERE path = ? AND state = ?", (self.seen, key, state)
            ).rowcount:
                continue
            if reason:
                self.manifest.execute(_INSERT, (key, state, "", None, None, reason, self.seen))
            else:
                self.states[str(path)] = state  # as it was before its bytes were read
                yield path

    def is_copy(self, digest: str, name: str) -> str:
        """Whether a file with these bytes has a feature already: then which, in words, and its row points there."""
        key, state = self._key(name), self.states.pop(name, "")
        if waiting := self.row_of.get(digest):
            row, first = waiting
            self.rows.append((key, state, digest, self.number, row, f"the same file as {first}", self.seen))
            return f"the same file as {first}"
        query = "SELECT path, file, row FROM images WHERE digest = ? AND row IS NOT NULL ORDER BY note, path LIMIT 1"
        found = self.manifest.execute(query, (digest,)).fetchone()
        if found:
            note = "" if found[0] == key else f"the same file as {self.index.folder / os.fsdecode(found[0])}"
            self.manifest.execute(_INSERT, (key, state, digest, *found[1:], note, self.seen))
            return note or "unchanged"
        self.rows.append((key, state, digest, self.number, self.count, "", self.seen))
        self.row_of[digest] = self.count, name
        self.count += 1
        return ""

    def add(self, found: "Extracted") -> None:
        """Take the features of a batch, and the reasons of what was skipped."""
        self.feats.append(found.feats)
        self.extracted += len(found)
        for name, reason in found.skipped:
            if name in self.states:  # no copy
                row = (self._key(name), self.states.pop(name), "", None, None, reason, self.seen)
                self.manifest.execute(_INSERT, row)
        if self.count >= ROWS or time.monotonic() - self.began > SECONDS:
            self.write()

    def write(self) -> None:
        """Write the features that have gathered, then tell the manifest."""
        if self.count:
            feats = torch.cat(self.feats).contiguous()
            with whole_file(self.index._file(self.number)) as part:
                save_file({"feats": feats, "squares": squares(feats)}, part, metadata=self.index.extractor.stamp)
        self.manifest.executemany(_INSERT, self.rows)
        self.manifest.commit()
        self.number += bool(self.count)
        self._clear()


def group_features(feats: Tensor, threshold: float, *, neighbours: int = 50) -> np.ndarray:
    """Group images that show the same person: average linkage of cosine similarities, cut at a threshold.

    Only within what the similarities above the threshold connect, so that it costs no N × N matrix.

    Args:
        feats: (N, D).
        threshold: Two groups are joined while the mean similarity between their images is at least this.
        neighbours: Nearest images of each that are looked at.

    Returns:
        (N,) int64, the group of each image, 0 for the largest.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count = len(feats)
    ones, zeros = torch.ones(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    found = rank_gallery(feats, feats, ones, zeros, zeros, zeros, k=min(neighbours, count))
    near = (found.distances <= 1 - threshold) & (found.indices >= 0)
    owner, column = near.nonzero(as_tuple=True)
    weights = found.distances[owner, column].numpy()
    edges = owner.numpy(), found.indices[owner, column].numpy()
    rows = torch.nn.functional.normalize(feats.double()).numpy()
    group, waiting, label = np.full(count, -1), [(np.arange(count), 1 - threshold)], 0
    while waiting:
        members, limit = waiting.pop()
        inside = np.zeros(count, bool)
        inside[members] = True
        kept = (weights <= limit) & inside[edges[0]] & inside[edges[1]]
        graph = csr_array((np.ones(kept.sum()), (edges[0][kept], edges[1][kept])), shape=(count, count))
        part = connected_components(graph, directed=False)[1][members]
        order = np.argsort(part, kind="stable")
        for one in np.split(members[order], np.flatnonzero(np.diff(part[order])) + 1):
            if len(one) > _LARGEST_GROUP and limit > 1e-6:
                waiting.append((one, 0.8 * limit))  # too many for a matrix: first without its longest links
                continue
            inner = np.ones(1, int)
            if 1 < len(one) <= _LARGEST_GROUP:
                inner = fcluster(linkage(rows[one], "average", metric="cosine"), 1 - threshold, "distance")
            group[one] = label + inner - 1
            label += int(inner.max())
    sizes = np.bincount(group)
    rank = np.empty(len(sizes), int)
    rank[np.lexsort((np.arange(len(sizes)), -sizes))] = np.arange(len(sizes))
    return rank[group]


_LARGEST_GROUP = 4096  # images whose distances are held in one matrix
