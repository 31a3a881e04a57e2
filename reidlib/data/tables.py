"""Tables of one's own: one image a row, with its person, camera and split."""

import csv
import gzip
import os
import re
import zlib
from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from reidlib.data.samples import SPLITS, ReIDDataset, Sample

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".parquet")
Rows = Iterator[tuple[int, list[str]]]
_COLUMNS = ("path", "pid", "camid", "split")
_NOBODY = {"junk": -1, "-1": -1, "distractor": 0}
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+\d\d+")  # what a spreadsheet makes of long numbers


def read_table(name: str, file: Path, where: str) -> ReIDDataset:
    """A table with a header and the columns path, pid, camid, split (train, query or gallery); others are passed over.

    Text, plain or gzip, with commas, semicolons, tabs or |, in UTF-8, UTF-16 or Windows-1252, as spreadsheets save it;
    or Parquet. Paths start at the file's own folder and are written with /. Pids and camids are any text; they are
    numbered from 1 in sorted order over all splits, so that every process numbers them alike. pid "junk" or "-1" is
    junk, "distractor" is nobody. A million rows take about 6 s of CPU and 0.7 GiB (Python 3.11).

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is no such table, and for bad rows, all of them listed by their lines.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{name}: {file} ({where}) is not a file")
    bad: dict[str, list[int]] = defaultdict(list)
    rows: list[list[str]] = []
    lines: list[int] = []
    notes: list[str] = []
    for line, row in _parquet(name, file) if file.suffix.lower() == ".parquet" else _text(name, file, bad, notes):
        if not all(row):
            bad["an empty field"].append(line)
        elif row[3] not in SPLITS:
            bad[f"a split other than {', '.join(SPLITS)}"].append(line)
        elif _ROUNDED.fullmatch(row[1]) or _ROUNDED.fullmatch(row[2]):
            bad["a number that a spreadsheet has rounded (format the column as text)"].append(line)
        else:
            rows.append(row)
            lines.append(line)
    folders: dict[str, tuple[Path, set[str]]] = {}  # listed once each: to ask for every file would take longer
    paths = []
    for line, row in zip(lines, rows, strict=True):
        parent = row[0][: row[0].rfind("/") + 1]
        if parent not in folders:
            folder = file.parent / parent
            folders[parent] = folder, set()
            with suppress(OSError, ValueError):  # not there, or no path at all
                folders[parent][1].update(os.listdir(folder))
        folder, present = folders[parent]
        if row[0][len(parent) :] not in present:
            bad["a path with \\ (write /)" if "\\" in row[0] else "a file that does not exist"].append(line)
        paths.append(folder / row[0][len(parent) :])
    if bad:
        reasons = "; ".join(f"{reason} in {_lines(at)}" for reason, at in bad.items())
        raise ValueError(f"{name}: {file} has {sum(map(len, bad.values()))} bad rows: {reasons}")
    people, cameras = (sorted({row[i] for row in rows} - (set(_NOBODY) if i == 1 else set())) for i in (1, 2))
    pids = _NOBODY | {pid: number for number, pid in enumerate(people, 1)}
    camids = {camid: number for number, camid in enumerate(cameras, 1)}
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for path, (_, pid, camid, split) in zip(paths, rows, strict=True):
        if split != "train" or pids[pid] > 0:
            splits[split].append(Sample(path, pids[pid], camids[camid]))
    train, query, gallery = map(tuple, splits.values())
    named = dict(enumerate(people, 1)), dict(enumerate(cameras, 1))
    return ReIDDataset(name, file.parent, train, query, gallery, notes=tuple(notes), people=named[0], cameras=named[1])


def _columns(name: str, file: Path, header: list[str]) -> list[int]:
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise ValueError(f"{name}: {file} lacks the columns {', '.join(missing)}; it has {', '.join(header)}")
    return [header.index(column) for column in _COLUMNS]


@contextmanager
def _opened(name: str, file: Path, notes: list[str]) -> Iterator[TextIO]:
    """The table as text, in the encoding that it has."""
    opened = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with opened(file, "rb") as raw:
            start = raw.read(2)
            if start in (b"\xff\xfe", b"\xfe\xff"):
                encoding = "utf-16"
            else:
                encoding, decoder = "utf-8-sig", getincrementaldecoder("utf-8")()
                raw.seek(0)
                try:
                    while block := raw.read(2**20):
                        decoder.decode(block)
                    decoder.decode(b"", final=True)
                except UnicodeDecodeError:
                    encoding = "cp1252"
                    notes.append("not UTF-8, so read as Windows-1252: save it as CSV UTF-8 if names look wrong")
        with opened(file, "rt", encoding=encoding, newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {file} is neither UTF-8, UTF-16 nor Windows-1252: save it as CSV UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: {file} is not a whole gzip file: {error}") from error


def _text(name: str, file: Path, bad: dict[str, list[int]], notes: list[str]) -> Rows:
    """Each row's first line and its fields in the order of _COLUMNS."""
    with _opened(name, file, notes) as text:
        first, line = text.readline(2**16), 1
        if first.startswith("sep="):  # Excel's own mark
            first, line = text.readline(2**16), 2
        if "\0" in first:
            raise ValueError(f"{name}: {file} has no known encoding: save it as CSV UTF-8")
        separator = max(",;\t|", key=first.count)
        try:
            header = [column.strip() for column in next(csv.reader([first], delimiter=separator, strict=True), [])]
            order = _columns(name, file, header)
            reader, before = csv.reader(text, delimiter=separator, strict=True), line + 1
            line = before
            for row in reader:
                if len(row) == len(header):
                    yield line, [row[i].strip() for i in order]
                elif row:  # not a blank line
                    bad[f"other than {len(header)} fields"].append(line)
                line = before + reader.line_num
        except csv.Error as error:
            raise ValueError(f"{name}: {file}, line {line}: {error}; is there a stray quote?") from error


def _parquet(name: str, file: Path) -> Rows:
    import pandas as pd

    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        raise ImportError(f"{name}: to read {file} pandas needs pyarrow: pip install pyarrow, or give a CSV") from error
    except Exception as error:  # whatever pyarrow raises on a damaged file
        raise ValueError(f"{name}: {file} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    frame = frame.iloc[:, _columns(name, file, list(map(str, frame.columns)))].astype("string").fillna("")
    yield from enumerate(map(list, zip(*(frame[column] for column in frame), strict=True)), 1)


def _lines(at: list[int]) -> str:
    """Every line, runs of them as ranges: "lines 3, 7-9"."""
    ranges: list[list[int]] = []
    for line in sorted(at):
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    return "lines " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
