"""Made-up tables, lists, folders, data_paths.yaml and packs: a dataset, or one sentence that names the file.

A finding becomes a plain case in tests/test_readers.py, test_data.py or test_packing.py.
"""

import csv
import gzip
import io
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from reidlib import paths
from reidlib.data import packing
from reidlib.data.check import check_dataset
from reidlib.data.datasets import list_datasets, load_dataset
from reidlib.data.images import unreadable_images
from reidlib.data.readers import read_market1501, read_msmt17
from reidlib.data.samples import SPLITS, ReIDDataset
from reidlib.data.tables import TABLES, read_table

FILES = [f"{i}.png" for i in range(4)]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252")
# What fields look like, and what breaks them.
WORDS = st.sampled_from(
    ["", " ", "a/0.png", "a/1.png", "./a/2.png", "a//3.png", "a", "../a/0.png", "/etc/passwd", "a\\0.png", "train",
     "query", "gallery", "junk", "-1", "distractor", "9" * 30, "1.2E+29", '"', '""', "'", "Zoë", "\ufeff", "\0", "\n",
     "\r", "path", "pid", "=1+1", "#", "…" * 300]
)  # fmt: skip
TEXT = st.one_of(WORDS, st.text(max_size=12))
ROWS = st.lists(st.lists(TEXT, max_size=6), max_size=8)
HEADER = st.one_of(
    st.permutations(["path", "pid", "camid", "split"]), st.permutations(["path", "pid", "camid", "split", "note"]),
    st.lists(TEXT, max_size=5),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "a").mkdir()
    for name in FILES:
        Image.new("RGB", (4, 8)).save(folder / "a" / name)
    return folder


PLAIN = (ValueError, OSError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


@contextmanager
def one_sentence(*named: object, kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Errors of these kinds are welcome, if they are one line that names one of these; any other is not."""
    try:
        yield
    except kinds as error:
        text = str(error)
        if "\n" in text or not any(str(name) in text for name in named) or type(error) not in PLAIN:
            pytest.fail(f"not one sentence that names its file: {error!r}")


def is_sound(data: ReIDDataset) -> None:
    for samples in data.splits.values():
        for s in samples:
            assert s.path.exists()
            assert -1 <= s.pid <= len(data.people)
            assert s.pid < 1 or data.people[s.pid]
            assert data.cameras[s.camid]
    assert all(s.pid > 0 for s in data.train)
    check_dataset(data)
    data.fingerprint()


def written(content: bytes, suffix: str) -> bytes:
    return gzip.compress(content) if suffix.endswith(".gz") else content


@given(content=st.binary(max_size=400), suffix=st.sampled_from(TABLES), zipped=st.booleans())
@example(b"path,pid,camid,split\na/0.png,1,1,train\n", ".csv", False)
def test_any_bytes(folder: Path, content: bytes, suffix: str, zipped: bool) -> None:
    file = folder / f"bytes{suffix}"
    file.write_bytes(written(content, suffix) if zipped else content)
    with one_sentence(file):
        is_sound(read_table("mine", file, "here"))


@given(
    header=HEADER,
    rows=ROWS,
    separator=st.sampled_from(",;\t| "),
    ending=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    encoding=st.sampled_from(ENCODINGS),
    suffix=st.sampled_from(TABLES[:-1]),
    cut=st.integers(0, 20),
)
def test_any_fields(
    folder: Path, header: list[str], rows: list, separator: str, ending: str, encoding: str, suffix: str, cut: int
) -> None:
    file = folder / f"fields{suffix}"
    content = ending.join(separator.join(row) for row in [header, *rows]).encode(encoding, "replace")
    content = written(content, suffix)
    file.write_bytes(content[: len(content) - cut])
    with one_sentence(file):
        is_sound(read_table("mine", file, "here"))


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=40).filter(
    lambda name: name not in ("junk", "-1", "distractor") and not name.isspace()
)


@given(
    rows=st.lists(st.tuples(st.sampled_from(FILES), NAMES, NAMES, st.sampled_from(SPLITS)), min_size=1, max_size=12),
    separator=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ending=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(ENCODINGS),
    order=st.permutations(range(4)),
    suffix=st.sampled_from(TABLES[:-1]),
)
def test_what_a_spreadsheet_writes_is_read(
    folder: Path, rows: list, separator: str, quoting: int, ending: str, encoding: str, order: list, suffix: str
) -> None:
    """Any names of people and cameras come back, whatever the separator, the encoding and the order of columns."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=ending)
    table = [("path", "pid", "camid", "split"), *((f"a/{row[0]}", *row[1:]) for row in rows)]
    writer.writerows([row[i] for i in order] for row in table)
    try:
        content = text.getvalue().encode(encoding)
        assume(encoding != "cp1252" or not _is_utf8(content))  # such text has two readings
    except UnicodeEncodeError:
        assume(False)
    file = folder / f"sheet{suffix}"
    file.write_bytes(written(content, suffix))
    assume(not any(_looks_rounded(name) for row in rows for name in row[1:3]))
    data = read_table("mine", file, "here")
    for split, samples in data.splits.items():
        got = [(s.path.name, data.people[s.pid], data.cameras[s.camid]) for s in samples]
        assert got == [(row[0], row[1].strip(), row[2].strip()) for row in rows if row[3] == split]


def file_name(raw: bytes) -> str:
    return os.fsdecode(raw.translate(None, b"/\0") + b".jpg")


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not content.isascii()


def _looks_rounded(name: str) -> bool:
    return "E+" in name


PATHS = st.one_of(
    st.sampled_from(
        ["~", "~nobody", "$HOME/x", "${NOT_SET}", "$", "a/b", "/", "..", "", "x" * 5000, "list.csv", "a.zip"]
    ),
    st.text(max_size=20),
)
KEYS = st.one_of(
    st.sampled_from(["market1501", "weights", "a/b", "a+b", ".", "<<", "1", "yes", "?"]), st.text(max_size=8)
)


@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(st.tuples(KEYS, PATHS), max_size=6).map(
            lambda lines: "".join(f"{k}: {v}\n" for k, v in lines).encode("utf-8", "replace")
        ),
        st.dictionaries(KEYS, PATHS, max_size=6).map(lambda lines: json.dumps(lines).encode()),
        st.sampled_from(
            [b"[" * 3000, b"&a [*a]", b"a: &a {b: *a}", b"- " * 500, b"\xef\xbb\xbfa: b", b"a: !!python/name:os.system"]
        ),
    )
)
def test_any_data_paths(folder: Path, content: bytes) -> None:
    file = folder / "data_paths.yaml"
    file.write_bytes(content)
    os.environ["REID_DATA_PATHS"] = str(file)  # restored with the world of each test
    with one_sentence(file):
        for name in paths.data_names():
            assert not set(name) & set("/\\+\0")
            with one_sentence(file):
                path, where = paths.data_path(name)
                assert path.is_absolute()
                assert where.startswith(f"{file}, line ")
            with one_sentence(name, file):
                load_dataset(name)
        paths.weights_root()
        list_datasets()


@given(
    name=st.one_of(
        st.text(max_size=20),
        st.lists(st.sampled_from([*"+-", "market1501", "synthetic-tiny", "mine", "-combineall"]), max_size=5).map(
            "".join
        ),
    ).filter(lambda name: "\0" in name or not any(Path(part).is_dir() for part in name.split("+")))  # a folder is read
)
def test_any_name_of_a_dataset(name: str) -> None:
    with one_sentence(repr(name.split("+")[0].removesuffix("-combineall")), "dataset", "data_paths.yaml"):
        load_dataset(name)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(-2, 10**12), st.integers(-1, 10**12)).map("{0[0]}_c{0[1]}s1_000001_01.jpg".format),
            st.binary(max_size=30).map(file_name),
            st.binary(max_size=9).map(lambda raw: file_name(b"1_c1s1_000001_01" + raw)),
        ),
        min_size=1,
        max_size=6,
    )
)  # fmt: skip
def test_any_names_in_a_market_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    root = tmp_path_factory.mktemp("market")
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (root / part).mkdir()
        for name in names:
            (root / part / name).touch()
    with one_sentence(root):
        data = read_market1501("market1501", root, "here")
        assert all(-1 <= s.pid < 2**31 and 0 <= s.camid < 2**31 for s in data.samples)
        assert data.fingerprint()
        text = str(check_dataset(data)) + "".join(unreadable_images(data.samples))
        assert text.encode()


@given(
    lines=st.lists(
        st.one_of(
            TEXT,
            st.tuples(st.integers(0, 10**6), st.integers(0, 20), st.integers(-1, 10**12)).map(
                "0001/{0[0]:04d}_000_{0[1]:02d}_0303morning_0008_0.jpg {0[2]}".format
            ),
        ),
        max_size=6,
    )
)
def test_any_lines_in_a_list_of_msmt(folder: Path, lines: list[str]) -> None:
    root = folder / "msmt"
    for part in ("train", "test"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for part in ("train", "val", "query", "gallery"):
        (root / f"list_{part}.txt").write_bytes("\n".join(lines).encode("utf-8", "replace"))
    with one_sentence("list_", kinds=(ValueError,)):
        data = read_msmt17("msmt17", root, "here")
        assert not {s.pid for s in data.train} & {s.pid for s in (*data.query, *data.gallery)}
        data.fingerprint()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(
    index=st.one_of(
        st.binary(max_size=60),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries({"size": JSON, "interpolation": JSON, "files": JSON}).map(
            lambda v: json.dumps(v).encode()
        ),
        st.dictionaries(st.sampled_from(FILES), JSON).map(
            lambda files: json.dumps({"size": [8, 4], "interpolation": "bilinear", "files": files}).encode()
        ),
    ),
    sizes=st.tuples(st.integers(0, 400), st.integers(0, 40)),
)
def test_any_index_of_a_pack(folder: Path, index: bytes, sizes: tuple[int, int]) -> None:
    """It costs that pack, and no other."""
    home = folder / "packs"
    table = folder / "sound.csv"
    table.write_text("path,pid,camid,split\n" + "".join(f"a/{name},{i},1,train\n" for i, name in enumerate(FILES)))
    data = read_table("mine", table, "here")
    home.mkdir(exist_ok=True)
    (home / "data_paths.yaml").touch()
    os.environ["REID_DATA_PATHS"] = str(home / "data_paths.yaml")
    sound = packing.pack(data, (8, 4))
    broken = packing.packs_root() / "a-8x4-broken"
    broken.mkdir(exist_ok=True)
    (broken / "index.json").write_bytes(index)
    (broken / "images.u8").write_bytes(bytes(sizes[0]))
    (broken / "crc.u64").write_bytes(bytes(sizes[1]))
    packing._index.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = packing.find_pack(data.train, (8, 4))
    assert found.folder == sound
