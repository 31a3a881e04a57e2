"""Images of one's own as datasets: folders and tables with or without labels, names that say the camera, splits."""

from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

import reidlib
from reidlib.data.own_images import compile_pattern
from reidlib.data.tables import write_table
from reidlib.evaluation.ranking import Ids, Pairs


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (len(name) * 3, 7, 9)).save(folder / name)
    return folder


def crops(folder: Path, people: int = 6, cameras: tuple[str, ...] = ("door", "hall"), each: int = 2) -> Path:
    return images(folder, *(f"p{p}/{c}_{i}.jpg" for p in range(people) for c in cameras for i in range(each)))


def test_a_flat_folder_is_a_gallery_of_nobody(tmp_path: Path) -> None:
    folder = images(tmp_path / "my crops", "b.jpg", "a.PNG", ".hidden.jpg")
    (folder / "notes.txt").write_text("x")
    data = reidlib.load_dataset(folder)
    assert (data.name, data.train, data.query) == ("my-crops", (), ())
    assert [(s.path.name, s.pid, s.camid) for s in data.gallery] == [("a.PNG", 0, 0), ("b.jpg", 0, 0)]
    assert any("no labels" in note for note in data.notes)
    assert any("cameras are unknown" in note for note in data.notes)
    assert any("1 files are no images by their ending: notes.txt" in note for note in data.notes)
    assert reidlib.load_dataset(str(folder)) == data


def test_sub_folders_are_cameras_or_people_as_the_user_says(tmp_path: Path) -> None:
    folder = crops(tmp_path / "c")
    data = reidlib.load_dataset(folder)
    assert set(data.cameras.values()) == {f"p{p}" for p in range(6)}
    assert {s.pid for s in data.gallery} == {0}
    assert "the 6 sub-folders are read as cameras; if they are people, say people='folders'" in data.notes
    named = reidlib.load_dataset(folder, people="folders", pattern="{camid}_*")
    assert set(named.people.values()) == {f"p{p}" for p in range(6)}
    assert set(named.cameras.values()) == {"door", "hall"}
    assert named == reidlib.load_dataset(folder, pattern="{pid}/{camid}_*")
    nested = images(tmp_path / "n", *(f"cam{c}/anna/{i}.jpg" for c in (1, 2) for i in (1, 2)))
    assert set(reidlib.load_dataset(nested, people="folders").cameras.values()) == {"cam1", "cam2"}
    images(folder, "loose.jpg")
    with pytest.raises(ValueError, match=r"1 of 25 images .* lie in no sub-folder, so in nobody's, such as loose\.jpg"):
        reidlib.load_dataset(folder, people="folders")
    with pytest.raises(ValueError, match="unknown value of people 'folder': did you mean 'folders'"):
        reidlib.load_dataset(folder, people="folder")


def test_names_say_camera_and_time(tmp_path: Path) -> None:
    data = reidlib.load_dataset(images(tmp_path / "a", "c1_20240131T0900_7.jpg", "c2_20240131T0901.jpg"))
    assert [(data.cameras[s.camid], s.time) for s in data.gallery] == [("c1", "20240131T0900"), ("c2", "20240131T0901")]
    folder = images(tmp_path / "b", "door_0900_x.jpg", "hall_0901_y.jpg")
    data = reidlib.load_dataset(folder, pattern="{camid}_{time}_*.jpg")
    assert [(data.cameras[s.camid], s.time) for s in data.gallery] == [("door", "0900"), ("hall", "0901")]
    with pytest.raises(ValueError, match=r"1 of 3 names are not of the form \{camid\}_\{time\}_\*\.jpg: odd\.png"):
        reidlib.load_dataset(images(folder, "odd.png"), pattern="{camid}_{time}_*.jpg")
    with pytest.raises(ValueError, match=r"must have one or more of \{pid\}, \{camid\}, \{track\}, \{time\}"):
        compile_pattern("{person}_*.jpg")
    market = images(tmp_path / "m", "0002_c1s1_000451_03.jpg", "0002_c2s1_000451_03.jpg")
    assert any("pattern='{pid}_c{camid}s*'" in note for note in reidlib.load_dataset(market).notes)
    read = reidlib.load_dataset(market, pattern="{pid}_c{camid}s*")
    assert (len(read.people), dict(read.cameras)) == (1, {1: "1", 2: "2"})


def test_the_rule_splits_by_person_with_queries_from_other_cameras(tmp_path: Path) -> None:
    folder = crops(tmp_path / "c", people=9)
    images(folder, "alone/door_1.jpg", "still/door_1.jpg", "still/door_2.jpg", "junk/door_5.jpg")
    data = reidlib.load_dataset(folder, people="folders", pattern="{camid}_*", split="auto", seed=3)
    train, test = {s.pid for s in data.train}, {s.pid for s in (*data.query, *data.gallery)} - {-1}
    assert not train & test
    assert len(train) == 5
    assert len(test) == 6
    assert len(data.samples) == 9 * 4 + 4
    query, gallery = data.query, data.gallery
    assert query
    ids = Ids(*([getattr(s, of) for s in side] for of in ("pid", "camid") for side in (query, gallery)))
    pairs = Pairs.of(ids, "cpu")
    assert set(pairs.query[pairs.kept].tolist()) == set(range(len(query)))  # each has a match from another camera
    again = reidlib.load_dataset(folder, people="folders", pattern="{camid}_*", split="auto", seed=3)
    assert again == data
    other = reidlib.load_dataset(folder, people="folders", pattern="{camid}_*", split="auto", seed=4)
    assert other != data


def test_people_of_one_camera_are_tested_all_the_same(tmp_path: Path) -> None:
    data = reidlib.load_dataset(crops(tmp_path / "c", cameras=("x",)), people="folders")
    assert len(data.query) == 3
    cameras = defaultdict(set)
    for side in ("query", "gallery"):
        cameras[side] |= {s.camid for s in getattr(data, side)}
    assert not cameras["query"] & cameras["gallery"]
    assert any("as if another one had taken them" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"split='auto' is by person, and nobody is named: give people='folders'"):
        reidlib.load_dataset(tmp_path / "c", split="auto")
    with pytest.raises(ValueError, match="unknown split 'automatic'"):
        reidlib.load_dataset(tmp_path / "c", people="folders", split="automatic")


def test_folders_of_the_splits_are_the_splits(tmp_path: Path) -> None:
    names = [f"{split}/{who}/c{c}_1_{i}.jpg" for split, who in (("train", "a"), ("query", "b"), ("gallery", "b"))
             for c in (1, 2) for i in (1, 2)]  # fmt: skip
    data = reidlib.load_dataset(images(tmp_path / "d", *names), people="folders")
    assert [len(s) for s in data.splits.values()] == [4, 4, 4]
    assert {data.people[s.pid] for s in data.query} == {"b"}
    assert set(data.cameras.values()) == {"c1", "c2"}


def test_a_table_of_paths_is_enough_and_further_columns_say_more(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    table = tmp_path / "list.csv"
    table.write_text("path\na.jpg\nb.jpg\n")
    data = reidlib.load_dataset(table)
    assert (data.name, len(data.gallery), {s.pid for s in data.gallery}) == ("list", 2, {0})
    table.write_text("path,camid,time,track\na.jpg,door,9:00,t1\nb.jpg,hall,,\n")
    data = reidlib.load_dataset(table)
    assert [(data.cameras[s.camid], s.time, s.track) for s in data.gallery] == [
        ("door", "9:00", "t1"),
        ("hall", "", ""),
    ]
    table.write_text("path,pid\na.jpg,anna\nb.jpg,anna\n")
    with pytest.raises(ValueError, match=r"lacks the column split .*split='auto'"):
        reidlib.load_dataset(table)
    assert [len(s) for s in reidlib.load_dataset(table, split="auto").splits.values()] == [0, 1, 1]
    table.write_text("path,pid\na.jpg,anna\nb.jpg,\n")
    with pytest.raises(ValueError, match="an empty field in lines 3"):
        reidlib.load_dataset(table, split="auto")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Filename,pid\na.jpg,1\n", r"lacks the columns path, .*is 'Filename' the path\? Call it path"),
        ("a.jpg\nb.jpg\n", "the first line looks like a row: put a header above it"),
    ],
)
def test_a_table_without_a_path_is_told_what_was_meant(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        reidlib.load_dataset(tmp_path / "list.csv")


def test_wrong_paths_are_told_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images(tmp_path / "crops", "a.jpg")
    with pytest.raises(FileNotFoundError, match=rf"no folder or table .*did you mean {folder}\?"):
        reidlib.load_dataset(tmp_path / "crop")
    with pytest.raises(FileNotFoundError, match=rf"of it there is {tmp_path}"):
        reidlib.load_dataset(tmp_path / "no" / "crops")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no image .* found nothing"):
        reidlib.load_dataset(tmp_path / "empty")
    market = images(tmp_path / "M", "bounding_box_train/a.jpg", "bounding_box_test/a.jpg", "query/a.jpg")
    with pytest.raises(ValueError, match=r"has the layout of Market-1501 .* write `market1501: "):
        reidlib.load_dataset(market)
    with pytest.raises(ValueError, match=r"market1501 has a layout of its own: split"):
        reidlib.load_dataset("market1501", split="auto")
    monkeypatch.chdir(tmp_path)
    assert reidlib.load_dataset("crops").root == folder
    (tmp_path / "data_paths.yaml").write_text("mine: crops\nsynthetic: data\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    assert len(reidlib.load_dataset("mine").gallery) == 1


def test_a_written_table_reads_as_the_same_dataset(tmp_path: Path) -> None:
    folder = crops(tmp_path / "c")
    images(folder, "distractor/hall_9.jpg", "junk/hall_9.jpg")
    data = reidlib.load_dataset(folder, people="folders", pattern="{camid}_*", split="auto")
    read = reidlib.load_dataset(write_table(data, tmp_path / "deep" / "t.csv"))
    for split, samples in data.splits.items():
        expected = [(s.path.resolve(), data.people.get(s.pid, s.pid), data.cameras[s.camid]) for s in samples]
        found = [(s.path.resolve(), read.people.get(s.pid, s.pid), read.cameras[s.camid]) for s in read.splits[split]]
        assert found == expected
