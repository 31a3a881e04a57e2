"""Each declared dataset is written in miniature, as its authors name files, and read back."""

from pathlib import Path

import pytest
from PIL import Image

from reidlib.data import __main__ as table
from reidlib.data.datasets import PUBLISHED, load_dataset
from reidlib.data.layouts import LAYOUTS, layout_names, with_splits
from reidlib.workbook.views import split_means

# name → path → (split, pid, camid), or None for an image that is left out
FILES = {
    "occluded_dukemtmc": {
        "bounding_box_train/0005_c2_f0046985.jpg": ("train", 5, 2),
        "query/0007_c1_f0046985.jpg": ("query", 7, 1),
        "bounding_box_test/0007_c8_f0000001.jpg": ("gallery", 7, 8),
    },
    "p_dukemtmc": {
        "train/occluded_body_images/0002/0002_c1_f0047334.jpg": ("train", 2, 1),
        "train/whole_body_images/0002/0002_c1_f0047394.jpg": ("train", 2, 2),
        "test/occluded_body_images/0003/0003_c2_f1.jpg": ("query", 3, 1),
        "test/whole_body_images/0003/0003_c2_f2.jpg": ("gallery", 3, 2),
    },
    "occluded_reid": {
        "occluded_body_images/001/001_01.tif": ("query", 1, 1),
        "whole_body_images/001/001_01.tif": ("gallery", 1, 2),
        "whole_body_images/002_01.jpg": ("gallery", 2, 2),
    },
    "partial_reid": {
        "partial_body_images/001_001.jpg": ("query", 1, 1),
        "whole_body_images/001_001.jpg": ("gallery", 1, 2),
    },
    "partial_ilids": {"partial_body_images/007.jpg": ("query", 7, 1), "whole_body_images/007.jpg": ("gallery", 7, 2)},
    "cuhk02": {
        "P1/cam1/001_01.png": ("train", 10_001, 1),
        "P4/cam2/001_03.png": ("train", 40_001, 8),
        "P2/cam1/1_1.png": ("train", 20_001, 3),
        "P3/cam2/1_1.png": ("train", 30_001, 6),
        "P5/cam1/001_01.png": ("query", 50_001, 9),
        "P5/cam2/001_03.png": ("gallery", 50_001, 10),
    },
    "cuhk_sysu": {
        "cropped_images/p11934_s00007_2.jpg": ("train", 11934, 1),
        "cropped_images/p00001_n01_s00001_hard0.png": ("train", 1, 1),
    },
    "sensereid": {"test_probe/00000_1.jpg": ("query", 1, 1), "test_gallery/00000_2.jpg": ("gallery", 1, 2)},
    "celeb_reid": {
        "train/1_2_0.jpg": ("train", 1, 1),
        "query/1_1_0.jpg": ("query", 20_001, 1),
        "gallery/1_3_0.jpg": ("gallery", 20_001, 2),
    },
    "last": {
        "train/000000/000000_000003_1.jpg": ("train", 1, 1),
        "test/query/000000_000001.jpg": ("query", 20_001, 1),
        "test/gallery/000000/000000_000002.jpg": ("gallery", 20_001, 2),
        "val/query/000009_1.jpg": None,
    },
    "prcc-changed": {
        "rgb/train/001/A_cropped_rgb001.jpg": ("train", 1, 1),
        "rgb/train/001/C_cropped_rgb001.jpg": ("train", 1, 3),
        "rgb/test/C/201/cropped_rgb001.jpg": ("query", 201, 3),
        "rgb/test/A/201/cropped_rgb001.jpg": ("gallery", 201, 1),
        "rgb/test/B/201/cropped_rgb001.jpg": None,
    },
    "prcc-same": {
        "rgb/train/001/B_cropped_rgb001.jpg": ("train", 1, 2),
        "rgb/test/B/201/cropped_rgb001.jpg": ("query", 201, 2),
        "rgb/test/A/201/cropped_rgb001.jpg": ("gallery", 201, 1),
    },
    "randperson": {"subset/000000_s10_c01_f0000007.jpg": ("train", 1, 1002)},
    "clonedperson": {
        "train/700000_s02_c00_f0000007.jpg": ("train", 700_001, 201),
        "test/query/705227_s06_c01_f1.jpg": ("query", 705_228, 602),
        "test/gallery/705227_s12_c01_f1.jpg": ("gallery", 705_228, 1202),
    },
    "unrealperson": {
        "unreal_v1.2/images/0003_c004_12.jpg": ("train", 200_003, 1004),
        "unreal_v4.1/images/3_c021_1.jpg": ("train", 100_003, 4021),
    },
    "personx": {
        "bounding_box_train/0001_c3s1_33.jpg": ("train", 1, 3),
        "query/0002_c4s1_1.jpg": ("query", 2, 4),
        "bounding_box_test/0002_c12s1_36.jpg": ("gallery", 2, 12),
    },
    "veri776": {
        "image_train/0001_c001_00016450_0.jpg": ("train", 1, 1),
        "image_query/0002_c020_00016450_0.jpg": ("query", 2, 20),
        "image_test/0002_c002_00016450_0.jpg": ("gallery", 2, 2),
    },
}


def write(folder: Path, paths) -> Path:
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(file)
    return folder


@pytest.fixture
def line(tmp_path, monkeypatch):
    """A function that names a folder in data_paths.yaml."""
    file = tmp_path / "data_paths.yaml"
    monkeypatch.setenv("REID_DATA_PATHS", str(file))

    def add(name: str, folder: Path) -> None:
        with file.open("a") as text:
            text.write(f"{name.partition('-')[0]}: {folder}\n")

    return add


@pytest.mark.parametrize("name", FILES)
def test_every_path_is_read_as_its_authors_mean_it(name, tmp_path, line):
    folder = write(tmp_path / "data", FILES[name])
    line(name, folder.parent if LAYOUTS[name].folders != ("",) else folder)  # found one level below
    data = load_dataset(name)
    read = {s.path.relative_to(data.root).as_posix(): (k, s.pid, s.camid) for k, v in data.splits.items() for s in v}
    assert read == {path: meant for path, meant in FILES[name].items() if meant}
    assert bool(data.notes) == (LAYOUTS[name].folders != ("",))
    assert data.name == name
    everybody = load_dataset(f"{name}-combineall")
    assert len(everybody.train) == len(read)
    assert everybody.num_classes == len({pid for _, pid, _ in read.values()})


def test_every_layout_is_written_above_or_has_splits():
    assert set(LAYOUTS) == {*FILES, "viper", "prid2011", "cuhk01"}


SPLIT = {
    "viper": ["cam_a/{:03d}_45.bmp", "cam_b/{:03d}_90.bmp"],
    "prid2011": ["cam_a/person_{:04d}.png", "cam_b/person_{:04d}.png"],
    "cuhk01": ["campus/{:04d}001.png", "campus/{:04d}002.png", "campus/{:04d}003.png", "campus/{:04d}004.png"],
}


@pytest.mark.parametrize("name", SPLIT)
def test_ten_splits_are_drawn_by_seed_and_nobody_is_in_train_and_test(name, tmp_path, line):
    line(name, write(tmp_path / "data", [path.format(n) for n in range(1, 21) for path in SPLIT[name]]))
    splits = [load_dataset(f"{name}-split{n}") for n in range(1, 11)]
    for data in splits:
        train, query, gallery = ({s.pid for s in split} for split in data.splits.values())
        assert len(train) == len(query) == 10
        assert query == gallery
        assert not train & query
        assert {s.camid for s in data.query} == {1}
        assert {s.camid for s in data.gallery} == {2}
    assert len({tuple(s.train) for s in splits}) == 10
    assert load_dataset(f"{name}-split3").train == splits[2].train
    assert splits[2].version == "split 3"


def test_a_name_without_its_split_means_all_ten_and_their_mean_is_shown():
    names = with_splits(["viper", "last", "market1501"])
    assert names == [*(f"viper-split{n}" for n in range(1, 11)), "last", "market1501"]
    rows = {name: {"rank1": n / 10, "mAP": 0.5} for n, name in enumerate(names)}
    table = split_means(rows, ("rank1", "mAP"))
    assert table.to_dict("index") == {"viper, mean of 10 splits": {"Rank-1": "45.0 ± 30.3", "mAP": "50.0 ± 0.0"}}
    assert split_means({"viper-split1": rows["last"], "last": rows["last"]}, ("mAP",)).empty


def test_people_of_prid_who_only_share_a_number_are_left_out_or_only_in_the_gallery(tmp_path, line):
    paths = [f"cam_{cam}/person_{n:04d}.png" for cam in "ab" for n in (1, 2, 199, 200, 201, 385)]
    line("prid2011", write(tmp_path / "data", [*paths, "cam_b/person_0749.png"]))
    data = load_dataset("prid2011-split1")
    assert {s.pid for s in (*data.train, *data.query)} == {1, 2, 199, 200}
    assert {201, 385, 749} <= {s.pid for s in data.gallery}
    assert len(data.gallery) == len(data.query) + 3


def test_a_training_set_is_tested_on_another(tmp_path, line):
    for name in ("randperson", "veri776"):
        line(name, write(tmp_path / name, FILES[name]))
    data = load_dataset("randperson", tested_on="veri776")
    assert (len(data.train), len(data.query), len(data.gallery)) == (1, 1, 1)
    assert data.tested_on == "veri776"


def test_what_does_not_fit_is_named(tmp_path, line):
    line("celeb_reid", write(tmp_path / "celeb", FILES["celeb_reid"]))
    write(tmp_path / "celeb", ["query/holiday.jpg", "query/more.jpg"])
    with pytest.raises(ValueError, match=r"celeb_reid: .*query holds paths not of the form train/1_1_0\.jpg: holiday"):
        load_dataset("celeb_reid")
    line("prcc", write(tmp_path / "prcc", ["train/001/A.jpg"]))
    with pytest.raises(FileNotFoundError, match=r"prcc-same: looked in .*rgb/train, rgb/test/B, rgb/test/A"):
        load_dataset("prcc-same")
    line("viper", write(tmp_path / "viper", ["cam_a/001_0.bmp", "cam_b/001_90.bmp"]))
    with pytest.raises(ValueError, match="viper-split1: 1 people are in both cameras"):
        load_dataset("viper-split1")


def test_published_counts_fit_together():
    for name, (layout, _) in layout_names().items():
        assert PUBLISHED[name] == layout.counts
        for part, count in zip(("train", "query", "gallery"), layout.counts, strict=True):
            assert bool(getattr(layout, part)) or count[0] == 0 or layout.splits


def test_the_page_names_every_layout():
    page = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text("utf-8")
    for name, layout in LAYOUTS.items():
        height, width = layout.size
        assert f"| `{name}` | {layout.title} | {height} × {width} | {layout.rule} | {layout.terms} |" in page


def test_the_table_says_what_is_here(tmp_path, line, capsys, monkeypatch):
    line("veri776", write(tmp_path / "cars", FILES["veri776"]))
    line("last", tmp_path / "gone")
    monkeypatch.setattr("sys.argv", ["reidlib.data"])
    table.main()
    shown = {row.split("  ")[0]: row for row in capsys.readouterr().out.splitlines()}
    assert shown["veri776"].endswith(str(tmp_path / "cars"))
    assert shown["last"].endswith(f"missing: {tmp_path / 'gone'}")
    assert "37,778 / 1,678 / 11,579" in shown["veri776"]
    assert "mean over ten random splits" in shown["viper-split1 to 10"]
    assert "market1501" in shown
