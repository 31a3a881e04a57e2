"""Tables of one's own: one image a row, with its person, camera and split, as far as they are known."""

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

from reidlib.data.own_images import ENDINGS, Image, dataset_of
from reidlib.data.samples import SPLITS, ReIDDataset
from reidlib.files import whole_file

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".parquet")
Rows = Iterator[tuple[int, list[str]]]
_COLUMNS = ("path", "pid", "camid", "split")
_FURTHER = ("track", "time")  # may be left out, and left empty
_CALLED_PATH = ("file", "filename", "file_name", "image", "img", "img_path", "image_path", "filepath", "name")
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+\d\d+")  # what a spreadsheet makes of long numbers


def read_table(name: str, file: Path, where: str, *, split: str = "", seed: int = 0) -> ReIDDataset:
    """A table with a header and the columns path, pid, camid, split (train, query or gallery); others are passed over.

    `path` alone gives a dataset without labels: every image is in the gallery, of nobody (pid 0). Without `camid` the
    cameras are unknown. `track` and `time` are kept where they are there.

    Text, plain or gzip, with commas, semicolons, tabs or |, in UTF-8, UTF-16 or Windows-1252, as spreadsheets save it;
    or Parquet. Paths start at the file's own folder and are written with /. Pids and camids are any text; they are
    numbered from 1 in sorted order over all splits, so that every process numbers them alike. pid "junk" or "-1" is
    junk, "distractor" is nobody. A million rows take about 6 s of CPU and 0.7 GiB (Python 3.11).

    Args:
        name: the dataset, for messages and results.
        file: the table, and `where` it is named.
        split, seed: see `own_images.dataset_of`.

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
    read = _parquet(name, file, split) if file.suffix.lower() == ".parquet" else _text(name, file, bad, notes, split)
    columns = next(read)[1]
    given, has_split = [i for i, column in enumerate(columns[:4]) if column], bool(columns[3])
    for line, row in read:
        if not all(row[i] for i in given):
            bad["an empty field"].append(line)
        elif has_split and row[3] not in SPLITS:
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
    found = [Image(path, *row[1:]) for path, row in zip(paths, rows, strict=True)]
    return dataset_of(name, file.parent, found, split=split, seed=seed, notes=notes)


def _columns(name: str, file: Path, header: list[str], split: str) -> list[int | None]:
    """Where path, pid, camid, split, track and time are, None for those that are not there."""
    missing = [column for column in _COLUMNS if column not in header]
    if "path" in missing:
        meant = [column for column in header if column.strip().lower() in (*_CALLED_PATH, "path")]
        meant = [f"is {meant[0]!r} the path? Call it path"] if meant else []
        if any(column.lower().endswith(ENDINGS) for column in header):
            meant = ["the first line looks like a row: put a header above it, path,pid,camid,split or path alone"]
        hint = "".join(f" ({text})" for text in meant)
        raise ValueError(f"{name}: {file} lacks the columns {', '.join(missing)}; it has {', '.join(header)}{hint}")
    if "split" in missing and "pid" not in missing and not split:
        raise ValueError(
            f"{name}: {file} lacks the column split (train, query or gallery); it has {', '.join(header)}: add it, or "
            "let load_dataset(..., split='auto') split by person"
        )
    return [header.index(column) if column in header else None for column in (*_COLUMNS, *_FURTHER)]


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


def _text(name: str, file: Path, bad: dict[str, list[int]], notes: list[str], split: str) -> Rows:
    """Each row's first line and its fields in the order of _COLUMNS and _FURTHER, "" for a column that is not there.

    The first is no row: which of the columns are there.
    """
    with _opened(name, file, notes) as text:
        first, line = text.readline(2**16), 1
        if first.startswith("sep="):  # Excel's own mark
            first, line = text.readline(2**16), 2
        if "\0" in first:
            raise ValueError(f"{name}: {file} has no known encoding: save it as CSV UTF-8")
        separator = max(",;\t|", key=first.count)
        try:
            header = [column.strip() for column in next(csv.reader([first], delimiter=separator, strict=True), [])]
            order = _columns(name, file, header, split)
            yield 0, ["" if i is None else header[i] for i in order]
            reader, before = csv.reader(text, delimiter=separator, strict=True), line + 1
            line = before
            for row in reader:
                if len(row) == len(header):
                    yield line, ["" if i is None else row[i].strip() for i in order]
                elif row:  # not a blank line
                    bad[f"other than {len(header)} fields"].append(line)
                line = before + reader.line_num
        except csv.Error as error:
            raise ValueError(f"{name}: {file}, line {line}: {error}; is there a stray quote?") from error


def _parquet(name: str, file: Path, split: str) -> Rows:
    import pandas as pd

    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        raise ImportError(f"{name}: to read {file} pandas needs pyarrow: pip install pyarrow, or give a CSV") from error
    except Exception as error:  # whatever pyarrow raises on a damaged file
        raise ValueError(f"{name}: {file} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    header = list(map(str, frame.columns))
    order = _columns(name, file, header, split)
    yield 0, ["" if i is None else header[i] for i in order]
    texts = [[""] * len(frame) if i is None else frame.iloc[:, i].astype("string").fillna("") for i in order]
    yield from enumerate(map(list, zip(*texts, strict=True)), 1)


def write_table(dataset: ReIDDataset, file: str | Path) -> Path:
    """Write a dataset as the table that `read_table` reads: to correct it by hand, or to name it in data_paths.yaml.

    Paths are written from the table's folder. Returns the file; an existing one is replaced.
    """
    file = Path(file)
    folder = file.absolute().parent
    further = [column for column in _FURTHER if any(getattr(s, column) for s in dataset.samples)]
    names = {-1: "junk", 0: "distractor"} | dict(dataset.people)
    with whole_file(file) as part, open(part, "w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow([*_COLUMNS, *further])
        for split, samples in dataset.splits.items():
            for s in samples:
                row = [names.get(s.pid, s.pid), dataset.cameras.get(s.camid, s.camid), split]
                path = Path(os.path.relpath(s.path.absolute(), folder)).as_posix()
                writer.writerow([path, *row, *(getattr(s, column) for column in further)])
    return file


def _lines(at: list[int]) -> str:
    """Every line, runs of them as ranges: "lines 3, 7-9"."""
    ranges: list[list[int]] = []
    for line in sorted(at):
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    return "lines " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
