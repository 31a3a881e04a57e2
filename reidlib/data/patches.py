"""Corrections of labels as a table: rows `path, pid, new_pid, verdict, note`, applied without touching the dataset.

`path` is the image's, from the dataset's root; `pid` the person it is labelled with today, `new_pid` the right one, by
the names that the dataset has for people, or "junk" or "distractor". `verdict` says what was decided: "same" (the label
is right), "other" (another person), "swap" (two images had exchanged their labels, a row for each) or "junk". A row
that does not fit the dataset is an error: a table made for another edition must not change labels at random.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from reidlib.data.samples import ReIDDataset, Sample
from reidlib.files import whole_file

Row = TypeVar("Row", bound=NamedTuple)
VERDICTS = ("same", "other", "swap", "junk")
NOBODY = {"junk": -1, "distractor": 0}


class Correction(NamedTuple):
    """One row of the table."""

    path: str
    pid: str
    new_pid: str
    verdict: str
    note: str = ""


def read_verdicts(file: str | Path, kind: type[Row], verdicts: Sequence[str]) -> list[Row]:
    """Read a table of decisions.

    Args:
        file: A CSV file with the fields of `kind` as columns.
        kind: The type of a row, a NamedTuple of text with the field `verdict`.
        verdicts: What may be decided.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It has other columns or an unknown verdict; the message names the line.
    """
    fields = kind._fields
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if list(rows.fieldnames or ()) != list(fields):
            raise ValueError(f"{file}: the columns are {','.join(fields)}, not {rows.fieldnames}")
        found = []
        for row in rows:
            if None in row or None in row.values() or row["verdict"] not in verdicts:
                raise ValueError(
                    f"{file}, line {rows.line_num}: {len(fields)} columns with a verdict of {', '.join(verdicts)} are "
                    "needed"
                )
            found.append(kind._make(row[name] for name in fields))
    return found


def write_verdicts(file: str | Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Write a table of decisions, whole or not at all; arguments as for `read_verdicts`."""
    with whole_file(Path(file)) as part, open(part, "w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, lineterminator="\n").writerows([kind._fields, *rows])


def person_key(data: ReIDDataset, pid: int) -> str:
    """The word for a person in such a table: "junk", "distractor", the dataset's own name, or the number."""
    names = {number: word for word, number in NOBODY.items()}
    return names.get(pid) or str(data.people.get(pid, pid))


def read_corrections(file: str | Path) -> list[Correction]:
    """Read a table of corrections.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It has other columns or an unknown verdict; the message names the line.
    """
    return read_verdicts(file, Correction, VERDICTS)


def write_corrections(file: str | Path, corrections: Iterable[Correction]) -> None:
    """Write a table of corrections, whole or not at all; a later row of an image replaces an earlier one."""
    write_verdicts(file, Correction, {row.path: row for row in corrections}.values())


def apply_corrections(data: ReIDDataset, file: str | Path) -> ReIDDataset:
    """A dataset with corrected labels. Training images that became junk or distractors are left out.

    Args:
        data: The dataset; it stays as it is.
        file: The table.

    Returns:
        The corrected dataset; its version and notes name the table.

    Raises:
        ValueError: A row names an image or person that the dataset does not have, another present label, a person of
            the other side (training or test), or an image twice.
        FileNotFoundError: The table is not there.
    """
    sides = {"train": data.train, "test": data.query + data.gallery}
    people = {side: {person_key(data, s.pid): s.pid for s in samples} | NOBODY for side, samples in sides.items()}
    labelled = {data.relative(s): (side, s) for side, samples in sides.items() for s in samples}
    new: dict[str, int] = {}
    for number, row in enumerate(read_corrections(file), start=2):
        where = f"{file}, row {number}"
        if row.path in new:
            raise ValueError(f"{where}: {row.path} was corrected above; keep one of the rows")
        if row.path not in labelled:
            raise ValueError(f"{where}: {data.name} has no image {row.path}")
        side, sample = labelled[row.path]
        if (now := person_key(data, sample.pid)) != row.pid:
            raise ValueError(f"{where}: {row.path} is labelled {now} in {data.name}, not {row.pid}")
        if row.verdict == "junk" and row.new_pid != "junk":
            raise ValueError(f"{where}: the verdict junk goes with the new_pid junk, not {row.new_pid}")
        if row.verdict != "same" and row.new_pid not in people[side]:
            raise ValueError(f"{where}: nobody in the {side} images of {data.name} is called {row.new_pid}")
        new[row.path] = sample.pid if row.verdict == "same" else people[side][row.new_pid]
    changed = sum(new[path] != labelled[path][1].pid for path in new)
    splits = {split: _corrected(data, samples, new) for split, samples in data.splits.items()}
    splits["train"] = tuple(s for s in splits["train"] if s.pid > 0)
    note = f"{changed} labels corrected by {Path(file).name}"
    return replace(data, **splits, version=f"{data.version} ({note})".strip(), notes=(*data.notes, note))


def _corrected(data: ReIDDataset, samples: tuple[Sample, ...], new: Mapping[str, int]) -> tuple[Sample, ...]:
    return tuple(s._replace(pid=new.get(data.relative(s), s.pid)) for s in samples)
