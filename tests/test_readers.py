"""Every layout, written as its authors publish it and read back; tables of one's own; several datasets as one."""

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from exports import LAYOUTS, export
from PIL import Image
from scipy.io import loadmat

from reidlib.data import datasets, readers, tables
from reidlib.data.check import compare_counts
from reidlib.data.datasets import list_datasets, load_dataset, merge
from reidlib.data.drawn.writer import SIZES, Studio
from reidlib.data.samples import ReIDDataset, Sample

SHOTS = list(Studio().shots(SIZES["tiny"]))
LINES = {"market1501": "market1501-500k", "dukemtmcreid": "dukemtmcreid", "msmt17": "msmt17-v1", "cuhk03": "cuhk03"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """One export of each layout, by its name."""
    root, once = tmp_path_factory.mktemp("exports"), cache(partial(Studio.draw, Studio()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "draw", lambda self, shot, size: once(shot, size))
        return {layout: export(root / layout / "data", layout, image_size=(32, 16)) for layout in LAYOUTS}


@pytest.fixture
def paths_file(exports, tmp_path, monkeypatch):
    """A data_paths.yaml that names them."""
    file = tmp_path / "data_paths.yaml"
    lines = [f"{line}: {exports[layout]}" for line, layout in LINES.items()] + [f"mine: {exports['csv']}"]
    file.write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(file))
    return file


def drawn(split, keep=lambda shot: True, pid=lambda shot: shot.pid, camid=lambda shot: shot.camid + 1):
    return Counter((pid(s), camid(s)) for s in SHOTS if s.split == split and keep(s))


def read(split):
    return Counter((s.pid, s.camid) for s in split)


def test_market_with_its_500k_distractors(exports, paths_file):
    for extra in (False, True):
        data = load_dataset("market1501" + "-500k" * extra)
        in_images = [s for s in data.gallery if s.path.parent.name == "images"]
        assert read(data.train) == drawn("train")
        assert read(data.query) == drawn("query")
        assert read(data.gallery) == drawn("gallery", lambda s, extra=extra: s.pid or extra)
        assert [s.pid for s in in_images] == [0] * 8 * extra
    (exports["market1501-500k"] / "images" / "no_such_name.jpg").touch()
    assert load_dataset("market1501-500k").gallery[-1].camid == 0  # any picture there is nobody
    (exports["market1501-500k"] / "images" / "no_such_name.jpg").unlink()


def test_duke(paths_file):
    data = load_dataset("dukemtmcreid")
    assert read(data.train) == drawn("train")
    assert read(data.query) == drawn("query")
    people = drawn("gallery", lambda s: s.pid >= 0, lambda s: s.pid or 7000 + s.number)
    assert read(data.gallery) == people
    assert compare_counts(data)[2]["published images"] == 17661


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_msmt(exports, version):
    root = exports[f"msmt17-{version.lower()}"]
    data = readers.read_msmt17("msmt17", root, "here")
    bare = readers.read_msmt17("msmt17-noval", root, "here", val=False)
    train, test = (lambda s, base=base: base + (s.pid - 1) // 2 for base in (10_000, 20_000))
    assert data.version == version
    assert read(data.train) == drawn("train", pid=train)
    assert read(data.query) == drawn("query", pid=test)
    assert read(data.gallery) == drawn("gallery", lambda s: s.pid > 0, pid=test)
    assert len(data.train) - len(bare.train) == len((root / "list_val.txt").read_text().splitlines()) == 6
    assert data.people[data.query[0].pid] == "test/" + data.query[0].path.parent.name
    assert all(s.path.is_file() for split in data.splits.values() for s in split)


def test_msmt_lists_that_do_not_parse_and_two_editions_in_one_folder(exports, tmp_path):
    shutil.copytree(exports["msmt17-v1"], tmp_path / "both" / "MSMT17_V1")
    shutil.copytree(exports["msmt17-v2"], tmp_path / "both" / "MSMT17_V2")
    with pytest.raises(ValueError, match=r"holds more than one: .*MSMT17_V1 V1, .*MSMT17_V2 V2; name the one"):
        readers.read_msmt17("msmt17", tmp_path / "both", "here")
    root = tmp_path / "both" / "MSMT17_V2"
    with (root / "list_query.txt").open("a") as file:
        file.write("nonsense\n\n0001/0001_000_xx_a.jpg 1\n")
    with pytest.raises(ValueError, match=r"list_query\.txt line 21, list_query\.txt line 23$"):
        readers.read_msmt17("msmt17", root, "here")


# CUHK03


def cuhk_people():
    """(pair, person) of each drawn pid, and its two views: what the export says it does, done again."""
    views = {}
    for shot in SHOTS:
        if shot.pid > 0:
            views.setdefault(shot.pid, {}).setdefault(shot.camid, []).append(shot)
    pids = sorted(views)
    return {pid: (1000 * (i % 5 + 1) + i // 5 + 1, list(views[pid].values())[:2]) for i, pid in enumerate(pids)}


@pytest.mark.parametrize("boxes", ["detected", "labelled"])
def test_cuhk_with_767_700(paths_file, boxes):
    data = load_dataset(f"cuhk03-{boxes}")
    wanted = {"train": Counter(), "query": Counter(), "gallery": Counter()}
    for pid, (number, views) in cuhk_people().items():
        for view, shots in enumerate(views, 1):
            count = len(shots) - (boxes == "detected" and pid % 3 == 0)
            if pid % 2 == 0:
                wanted["train"][number, view] += count
            else:
                wanted["query"][number, view] += 1
                wanted["gallery"][number, view] += count - 1
    assert {split: read(samples) for split, samples in data.splits.items()} == wanted
    assert (data.version, data.single_shot) == ("767/700", False)
    assert compare_counts(data)[0]["published images"] == (7365 if boxes == "detected" else 7368)
    number, views = cuhk_people()[data_pid := 2]
    first = next(s for s in data.train if s.pid == number)
    with Image.open(first.path) as image:  # pixels survive MATLAB's order of dimensions
        assert np.array_equal(np.asarray(image), np.asarray(Studio().draw(views[0][0], (32, 16)))), data_pid


def test_cuhk_20_splits(paths_file):
    tests = []
    for n in (1, 2, 20):
        data = load_dataset(f"cuhk03-labelled-split{n}")
        train, test = {s.pid for s in data.train}, {s.pid for s in data.query}
        assert data.query == data.gallery
        assert data.single_shot
        assert (len(train), len(test), train & test) == (15, 5, set())
        assert len(data.train) + len(data.query) == len(list((data.root / "images_labeled").glob("*.png")))
        tests.append(test)
    assert tests[0] != tests[1] != tests[2]
    assert sum(name.startswith("cuhk03") and "-split" in name for name in list_datasets()) == 40
    with pytest.raises(ValueError, match="has 20 splits, not 21"):
        readers.read_cuhk03("cuhk03", data.root, "here", split=21)


def test_cuhk_files_are_structured_as_the_real_ones(exports):
    with h5py.File(exports["cuhk03"] / "cuhk-03.mat") as file:
        assert (exports["cuhk03"] / "cuhk-03.mat").stat().st_size > 512
        assert [file[key].shape for key in ("detected", "labeled", "testsets")] == [(1, 5), (1, 5), (1, 20)]
        pair = file[file["detected"][0, 0]]
        assert pair.shape == (10, 4)
        assert pair.dtype == h5py.ref_dtype
        assert file[pair[0, 0]].shape == (3, 16, 32)
        empty = file[pair[4, 0]]
        assert (empty.shape, empty.dtype, int(empty.attrs["MATLAB_empty"])) == ((2,), np.uint64, 1)
        assert file[file["testsets"][0, 0]].shape == (2, 5)
    protocol = loadmat(exports["cuhk03"] / "cuhk03_new_protocol_config_labeled.mat")
    assert protocol["filelist"].flatten()[0][0] == "1_001_1_01.png"
    assert {"train_idx", "query_idx", "gallery_idx", "labels", "camId"} <= set(protocol)
    assert protocol["train_idx"].shape[1] == 1


def test_an_extraction_that_was_killed_goes_on(exports, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        shutil.copy(exports["cuhk03"] / "cuhk-03.mat", folder)
    before = readers.extract_cuhk03(whole / "cuhk-03.mat", "labeled")
    code = f"""
import os, signal
from pathlib import Path
from PIL import Image
from reidlib.data.readers import extract_cuhk03
save, count = Image.Image.save, [0]
def dying(self, *args, **kwargs):
    save(self, *args, **kwargs)
    count[0] += 1
    if count[0] == 41:
        os.kill(os.getpid(), signal.SIGKILL)
Image.Image.save = dying
extract_cuhk03(Path({str(killed / "cuhk-03.mat")!r}), "labeled")
"""
    died = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert died.returncode == -signal.SIGKILL
    folder = killed / "images_labeled"
    half = {p.name: p.stat().st_mtime_ns for p in folder.glob("[0-9]*.png")}
    assert len(half) == 40
    assert len(list(folder.iterdir())) == 41  # and one that was never renamed
    assert readers.extract_cuhk03(killed / "cuhk-03.mat", "labeled") == before
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    assert half.items() <= kept.items()
    files = sorted(p.name for p in (whole / "images_labeled").iterdir())
    assert files == sorted(os.listdir(folder))
    assert all((folder / f).read_bytes() == (whole / "images_labeled" / f).read_bytes() for f in files)
    (killed / "cuhk-03.mat").write_bytes(b"")  # not opened again
    assert readers.extract_cuhk03(killed / "cuhk-03.mat", "labeled") == before


def test_a_protocol_for_other_boxes_is_refused(exports, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(exports["cuhk03"], root)
    shutil.copy(*(root / f"cuhk03_new_protocol_config_{key}.mat" for key in ("labeled", "detected")))
    with pytest.raises(ValueError, match=r"detected\.mat lists images that cuhk-03\.mat does not have detected"):
        readers.read_cuhk03("cuhk03-detected", root, "here")
    (root / "cuhk03_new_protocol_config_detected.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"for cuhk03_new_protocol_config_detected\.mat, and one level up"):
        readers.read_cuhk03("cuhk03-detected", root, "here")
    shutil.copy(exports["cuhk03"] / "cuhk03_new_protocol_config_detected.mat", tmp_path)
    assert readers.read_cuhk03("cuhk03-detected", root, "here").train


# Nesting


@pytest.mark.parametrize("line", LINES)
def test_every_folder_is_found_one_level_up_or_down_and_that_is_said(exports, tmp_path, monkeypatch, line):
    inner = tmp_path / "outer" / "inner"
    shutil.copytree(exports[LINES[line]], inner)
    name = {"cuhk03": "cuhk03-detected"}.get(line, line)
    deep = inner / "below"
    deep.mkdir()
    for given, said in ((inner, ()), (tmp_path / "outer", ("inner/, one level below",)), (deep, ("level above",))):
        data = datasets.READERS[name](name, given, "here")
        assert data.root == inner
        assert len(data.notes) == len(said)
        assert all(word in note for word, note in zip(said, data.notes, strict=True))
        assert str(tmp_path) not in "".join(data.notes)
    with pytest.raises(FileNotFoundError, match="one level up and down"):
        datasets.READERS[name](name, tmp_path / "outer" / "inner" / "below" / "lower", "here")


# Tables


def test_a_table_of_ones_own(exports, paths_file):
    data = load_dataset("mine")
    people = sorted({f"person {s.pid}" for s in SHOTS if s.pid > 0})
    number = {-1: -1, 0: 0} | {int(name[7:]): i for i, name in enumerate(people, 1)}
    assert "mine" in list_datasets()
    for split, samples in data.splits.items():
        assert read(samples) == drawn(split, pid=lambda s: number[s.pid])
    assert [data.people[i] for i in (1, 2)] == people[:2] == ["person 1", "person 10"]
    assert data.cameras == {1: "door 0", 2: "door 1", 3: "door 2"}
    assert data.train[0].path.is_file()
    code = "import reidlib, json; d = reidlib.load_dataset('mine'); print(json.dumps([d.labels, d.fingerprint()]))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert data.fingerprint() in runs.pop()


def table(folder, text, encoding="utf-8"):
    (folder / "images").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 16), (i, 9, 9)).save(folder / "images" / f"{i}.png")
    (folder / "t.csv").write_text(text, encoding=encoding)
    return folder / "t.csv"


def test_every_bad_row_is_listed_by_its_line(tmp_path):
    rows = ["path,note,pid,camid,split"]
    rows += [f'images/{i}.png,"two\nlines, one row",anna {i % 2},door,train' for i in range(3)]  # lines 2 to 7
    rows += ["images/3.png,,,door,query", "images/3.png,,bert,door,tset", "", "images/9.png,,bert,door,query"]
    rows += [
        "a,b",
        "images/4.png,,bert,door,gallery",
        "images/4.png,,bert,door,gallery,",
        *["x.png,,a,b,query"] * 3,
    ]
    file = table(tmp_path, "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="bad rows") as caught:
        tables.read_table("mine", file, "here")
    said = str(caught.value)
    assert "has 8 bad rows" in said
    assert "an empty field in lines 8" in said
    assert "a split other than train, query, gallery in lines 9" in said
    assert "other than 5 fields in lines 12, 14" in said
    assert "a file that does not exist in lines 11, 15-17" in said


def test_tables_from_a_spreadsheet_and_tables_that_are_none(tmp_path):
    file = table(tmp_path, "split, pid ,camid,path\ntrain,Zoë,k,images/0.png\ntrain,-1,k,images/1.png\n", "utf-8-sig")
    data = tables.read_table("mine", file, "here")
    assert [(s.pid, s.camid, s.path.name) for s in data.train] == [(1, 1, "0.png")]  # junk trains nobody
    assert data.people == {1: "Zoë"}
    file.write_text("path pid camid split\n")
    with pytest.raises(ValueError, match="lacks the columns path, pid, camid, split; it has path pid camid split"):
        tables.read_table("mine", file, "here")
    with pytest.raises(FileNotFoundError, match=r"none\.csv \(here\) is not a file"):
        tables.read_table("mine", tmp_path / "none.csv", "here")


ROWS = [("images/0.png", "Zoë", "Tür 1", "train"), ("images/1.png", "Bob", "Tür 1", "train"),
        ("images/2.png", "Åke", "Tür 2", "query"), ("images/3.png", "Åke", "Tür 1", "gallery")]  # fmt: skip


def spreadsheet(separator=",", ending="\n", quote="", first=""):
    rows = [("path", "pid", "camid", "split"), *ROWS]
    return first + "".join(separator.join(f"{quote}{field}{quote}" for field in row) + ending for row in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.CSV", spreadsheet()),
        ("t.csv", spreadsheet(";", "\r\n")),
        ("t.csv", spreadsheet(";", "\r\n", '"', "sep=;\r\n")),
        ("t.tsv", spreadsheet("\t")),
        ("t.txt", spreadsheet("|", "\r")),
        ("t.csv.gz", spreadsheet(",", quote='"')),
        ("t.TSV.GZ", spreadsheet("\t")),
    ],
)
def test_tables_as_spreadsheets_save_them(tmp_path, monkeypatch, encoding, name, text):
    table(tmp_path, "").unlink()
    raw = text.encode(encoding.removesuffix("-bom"))
    if encoding.endswith("-bom"):
        raw = "\ufeff".encode(encoding.removesuffix("-bom")) + raw
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    (tmp_path / "data_paths.yaml").write_text(f"mine: {name}\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    assert "mine" in list_datasets()
    data = load_dataset("mine")
    got = [(f"images/{s.path.name}", data.people[s.pid], data.cameras[s.camid], split)
           for split, samples in data.splits.items() for s in samples]  # fmt: skip
    assert got == ROWS
    assert data.notes == (("not UTF-8, so read as Windows-1252: save it as CSV UTF-8 if names look wrong",)
                          if encoding == "cp1252" else ())  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (spreadsheet().encode("utf-16-le"), "has no known encoding: save it as CSV UTF-8"),
        (b"path,pid,camid,split\nimages/0.png,\x81\x8d,b,train\n", "is neither UTF-8, UTF-16 nor Windows-1252"),
        (b"", "lacks the columns path, pid, camid, split; it has"),
        (b"\xff\xfe", "lacks the columns"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "lacks the columns"),
        (b"path,pid,camid,split\nimages\\0.png,a,b,train\n", r"1 bad rows: a path with \\ \(write /\) in lines 2"),
        (b"path,pid,camid,split\nimages/0.png,1.23457E+29,b,train\n", "that a spreadsheet has rounded .* in lines 2"),
        (b"path,pid,camid,split\n" + b"x" * 5000 + b"/0.png,a,b,train\n", "a file that does not exist in lines 2"),
        (b"path,pid,camid,split\na\0b/0.png,a,b,train\n", "a file that does not exist in lines 2"),
    ],
)
def test_what_is_no_table_is_told_how_to_save(tmp_path, raw, sentence):
    file = table(tmp_path, "")
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=sentence) as caught:
        tables.read_table("mine", file, "here")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [100, 90_000])
@pytest.mark.parametrize("stray", ['"anna', 'an"na"', '"an"na', '""anna'])
def test_a_stray_quote_is_named_by_its_row(tmp_path, rows, stray):
    lines = ["path,pid,camid,split", *["images/0.png,bob,door,train"] * (rows + 9)]
    lines[rows - 1] = f"images/0.png,{stray},door,train"
    file = table(tmp_path, "\n".join(lines))
    if stray.startswith("an"):  # inside of a field a quote is a letter
        assert {*tables.read_table("mine", file, "here").people.values()} == {"bob", stray}
        return
    with pytest.raises(ValueError, match=rf"t\.csv, line {rows}: .*; is there a stray quote\?"):
        tables.read_table("mine", file, "here")


def test_long_numbers_are_names(tmp_path):
    ids = ["9" * 30, "9" * 29 + "8"]
    rows = "".join(f"images/{i}.png,{pid},{pid},train\n" for i, pid in enumerate(ids))
    data = tables.read_table("mine", table(tmp_path, "path,pid,camid,split\n" + rows), "here")
    assert [data.people[s.pid] for s in data.train] == ids
    assert [s.pid for s in data.train] == [2, 1]


@pytest.mark.parametrize("keep", [5, 40, -9])
def test_a_damaged_archive_of_a_table_is_one_sentence(tmp_path, keep):
    file = table(tmp_path, "").with_name("t.csv.gz")
    rows = "".join(f"images/{i % 6}.png,{i * 7919 % 1000},b,train\n" for i in range(2000))
    file.write_bytes(gzip.compress(f"path,pid,camid,split\n{rows}".encode())[:keep])
    with pytest.raises(ValueError, match=r"t\.csv\.gz is not a whole gzip file"):
        tables.read_table("mine", file, "here")
    file.write_bytes(b"path,pid")
    with pytest.raises(ValueError, match=r"t\.csv\.gz is not a whole gzip file"):
        tables.read_table("mine", file, "here")


def test_damaged_files_of_cuhk_are_named(exports, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(exports["cuhk03"], root)
    before = readers.read_cuhk03("cuhk03-labelled", root, "here", boxes="labelled")
    (root / "images_labeled" / "extracted.json").write_text("{")
    assert readers.read_cuhk03("cuhk03-labelled", root, "here", boxes="labelled") == before
    protocol = root / "cuhk03_new_protocol_config_labeled.mat"
    protocol.write_bytes(protocol.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"config_labeled\.mat cannot be read: "):
        readers.read_cuhk03("cuhk03-labelled", root, "here", boxes="labelled")
    shutil.rmtree(root / "images_labeled")
    (root / "cuhk-03.mat").write_bytes((root / "cuhk-03.mat").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cuhk-03\.mat is damaged, or not the file that CUHK03's authors publish"):
        readers.read_cuhk03("cuhk03-labelled", root, "here", boxes="labelled")


def test_people_of_msmt_beyond_four_digits_are_refused(exports, tmp_path):
    """Person 10000 of train would be person 0 of test."""
    shutil.copytree(exports["msmt17-v1"], tmp_path / "M")
    with (tmp_path / "M" / "list_train.txt").open("a") as file:
        file.write("0001/0001_000_01_0303morning_0008_0.jpg 10000\n")
    with pytest.raises(ValueError, match=r"lines not of the form .*: list_train\.txt line \d+$"):
        readers.read_msmt17("msmt17", tmp_path / "M", "here")


def test_parquet_gives_what_csv_gives(exports, tmp_path):
    pandas = pytest.importorskip("pandas")
    file = exports["csv"].with_suffix(".parquet")
    try:
        pandas.read_csv(exports["csv"]).to_parquet(file)
    except ImportError:
        file.touch()
        with pytest.raises(ImportError, match="pandas needs pyarrow"):
            tables.read_table("mine", file, "here")
        return
    one, two = (tables.read_table("mine", f, "here") for f in (exports["csv"], file))
    assert one.splits == two.splits
    assert one.people == two.people


def test_parquet_columns_become_text(tmp_path, monkeypatch):
    """The same through a frame that is handed over, for where no parquet engine is installed."""
    import pandas as pd

    table(tmp_path, "")
    paths = ["images/0.png", "images/1.png", None]
    frame = pd.DataFrame(
        {"path": paths, "pid": [7, 12, 3], "camid": list("abc"), "split": ["train", "query", "gallery"]}
    )
    monkeypatch.setattr(pd, "read_parquet", lambda file: frame)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ValueError, match=r"an empty field in lines 3$"):
        tables.read_table("mine", tmp_path / "t.parquet", "here")
    frame = frame[:2]
    data = tables.read_table("mine", tmp_path / "t.parquet", "here")
    assert data.people == {1: "12", 2: "7"}
    assert [(s.pid, s.camid) for s in data.train + data.query] == [(2, 1), (1, 2)]


@pytest.mark.slow
def test_a_million_rows_take_seconds(tmp_path):
    (tmp_path / "p").mkdir()
    for i in range(1000):
        (tmp_path / "p" / f"{i}.jpg").touch()
    splits = ("train", "query", "gallery")
    with (tmp_path / "t.csv").open("w") as file:
        file.write("path,pid,camid,split\n")
        file.writelines(f"p/{i % 1000}.jpg,person {i // 20},door {i % 7},{splits[i % 3]}\n" for i in range(1_000_000))
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = tables.read_table("mine", tmp_path / "t.csv", "here")
    seconds, grown = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"a million rows: {seconds:.1f} s of CPU, {grown / 2**20:.2f} GiB more at the peak")
    assert sum(map(len, data.splits.values())) == 1_000_000
    assert seconds < 30


# Several datasets as one


def small(name, pids, camids, root=Path("/x"), **more):
    samples = tuple(Sample(root / f"{name}-{i}", p, c) for i, (p, c) in enumerate(zip(pids, camids, strict=True)))
    return ReIDDataset(name, root / name, samples[:2], samples[2:3], samples[3:], **more)


ONE = small("one", [2, 5, 7, 7, 0, -1], [1, 2, 1, 3, 2, 2])
TWO = small("two", [2, 4, 9, 9], [1, 1, 1, 4], people={2: "ann", 4: "bo", 9: "cy"}, single_shot=True)


def test_merged_people_and_cameras_never_meet():
    both = merge([ONE, TWO])
    assert [(s.pid, s.camid) for s in both.train] == [(2, 1), (5, 2), (9, 4), (11, 4)]
    assert [(s.pid, s.camid) for s in both.gallery] == [(7, 3), (0, 2), (-1, 2), (16, 7)]
    assert both.name == "one+two"
    assert [both.people[pid] for pid in (2, 9, 16)] == ["one:2", "two:ann", "two:cy"]
    assert both.cameras[4] == "two:1"
    assert list(both.labels) == [2, 5, 9, 11]
    assert both.single_shot
    assert merge([ONE]) is ONE
    with pytest.raises(ValueError, match="merged with itself: one, one"):
        merge([ONE, ONE])


def test_combineall_trains_on_everybody_and_tests_elsewhere():
    data = merge([ONE], combineall=True, tested_on=TWO)
    assert [s.pid for s in data.train] == [2, 5, 7, 7]  # no distractor, no junk
    assert [(s.pid, s.camid) for s in data.query] == [(16, 4)]
    assert (data.name, data.tested_on, data.single_shot) == ("one-combineall", "two", True)
    again = merge([ONE, TWO], tested_on=ONE)
    assert again.query == ONE.query
    assert again.train == merge([ONE, TWO]).train


def test_names_say_what_to_join(paths_file):
    data = load_dataset("dukemtmcreid+msmt17-combineall", tested_on="market1501")
    parts = [load_dataset(name) for name in ("dukemtmcreid", "msmt17", "market1501")]
    assert data.name == "dukemtmcreid+msmt17-combineall"
    people = [{s.pid for split in p.splits.values() for s in split if s.pid > 0} for p in parts[:2]]
    assert data.num_classes == sum(map(len, people))
    assert [s.path for s in data.query] == [s.path for s in parts[2].query]
    assert len({s.camid for s in (*data.train, *data.query)}) == 9
    assert load_dataset("market1501", combineall=True).num_classes == 20
    assert all(not Path(data.relative(s)).is_absolute() for s in data.train)
    with pytest.raises(ValueError, match="did you mean 'msmt17'"):
        load_dataset("market1501+msmt")
