"""Each declared dataset is written in miniature, as its authors name files, and read back."""

import io
import json
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from reidlib.data import __main__ as table
from reidlib.data import check
from reidlib.data.check import unmatched_queries
from reidlib.data.datasets import PUBLISHED, load_dataset
from reidlib.data.images import unreadable_images
from reidlib.data.layouts import LAYOUTS, Layout, layout_names, with_splits
from reidlib.data.loaders import eval_loader
from reidlib.data.samples import is_left_out
from reidlib.decoding import archived_names, decode_image
from reidlib.evaluation import evaluate_ranking, rank_gallery
from reidlib.models.printed.published import published
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
    "prcc": {
        "rgb/train/001/B_cropped_rgb001.jpg": ("train", 1, 2),
        "rgb/test/B/201/cropped_rgb001.jpg": ("query", 201, 2),
        "rgb/test/C/201/cropped_rgb001.jpg": ("query", 201, 3),
        "rgb/test/A/201/cropped_rgb001.jpg": ("gallery", 201, 1),
    },
    **{
        name: {
            "train/000_1_c1_000001.png": ("train", 1, 1),
            "query/151_2_c12_000123.png": ("query", 152, 12),
            "test/151_1_c3_000007.png": ("gallery", 152, 3),
            "info/cloth-change_id_test.txt": None,
        }
        for name in ("ltcc", "ltcc-changed", "ltcc-same")
    },
    "deepchange": {
        "train-set/P0001_C01_a_1.jpg": ("train", 1, 1),
        "test-set-query/P0700_C11_b_1.jpg": ("query", 700, 11),
        "test-set-gallery/P0700_C11_c_9.jpg": ("gallery", 700, 11),
        "test-set-gallery/P0700_C11_c_10.jpg": None,
        "train-set-bbox.txt": "P0001_C01_a_1.jpg,17,4,5,6,7\n",
        "test-set-query-bbox.txt": "P0700_C11_b_1.jpg,18,0,0,1,1\n",
        "test-set-gallery-bbox.txt": "P0700_C11_c_9.jpg,19,0,0,1,1\n",
    },
    **{
        f"veriwild-{size}": {
            "images/00001/000001.jpg": ("train", 1, 174),
            "images/00002/000002.jpg": ("query", 2, 1),
            "images/00002/000003.jpg": ("gallery", 2, 2),
            "train_test_split/train_list.txt": "00001/000001\n",
            f"train_test_split/test_{n}_query.txt": "00002/000002\n",
            f"train_test_split/test_{n}.txt": "00002/000003\n",
            "train_test_split/vehicle_info.txt": "id/image;Camera ID;Time\n"
            "00001/000001;174;2018-03-13\n00002/000002;1;2018\n00002/000003;2;2018\n",
        }
        for size, n in (("small", 3000), ("medium", 5000), ("large", 10000))
    },
    "dukemtmcvidreid": {
        "train/0001/0003/0001_C6_F0099_X30823.jpg": ("train", 1, 6),
        "query/0002/0001/0002C1F0001X1.jpg": ("query", 2, 1),
        "query/0002/0001/0002C1F0002X13.jpg": "frame",
        "gallery/0002/0004/0002_C8_F0001_X1.jpg": ("gallery", 2, 8),
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
        if file.suffix in (".txt", ".json"):
            file.write_text(paths[path] if isinstance(paths, dict) and paths[path] else "")
        else:
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
    line(name, folder.parent if LAYOUTS[name].needs != ("",) else folder)  # found one level below
    data = load_dataset(name)
    read = {s.path.relative_to(data.root).as_posix(): (k, s.pid, s.camid) for k, v in data.splits.items() for s in v}
    assert read == {path: meant for path, meant in FILES[name].items() if isinstance(meant, tuple)}
    assert bool(data.notes) == (LAYOUTS[name].needs != ("",))
    assert data.name == name
    everybody = load_dataset(f"{name}-combineall")
    assert len(everybody.train) == len(read)
    assert everybody.num_classes == len({pid for _, pid, _ in read.values()})


def test_every_layout_is_written_here():
    apart = {"ilids", "grid", "mars", "mars-noquery", "luperson", "luperson_nl"}
    apart |= {
        "prcc-changed-single",
        "prcc-same-single",
        *(f"vehicleid-{size}" for size in ("small", "medium", "large")),
    }
    assert set(LAYOUTS) == {*FILES, *SPLIT, *apart}


SPLIT = {
    "viper": ["cam_a/{:03d}_45.bmp", "cam_b/{:03d}_90.bmp"],
    "prid2011": ["cam_a/person_{:04d}.png", "cam_b/person_{:04d}.png"],
    "cuhk01": ["campus/{:04d}001.png", "campus/{:04d}002.png", "campus/{:04d}003.png", "campus/{:04d}004.png"],
    "ilids_vid": ["cam1/person{:03d}/cam1_1.png", "cam1/person{:03d}/cam1_2.png", "cam2/person{:03d}/cam2_1.png"],
    "prid2011_video": ["cam_a/person_{:04d}/0001.png", "cam_b/person_{:04d}/0001.png"],
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
            assert getattr(layout, part) or count[0] == 0 or layout.splits or layout.queries


def page_row(name: str, layout: Layout) -> str:
    """A row of the table of docs/data.md; the best of the zoo is by mAP, without re-ranking."""
    rows = [row for row in published() if row.tested_on == name and row.mAP is not None and not row.rerank]
    best = max(rows, key=lambda row: row.mAP, default=None)
    shown = f"{best.rank1} / {best.mAP} ({best.model})" if best else "–"
    return f"| {' | '.join((f'`{name}`', *layout.cells(), shown))} |"


def test_the_page_has_a_row_of_every_dataset():
    page = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text("utf-8")
    missing = [row for row in map(page_row, *zip(*table.all_layouts().items(), strict=True)) if row not in page]
    assert not missing


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


def test_clothes_and_tracklets_are_ids_of_a_sample_and_protocols_use_them(tmp_path, line):
    paths = [f"{folder}/{name}" for folder, name in (
        ("train", "000_1_c1_000001.png"), ("query", "009_1_c1_000001.png"),
        ("test", "009_1_c1_000002.png"), ("test", "009_1_c2_000003.png"), ("test", "009_2_c2_000004.png"),
        ("test", "009_2_c1_000005.png"), ("test", "010_1_c2_000006.png"))]  # fmt: skip
    line("ltcc", write(tmp_path / "ltcc", paths))
    kept = {"ltcc": {3, 4}, "ltcc-changed": {4}, "ltcc-same": {3}}
    for name, items in kept.items():
        data = load_dataset(name)
        (query,) = data.query
        assert query.clothes == "1"
        right = {int(s.path.stem[-1]) for s in data.gallery if s.pid == 10 and not is_left_out(query, s, data.exclude)}
        assert right == items
        feats = torch.randn(1, 4), torch.randn(5, 4)
        ids = [torch.tensor([getattr(s, of) for s in side]) for of in ("pid", "camid") for side in data.splits.values()]
        result = evaluate_ranking(*feats, ids[1], ids[2], ids[4], ids[5], **data.protocol())
        lists = rank_gallery(*feats, ids[1], ids[2], ids[4], ids[5], k=5, **data.protocol())
        found = {data.gallery[i] for i, right in zip(lists.indices[0], lists.matches[0], strict=True) if right}
        assert {int(s.path.stem[-1]) for s in found} == items
        assert result.num_valid == 1
        assert not unmatched_queries(data)
        assert data.stamp()["protocol"] == data.protocol_name
    assert load_dataset("ltcc").protocol() == {}
    assert [load_dataset(name).protocol_name for name in kept] == ["standard", "cloth-changing", "same clothes"]
    none = replace(load_dataset("ltcc-changed"), gallery=data.gallery[:2])
    assert unmatched_queries(none) == list(none.query)
    with pytest.raises(ValueError, match=r"several protocols cannot be joined .ltcc: standard, ltcc-changed: cloth"):
        load_dataset("ltcc+ltcc-changed")


def test_only_the_own_tracklet_is_left_out_in_deepchange(tmp_path, line):
    line("deepchange", write(tmp_path / "data", FILES["deepchange"]))
    data = load_dataset("deepchange")
    assert data.query[0].camid == data.gallery[0].camid
    assert (data.query[0].track, data.query[0].clothes) == ("700_18", "b")
    assert data.protocol()["other_ids"]["track"][0] != data.protocol()["other_ids"]["track"][1]
    assert not unmatched_queries(data)
    (tmp_path / "data/train-set-bbox.txt").write_text("holiday.jpg\n")
    with pytest.raises(ValueError, match=r"deepchange: .*train-set-bbox.txt holds paths not of the form train-set/P0"):
        load_dataset("deepchange")


def test_marss_queries_are_tracklets_of_the_gallery(tmp_path, line):
    names = ["00-1C1T0001F001", "0000C2T0001F001", "0002C1T0001F001", "0002C1T0001F002", "0002C2T0001F001"]
    paths = ["bbox_train/0001/0001C1T0001F001.jpg", "bbox_train/0001/0001C1T0002F001.jpg"]
    root = write(tmp_path / "mars", paths + [f"bbox_test/{name[:4]}/{name}.jpg" for name in names])
    (root / "info").mkdir()
    line("mars", root)
    with pytest.raises(FileNotFoundError, match=r"mars: looked in .*bbox_test, info/test_name\.txt, info/tracks_test"):
        load_dataset("mars")
    (root / "info/test_name.txt").write_text("".join(f"{name}.jpg\n" for name in names))
    rows = np.array([[1, 1, -1, 1], [2, 2, 0, 2], [3, 4, 2, 1], [5, 5, 2, 2]])
    savemat(root / "info/tracks_test_info.mat", {"track_test_info": rows})
    savemat(root / "info/query_IDX.mat", {"query_IDX": np.array([[3]])})
    data, apart = load_dataset("mars"), load_dataset("mars-noquery")
    assert [(s.pid, s.camid, len(s.frames)) for s in data.gallery] == [(-1, 1, 1), (0, 2, 1), (2, 1, 2), (2, 2, 1)]
    assert data.query == apart.query == (data.gallery[2],)
    assert apart.gallery == (*data.gallery[:2], data.gallery[3])
    assert [(s.track, s.frames) for s in data.train] == [("1_0001", ()), ("1_0002", ())]
    assert data.fingerprint() != apart.fingerprint()
    savemat(root / "info/query_IDX.mat", {"other": np.array([[3]])})
    with pytest.raises(ValueError, match=r"query_IDX\.mat is no MATLAB file with the variable query_IDX"):
        load_dataset("mars")


def test_published_splits_are_read_where_they_are(tmp_path, line):
    paths = [f"{folder}/{n:04d}_{cam}_1.jpeg" for n in range(1, 5) for folder, cam in (("probe", 1), ("gallery", 5))]
    root = write(tmp_path / "grid", [*paths, "gallery/0000_7_9.jpeg"])
    line("grid", root)
    assert len(load_dataset("grid-split1").train) == 4  # no list: drawn by seed
    cells = np.empty((1, 10), object)
    for n in range(10):
        cells[0, n] = {"a": 0, "b": 0, "train": np.array([1 + n % 4, 4 - n % 4]) if n != 1 else np.array([2, 4])}
    savemat(root / "features_and_partitions.mat", {"trainIdxAll": cells})
    data = load_dataset("grid-split2")
    assert {s.pid for s in data.train} == {2, 4}
    assert [s.pid for s in data.query] == [1, 3]
    assert sorted(s.pid for s in data.gallery) == [0, 1, 3]

    root = write(tmp_path / "vid/i-LIDS-VID/sequences", [p.format(n) for n in (1, 5, 7, 9) for p in SPLIT["ilids_vid"]])
    line("ilids_vid", root)
    (tmp_path / "vid/train-test people splits").mkdir()
    order = np.array([[3, 1, 2, 4]] * 10)
    savemat(tmp_path / "vid/train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": order})
    data = load_dataset("ilids_vid-split4")
    assert {s.pid for s in data.train} == {5, 9}
    assert [(s.pid, len(s.frames)) for s in data.query] == [(1, 2), (7, 2)]

    root = write(tmp_path / "prid/multi_shot", [p.format(n) for n in (1, 2, 3, 201) for p in SPLIT["prid2011_video"]])
    line("prid2011_video", root)
    split = {"train": ["person_0002"], "test": ["person_0001"]}
    (tmp_path / "prid/splits_prid2011.json").write_text(json.dumps([split] * 10))
    data = load_dataset("prid2011_video-split10")
    assert [{s.pid for s in split} for split in data.splits.values()] == [{2}, {1}, {1}]


def test_one_gallery_image_a_person_is_drawn(tmp_path, line):
    files = {f"image/{n:07d}.jpg": None for n in range(9)}
    lists = {"train_list": "0000000 5", "test_list_800": "\n".join(f"{n:07d} {n // 3}" for n in range(1, 9))}
    line("vehicleid", write(tmp_path / "v", files | {f"train_test_split/{k}.txt": v for k, v in lists.items()}))
    splits = [load_dataset(f"vehicleid-small-split{n}") for n in range(1, 11)]
    for data in splits:
        assert [s.pid for s in data.gallery] == [0, 1, 2]
        assert len(data.query) == 5
        assert not {s.path for s in data.query} & {s.path for s in data.gallery}
        assert (data.exclude, len(data.train)) == ((), 1)
        assert {s.camid for s in data.query} == {1}
        assert {s.camid for s in data.gallery} == {2}
    assert len({s.gallery for s in splits}) > 3
    with pytest.raises(FileNotFoundError, match=r"vehicleid-large-split1: .*train_test_split/test_list_2400\.txt"):
        load_dataset("vehicleid-large-split1")

    line("ilids", write(tmp_path / "ilids", [f"Persons/{n:04d}{i:03d}.jpg" for n in range(1, 7) for i in (1, 2, 3)]))
    data = load_dataset("ilids-split1")
    assert [len(split) for split in data.splits.values()] == [9, 3, 3]
    assert [s.pid for s in data.query] == [s.pid for s in data.gallery]
    assert not set(data.query) & set(data.gallery)
    assert not unmatched_queries(data)

    paths = [f"rgb/test/{cam}/20{n}/{i}.jpg" for n in (1, 2) for i in (1, 2, 3) for cam in "ABC"]
    line("prcc", write(tmp_path / "prcc", [*paths, "rgb/train/001/A_1.jpg"]))
    data = load_dataset("prcc-changed-single-split3")
    assert [s.pid for s in data.gallery] == [201, 202]
    assert len(data.query) == 6


def test_archives_are_read_where_they_lie(tmp_path, line):
    content = io.BytesIO()
    Image.new("RGB", (4, 8), (200, 10, 30)).save(content, "PNG")
    keys = {"lup_lmdb": ["01_02_0003_00000004", "01_02_0003_00000005"], "lmdb": ["00007_000002_0000003_04.jpg"]}
    for folder, names in keys.items():
        with lmdb.open(str(tmp_path / folder)) as archive, archive.begin(write=True) as transaction:
            for name in names:
                transaction.put(name.encode(), content.getvalue())
    line("luperson", tmp_path)
    line("luperson_nl", tmp_path)
    data, noisy = load_dataset("luperson"), load_dataset("luperson_nl")
    assert [(s.path.name, s.pid, s.camid) for s in data.train] == [(key, 0, 1_020_004) for key in keys["lup_lmdb"]]
    assert [(s.pid, s.camid) for s in noisy.train] == [(3, 7)]
    (batch,) = eval_loader(data.train, (8, 4))
    assert batch.images.shape == (2, 3, 8, 4)
    assert batch.images[0, :, 0, 0].tolist() == [200, 10, 30]
    assert not unreadable_images(data.train)
    findings = {f.question: f for f in check.check_dataset(data, check.scan_images(data))}
    assert findings["Is every file there?"].found == "all there"
    assert findings["Can every image be read?"].found == "all of them"
    assert check.readable(data).train == data.train
    with pytest.raises(OSError, match=r"cannot read image .*00000009: the file does not exist"):
        decode_image(tmp_path / "lup_lmdb/01_02_0003_00000009")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/data.mdb").write_bytes(b"no archive at all")
    with pytest.raises(OSError, match="bad is no LMDB archive"):
        archived_names(tmp_path / "bad")
