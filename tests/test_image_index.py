"""The index of a folder on disk, its search, groups and commands; what a kill, a copy or a damaged file do to it."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import reidlib
from reidlib.workbook import image_index, own_views
from reidlib.workbook.image_index import ImageIndex, group_features
from reidlib.workbook.own_commands import extract, find, write_groups
from reidlib.workbook.threshold import Threshold, ThresholdCard


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return reidlib.Extractor(reidlib.create_model("osnet_x0_25", input_size=(64, 32)), batch_size=4)


def crop(seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (6, 3, 3), dtype=np.uint8)).resize((24, 48), Image.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "crops"
    for i in range(10):
        path = root / f"cam{i % 2}" / f"it's {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop(i).save(path)
    (root / "notes.txt").write_text("x")
    (root / "text.jpg").write_text("x")
    shutil.copy(root / "cam0" / "it's 2.png", root / "cam1" / "twin.png")
    return root


def names(hits) -> list[str]:
    return [Path(hit.path).name for hit in hits]


def test_an_index_finds_what_a_naive_search_finds(folder: Path, extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "ROWS", 1)  # a features file a batch: of 3, 4 and 3 images
    index = ImageIndex(extractor, folder, folder.parent / "index")
    with pytest.raises(ValueError, match="holds no image: call update"):
        index.find(crop(0))
    report = index.update()
    assert (report.images, report.extracted, report.removed, report.skipped) == (10, 10, 0, 3)
    assert len(list(index.path.glob("feats-*.safetensors"))) == 3
    reasons = {Path(path).name: reason for path, reason in index.skipped()}
    original = folder / "cam0" / "it's 2.png"
    assert reasons["twin.png"] == f"the same file as {original}"
    assert reasons.keys() == {"twin.png", "notes.txt", "text.jpg"}
    paths = sorted(folder.rglob("it's *.png"))
    similarity = normalize(extractor(crop(4))) @ normalize(extractor(paths)).T
    by_name = dict(zip([path.name for path in paths], similarity[0].tolist(), strict=True))
    for loaded in (False, True):
        (hits,) = (index.load() if loaded else index).find(crop(4), k=20)
        assert [h.similarity for h in hits] == pytest.approx(sorted(by_name.values(), reverse=True), abs=1e-5)
        assert [h.similarity for h in hits] == pytest.approx([by_name[name] for name in names(hits)], abs=1e-5)
    assert names(hits)[0] == "it's 4.png"


def test_only_what_is_new_or_changed_is_extracted(folder: Path, extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ImageIndex(extractor, folder, folder.parent / "index")
    index.update()
    assert index.update().extracted == 0
    os.utime(folder / "cam0" / "it's 0.png")  # touched, not changed
    (folder / "cam0" / "it's 4.png").rename(folder / "moved.png")
    assert (report := index.update()).extracted == 0
    assert (report.images, report.removed) == (10, 1)
    crop(77).save(folder / "cam0" / "it's 0.png")
    crop(78).save(folder / "new.png")
    (folder / "cam0" / "it's 2.png").unlink()  # whose copy now stands for itself
    report = index.update()
    assert (report.images, report.extracted, report.removed, report.skipped) == (11, 2, 1, 2)
    index = ImageIndex(extractor, folder, folder.parent / "index")  # as another process finds it
    for seed, name in ((77, "it's 0.png"), (78, "new.png"), (2, "twin.png"), (4, "moved.png")):
        assert names(index.find(crop(seed), k=1)[0]) == [name]
    assert index.find(crop(0), k=1)[0][0].similarity < 0.9999
    assert len(index) == 11
    for path in folder.rglob("*.*"):
        path.unlink()
    with pytest.raises(OSError, match=r"holds no file any more: the index .* is left as it was"):
        index.update()


def test_an_index_of_other_weights_or_of_something_else_is_refused(folder: Path, extractor, tmp_path: Path) -> None:
    ImageIndex(extractor, folder, tmp_path / "index").update()
    other = reidlib.Extractor(extractor.model, flip=True)
    with pytest.raises(ValueError, match="is of another input: choose another path"):
        ImageIndex(other, folder, tmp_path / "index")
    with pytest.raises(ValueError, match="is of another folder"):
        ImageIndex(extractor, tmp_path, tmp_path / "index")
    with pytest.raises(ValueError, match="exists and is no index"):
        ImageIndex(extractor, folder, folder)
    with pytest.raises(ValueError, match="name its `path`"):
        ImageIndex(extractor, folder)
    with pytest.raises(FileNotFoundError, match="name a folder"):
        ImageIndex(extractor, tmp_path / "none", tmp_path / "i")


def test_a_lost_or_damaged_features_file_is_made_again(
    folder: Path, extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_index, "ROWS", 1)
    index = ImageIndex(extractor, folder, folder.parent / "index")
    index.update()
    first, second, _ = sorted(index.path.glob("feats-*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(OSError, match="is lost or damaged: update the index"):
        len(ImageIndex(extractor, folder, index.path))
    assert index.update().extracted == 7
    assert names(index.find(crop(0), k=1)[0]) == ["it's 0.png"]
    (index.path / "manifest.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match=r"manifest.sqlite cannot be used .*: remove .*index, it will be made anew"):
        ImageIndex(extractor, folder, index.path)


_SLOW = """
import sys, time, torch, reidlib
from reidlib.workbook import image_index, own_views
image_index.ROWS = 2
torch.manual_seed(0)
extractor = reidlib.Extractor(reidlib.create_model("osnet_x0_25", input_size=(64, 32)), batch_size=1)
write = image_index._Writer.write
def slowly(self):
    write(self)
    print("written", flush=True)
    time.sleep(0.05)
image_index._Writer.write = slowly
image_index.ImageIndex(extractor, sys.argv[1], sys.argv[2]).update()
"""


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_kill_costs_little_and_breaks_nothing(folder: Path, extractor, after: int) -> None:
    path = folder.parent / "index"
    child = subprocess.Popen([sys.executable, "-c", _SLOW, folder, path], stdout=subprocess.PIPE, text=True)
    if after:
        for _ in range(after):
            child.stdout.readline()
    else:
        while not (path / "manifest.sqlite").exists():
            time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    index = ImageIndex(extractor, folder, path)
    report = index.update()
    assert report.images == 10
    assert report.extracted <= 10 - 2 * after
    assert not list(path.glob(".*part*"))
    for i in range(10):
        assert names(index.find(crop(i), k=1)[0]) == [f"it's {i}.png"]


def test_groups_are_those_of_average_linkage(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    draw = torch.Generator().manual_seed(3)
    centre = torch.randn(12, 16, generator=draw)
    person = torch.arange(12).repeat_interleave(torch.arange(1, 13))
    feats = centre[person] + 0.35 * torch.randn(len(person), 16, generator=draw)
    groups = group_features(feats, 0.7)
    options = {"n_clusters": None, "distance_threshold": 0.3, "metric": "cosine", "linkage": "average"}
    expected = AgglomerativeClustering(**options).fit_predict(normalize(feats).numpy())
    assert adjusted_rand_score(groups, expected) == 1
    assert adjusted_rand_score(groups, person) > 0.9
    assert (np.diff(np.bincount(groups)) <= 0).all()  # the largest first
    monkeypatch.setattr(image_index, "_LARGEST_GROUP", 8)  # too large for one matrix: split, never joined
    pieces = group_features(feats, 0.7)
    assert all(len(set(groups[pieces == piece])) == 1 for piece in set(pieces))


# The commands


def test_the_page_lists_others_than_the_query_and_says_what_was_skipped(folder: Path, extractor, monkeypatch) -> None:
    drawn = {}
    monkeypatch.setattr(
        own_views.plots, "found_images", lambda names, lists, **_: drawn.update(zip(names, lists, strict=True))
    )
    index = ImageIndex(extractor, folder, folder.parent / "index")
    index.update()
    query = folder / "cam0" / "it's 4.png"
    own_views.found_figure(index, [query], k=3)
    assert len(drawn[str(query)]) == 3
    assert [hit for hit in index.find([query], 4)[0] if hit.path != str(query)] == drawn[str(query)]
    table = own_views.skipped_table(index)
    assert set(table["file"]) == {"notes.txt", "text.jpg", "cam1/twin.png"}
    for path in table["file"]:
        (folder / path).unlink()
    index.update()
    assert repr(own_views.skipped_table(index)) == "every file was read"


def test_the_table_of_thresholds_is_in_words() -> None:
    card = ThresholdCard("d", "", "", "", "", 9, 9, 99, (Threshold(0.001, 0.9567, (0.9461, 0.967), 0.071),))
    (row,) = own_views.threshold_table(card).reset_index().to_dict("records")
    assert row["similarity at least"] == "0.957"
    assert row["95 % interval"] == "0.946 to 0.967"
    assert row["pairs of one person accepted"] == "7.1%"
    moved = [{"false_positive_rate": 0.02, "true_positive_rate": float("nan")}]
    assert own_views.threshold_table(card, moved).iloc[0].tolist() == ["0.1%", "2.0%", "no pairs"]
    assert "calibrate(dataset)" in own_views.threshold_table(None)


def test_tracklets_are_searched_and_grouped_by_one_feature_each(extractor, tmp_path: Path) -> None:
    folder = tmp_path / "tracks"
    folder.mkdir()
    for i in range(12):
        crop(i // 3 % 3).rotate(2 * i).save(folder / f"c{i // 6}_{i // 3:03}_{i % 3}.png")
    crop(7).save(folder / "other.png")
    index = ImageIndex(extractor, folder, tmp_path / "index")
    index.update()
    tracks = index.tracks("{camid}_{track}_*.png")
    assert [[Path(path).name for path in paths] for paths in tracks.members] == [
        *([f"c{t // 2}_{t:03}_{i}.png" for i in range(3)] for t in range(4)), ["other.png"]
    ]  # fmt: skip
    every = dict(zip(*((list(a)) for a in next((p, f) for p, _, f in index.table())), strict=True))
    query = normalize(extractor.extract([folder / "c0_001_1.png"]).feats)
    naive = {}
    for paths in tracks.members:
        mean = torch.stack([normalize(every[path], dim=0) for path in paths]).mean(0)
        naive[paths[0]] = float(query @ normalize(mean, dim=0))
    (found,) = tracks.find([folder / "c0_001_1.png"], 9)
    assert [hit.path for hit in found] == sorted(naive, key=naive.get, reverse=True)
    assert [hit.similarity for hit in found] == pytest.approx([naive[hit.path] for hit in found], abs=1e-6)
    groups = [set(group) for group in tracks.groups(0.0)]
    assert sum(map(len, groups)) == 13
    assert all(set(paths) <= group or not group & set(paths) for paths in tracks.members for group in groups)
    with pytest.raises(ValueError, match=r"names no \{track\}"):
        index.tracks("{camid}_*.png")


@pytest.fixture
def run(extractor, tiny):
    from reidlib.training.record import save_model

    run = reidlib.Run.create("r", {"model": extractor.model.name, "dataset": tiny.name}).begin()
    save_model(run, extractor.model, trained_on=tiny.name, tested_on=tiny.name, epoch=1)
    return run


def test_find_prints_lists_groups_and_what_was_skipped(folder: Path, run, capsys, tmp_path: Path) -> None:
    query = str(folder / "cam0" / "it's 4.png")
    groups, figure = tmp_path / "groups.csv", tmp_path / "found.png"
    options = ["--run", "r", "--threshold", "0.9", "--groups", str(groups), "--figure", str(figure)]
    assert find([query, str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "10 images (10 new), 3 files skipped" in printed
    assert "skipped notes.txt: no image" in printed
    assert f"   1   1.000  same  {query}" in printed
    assert figure.stat().st_size > 1000
    rows = list(csv.DictReader(groups.open()))
    assert len(rows) == 10
    assert find([query, str(folder), "--run", "r", "--threshold", "0.9"]) == 0
    assert "10 images (0 new)" in capsys.readouterr().out
    assert find([query, query, "--run", "r"]) == 0  # calibrates on the run's own dataset
    assert "The same person: similarity 1.000" in capsys.readouterr().out
    assert find([query, str(folder), *options, "--pattern", "it's {track}.png"]) == 0
    assert "10 tracklets, each listed as its first image" in capsys.readouterr().out
    assert find([query, str(folder), "--run", "r", "--pattern", "{track}*", "--faiss"]) == 1
    assert "leave one of them out" in capsys.readouterr().err


def test_commands_say_in_one_sentence_what_is_wrong(folder: Path, run, capsys) -> None:
    for argv, words in (
        (["q.jpg", str(folder / "none")], "none is not there: name a folder of images"),
        ([str(folder / "text.jpg"), str(folder), "--threshold", "1"], ""),
        (["q.jpg", str(folder), "--model", "osnet_x0_25"], "--model and --weights go together"),
        (["q.jpg", str(folder), "--run", "none"], "no trained run"),
    ):
        code = find([*argv, "--run", "r"] if "--run" not in argv and "--model" not in argv else argv)
        out, err = capsys.readouterr()
        assert code == bool(words)
        assert words in err
        assert "Traceback" not in err
        assert words or "1 of 1 images skipped" in out


def test_extract_writes_a_parquet_file_that_pandas_reads(folder: Path, run, extractor, tmp_path: Path) -> None:
    out = tmp_path / "feats.parquet"
    assert extract([str(folder), "-o", str(out), "--run", "r", "--pattern", "*{time}.png"]) == 0
    table = pq.read_table(out)
    assert table.column_names == ["path", "camera", "time", "track", "vector", "weights"]
    rows = {Path(row["path"]).name: row for row in table.to_pylist()}
    assert len(rows) == 10
    assert rows["it's 3.png"]["camera"] == "cam1"
    assert {row["weights"] for row in rows.values()} == {reidlib.Extractor(run).weights}
    expected = reidlib.Extractor(run)(folder / "cam1" / "it's 3.png")[0]
    torch.testing.assert_close(torch.tensor(rows["it's 3.png"]["vector"]), expected, rtol=1e-4, atol=1e-6)


def test_groups_are_a_table_that_can_be_loaded(folder: Path) -> None:
    images = [str(path) for path in sorted(folder.rglob("it's *.png"))]
    file = write_groups(folder.parent / "g" / "groups.csv", [images[:6], images[6:8]])
    data = reidlib.load_dataset(file, split="auto")
    assert sorted(data.people.values()) == ["person-00001", "person-00002"]
    assert len(data.samples) == 8
