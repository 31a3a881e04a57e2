"""Published datasets whose paths or lists say person and camera: a declaration each.

A `Layout` says which folders or lists make each split, how a path is read, what its authors count, and by which rule
papers score it. Counts, rules and terms are those that the authors or the readers in wide use state; None is a number
that nobody states. Sets of ten splits without a published list of them (VIPeR, PRID-2011, CUHK01, i-LIDS) get splits
drawn by seed, as torchreid draws its own: scores are means over the ten. Where a set has no cameras and its rule leaves
nothing out, queries are camera 1 and the gallery camera 2.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reidlib.data.own_images import walk_folder
from reidlib.data.readers import FOLDERS, find_root, some
from reidlib.data.samples import PROTOCOLS, SPLITS, ReIDDataset, Sample, frames_of
from reidlib.decoding import archived_names

TEST = 20_000  # added to the pids of test where its people are numbered from 1 as those of train are
Split = tuple[set[int], set[int]]  # pids of train and of test
Counts = tuple[int | None, int | None, int | None]  # images, people, cameras
_PID = {"pid": 1}


@dataclass(frozen=True)
class Part:
    """Images of a split.

    Attributes:
        folder: Where they lie; or an LMDB archive, a folder with data.mdb.
        path: A regular expression that the beginning of each path below `folder` matches, or of each line of `listed`;
            an image is left out where it matches without its group "pid". Its groups "track" and "clothes" name both.
        pid: The person's number as a sum: group of `path` → factor; "" → a constant.
        camid: The camera's number likewise; one number where paths do not say it; or a table whose lines say it,
            `<line of the list>;<camera>;…`.
        listed: A list of the images, a line each, in place of all images of `folder`.
        file: Path from `folder` of a listed image, with groups of `path` in braces.
        clothes: The clothes where paths do not say them.
    """

    folder: str
    path: str
    pid: Mapping[str, int] = field(default_factory=lambda: _PID)
    camid: Mapping[str, int] | int | str = field(default_factory=lambda: {"cam": 1})
    listed: str = ""
    file: str = ""
    clothes: str = ""


@dataclass(frozen=True)
class Layout:
    """A published dataset.

    Attributes:
        title: Its name in papers.
        example: A path, for the message where one does not parse.
        train, query, gallery: The parts of each split; a set for training has no others.
        counts: As published, of the three splits.
        size: Input height and width that papers use.
        rule: How papers score it, where it is not Market-1501's rule on one split.
        terms: Of use, and whether it was withdrawn.
        page: Where to get it.
        exclude: The protocol, one of `PROTOCOLS`.
        also: Further files that have to be in the root.
        tracks: Whether query and gallery are tracklets; training images are single frames.
        queries: Which tracklets of the gallery are queries too: the root → names of their first images.
        apart: Whether those are not in the gallery then.
        people: With `splits`: how many of those who are in query and gallery are trained on.
        splits: Number of random splits; the names end in "-split1" and so on.
        published: The people of each split where a list says it: (root, split, people) → pids of train and of test, or
            None where the list is not there.
        shot: What is drawn in each split: "gallery": one gallery image a person stays; "rest": likewise, and the others
            are the queries; "pair": one gallery image and one query a person.
    """

    title: str
    example: str
    train: tuple[Part, ...] = ()
    query: tuple[Part, ...] = ()
    gallery: tuple[Part, ...] = ()
    counts: tuple[Counts, Counts, Counts] = ((None,) * 3,) * 3
    size: tuple[int, int] = (256, 128)
    rule: str = ""
    terms: str = "terms not found"
    page: str = "no address known"
    exclude: str = "standard"
    also: tuple[str, ...] = ()
    tracks: bool = False
    queries: "Callable[[Path], set[str]] | None" = None
    apart: bool = False
    people: int = 0
    splits: int = 0
    published: "Callable[[Path, int, list[int]], Split | None] | None" = None
    shot: str = ""

    def cells(self) -> tuple[str, ...]:
        """For a table: title; people, images and cameras of train, query and gallery; size; rule; terms; page."""
        images, people, cameras = (
            " / ".join("?" if count is None else f"{count:,}" for count in counts)
            for counts in zip(*self.counts, strict=True)
        )
        size = f"{self.size[0]} × {self.size[1]}"
        rule = "; ".join(filter(None, (self.exclude * (self.exclude != "standard"), self.rule)))
        return self.title, people, images, cameras, size, rule or "standard", self.terms, self.page

    @property
    def parts(self) -> tuple[tuple[str, Part], ...]:
        """Each part with its split."""
        return tuple((split, part) for split in SPLITS for part in getattr(self, split))

    @property
    def needs(self) -> tuple[str, ...]:
        """What has to be in the root: folders, and lists."""
        tables = (p.camid for _, p in self.parts if isinstance(p.camid, str))
        return tuple(dict.fromkeys([*(x for _, p in self.parts for x in (p.folder, p.listed)), *tables, *self.also]))


def _market(pattern: str) -> dict[str, tuple[Part, ...]]:
    """Train, query and gallery in the folders of Market-1501."""
    return {split: (Part(folder, pattern),) for split, folder in zip(SPLITS, FOLDERS, strict=True)}


def _pair(query: str, gallery: str, pattern: str) -> dict[str, tuple[Part, ...]]:
    """Query and gallery of a set without cameras."""
    return {"query": (Part(query, pattern, camid=1),), "gallery": (Part(gallery, pattern, camid=2),)}


def _protocols(name: str, layout: Layout) -> dict[str, Layout]:
    """A set with labels of clothes under its three protocols."""
    endings = {"standard": "", "cloth-changing": "-changed", "same clothes": "-same"}
    return {
        f"{name}{ending}": replace(layout, title=layout.title + f", {rule}" * bool(ending), exclude=rule)
        for rule, ending in endings.items()
    }


def _found(root: Path, name: str) -> Path | None:
    """A file beside the images or up to two levels above, or None."""
    return next((folder / name for folder in (root, *root.parents[:2]) if (folder / name).is_file()), None)


def _matrix(path: Path, key: str) -> Any:
    """A variable of a MATLAB file."""
    from scipy.io import loadmat

    try:
        return loadmat(path)[key]
    except (KeyError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is no MATLAB file with the variable {key}: {error}") from error


def _grid_split(root: Path, split: int, people: list[int]) -> Split | None:
    """The third field of the cell that GRID's authors publish for each of ten splits: pids of train."""
    if not (path := _found(root, "features_and_partitions.mat")):
        return None
    train = {int(n) for n in _matrix(path, "trainIdxAll")[0][split - 1][0][0][2][0]}
    return train, set(people) - train


def _ilids_split(root: Path, split: int, people: list[int]) -> Split | None:
    """A row of 300 positions among the sorted people: the first half tests (Wang et al., ECCV 2014)."""
    if not (path := _found(root, "train-test people splits/train_test_splits_ilidsvid.mat")):
        return None
    row = [people[int(n) - 1] for n in _matrix(path, "ls_set")[split - 1]]
    return set(row[len(row) // 2 :]), set(row[: len(row) // 2])


def _prid_split(root: Path, split: int, people: list[int]) -> Split | None:
    """torchreid's list: names of the folders of 178 people."""
    if not (path := _found(root, "splits_prid2011.json")):
        return None
    row = json.loads(path.read_text("utf-8"))[split - 1]
    train, test = ({int(name.rpartition("_")[2]) for name in row[part]} for part in ("train", "test"))
    return train, test


def _mars_queries(root: Path) -> set[str]:
    """Names of the first images of the tracklets that ask."""
    names = _lines(root / "info/test_name.txt")
    tracks = _matrix(root / "info/tracks_test_info.mat", "track_test_info")
    rows = _matrix(root / "info/query_IDX.mat", "query_IDX").ravel()
    return {names[int(tracks[int(row) - 1][0]) - 1] for row in rows}


_DUKE = r"(?P<pid>\d+)_c(?P<cam>\d+)_"
_UNREAL = r"(?P<pid>\d+)_s(?P<scene>\d+)_c(?P<cam>\d+)_"  # its people are counted from 0
_BY_SCENE = {"pid": {"pid": 1, "": 1}, "camid": {"scene": 100, "cam": 1, "": 1}}
_LTCC = r"(?P<pid>\d+)_(?P<clothes>\d+)_c(?P<cam>\d+)_"
_FROM_0 = {"pid": 1, "": 1}  # people are counted from 0, which is nobody here
_DEEPCHANGE = r"(?P<file>[A-Za-z]*(?P<pid>\d+)_[A-Za-z]*(?P<cam>\d+)_(?P<clothes>[^_,]+)[^,]*),\s*(?P<track>[^,]+)"
_MARS = r"(?:.+/)?(?:00)?(?P<pid>-1|\d{4})C(?P<cam>\d)T(?P<track>\d+)F\d+"
_DUKE_VIDEO = r"(?P<pid>\d+)/(?P<track>[^/]+)/\d+_?C(?P<cam>\d)"
_VEHICLEID = r"(?P<image>\d+)\s+(?P<pid>\d+)"
_NOTHING = "nothing is left out of the gallery"
_WITHDRAWN = "withdrawn with DukeMTMC, which it is made from"
_TEN = "mean over ten random splits"
_ACADEMIC = "academic use, by agreement"
_ICME = "github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets"
_CUHK = "ee.cuhk.edu.hk/~xgwang/CUHK_identification.html"


def _vehicles(listed: str, camid: int) -> Part:
    return Part("image", _VEHICLEID, camid=camid, listed=f"train_test_split/{listed}.txt", file="{image}.jpg")


def _prcc() -> dict[str, Layout]:
    """Cameras A and B see a person in the same clothes, C in others."""
    person, clothes = r"(?P<pid>\d+)/", {"A": "A", "B": "A", "C": "C"}
    test = {
        letter: Part(f"rgb/test/{letter}", person, camid=n, clothes=clothes[letter])
        for n, letter in enumerate("ABC", 1)
    }
    train = tuple(
        Part("rgb/train", person + letter, camid=n, clothes=clothes[letter]) for n, letter in enumerate("ABC", 1)
    )
    whole = "all of camera A as gallery; mAP cannot be compared with that of single-shot"
    rule = "mean over ten draws of one image of camera A a person as gallery, as published"
    shot: dict[str, Any] = {"rule": rule, "splits": 10, "shot": "gallery"}
    found = {}
    for edition, words, letters, images in (
        ("", "", "BC", 7416),
        ("-changed", ", other clothes", "C", 3543),
        ("-same", ", same clothes", "B", 3873),
    ):
        layout = Layout(
            f"PRCC{words}",
            "rgb/train/001/A_cropped_rgb001.jpg",
            train=train,
            query=tuple(test[letter] for letter in letters),
            gallery=(test["A"],),
            counts=((17896, 150, 3), (images, 71, len(letters)), (3384, 71, 1)),
            size=(384, 192),
            rule=whole,
        )
        found[f"prcc{edition}"] = layout
        if edition:
            counts = *layout.counts[:2], (71, 71, 1)
            found[f"prcc{edition}-single"] = replace(
                layout, title=f"{layout.title}, single-shot", counts=counts, **shot
            )
    return found


LAYOUTS: dict[str, Layout] = {
    "occluded_dukemtmc": Layout(
        "Occluded-DukeMTMC",
        "0005_c2_f0046985.jpg",
        **_market(_DUKE),
        counts=((15618, 702, 8), (2210, 519, 8), (17661, 1110, 8)),
        terms=_WITHDRAWN,
        page="github.com/lightas/Occluded-DukeMTMC-Dataset (lists only)",
    ),
    "p_dukemtmc": Layout(
        "P-DukeMTMC-reID",
        "0002/0002_c1_f0047334.jpg",
        train=(
            Part("train/occluded_body_images", r"(?P<pid>\d+)/", camid=1),
            Part("train/whole_body_images", r"(?P<pid>\d+)/", camid=2),
        ),
        **_pair("test/occluded_body_images", "test/whole_body_images", r"(?P<pid>\d+)/"),
        rule=_NOTHING,
        terms=f"{_WITHDRAWN}; {_ACADEMIC}",
        page=_ICME,
    ),
    "occluded_reid": Layout(
        "Occluded-REID",
        "001/001_01.tif",
        **_pair("occluded_body_images", "whole_body_images", r"(?:\d+/)?(?P<pid>\d+)_"),
        counts=((0, 0, 0), (1000, 200, 1), (1000, 200, 1)),
        rule=_NOTHING,
        terms=_ACADEMIC,
        page=_ICME,
    ),
    "partial_reid": Layout(
        "Partial-REID",
        "001_001.jpg",
        **_pair("partial_body_images", "whole_body_images", r"(?P<pid>\d+)_"),
        counts=((0, 0, 0), (300, 60, 1), (300, 60, 1)),
        rule=_NOTHING,
    ),
    "partial_ilids": Layout(
        "Partial-iLIDS",
        "001.jpg",
        **_pair("partial_body_images", "whole_body_images", r"(?P<pid>\d+)"),
        counts=((0, 0, 0), (119, 119, 1), (119, 119, 1)),
        rule=_NOTHING,
    ),
    "viper": Layout(
        "VIPeR",
        "cam_a/000_45.bmp",
        query=(Part("cam_a", r"(?P<pid>\d+)_", {"pid": 1, "": 1}, 1),),
        gallery=(Part("cam_b", r"(?P<pid>\d+)_", {"pid": 1, "": 1}, 2),),
        counts=((632, 316, 2), (316, 316, 1), (316, 316, 1)),
        rule=_TEN,
        people=316,
        splits=10,
        page="users.soe.ucsc.edu/~manduchi/VIPeR.v1.0.zip",
    ),
    "prid2011": Layout(
        "PRID-2011 (single-shot)",
        "cam_a/person_0001.png",
        query=(Part("cam_a", r"person_(?:(?P<pid>0[01]\d\d|0200)|\d+)\.", camid=1),),
        gallery=(Part("cam_b", r"person_(?P<pid>\d+)\.", camid=2),),
        counts=((200, 100, 2), (100, 100, 1), (649, 649, 1)),
        rule=_TEN,
        people=100,
        splits=10,
        page="tugraz.at (PRID 2011)",
    ),
    "cuhk01": Layout(
        "CUHK01",
        "campus/0001001.png",
        query=(Part("campus", r"(?P<pid>\d{4})00[12]", camid=1),),
        gallery=(Part("campus", r"(?P<pid>\d{4})00[34]", camid=2),),
        counts=((1940, 485, 2), (972, 486, 1), (972, 486, 1)),
        rule=_TEN,
        people=485,
        splits=10,
        page=_CUHK,
    ),
    "cuhk02": Layout(
        "CUHK02",
        "P1/cam1/001_01.png",
        train=tuple(
            Part(f"P{n}", r"cam(?P<cam>[12])/(?P<pid>\d+)_", {"pid": 1, "": 10_000 * n}, {"cam": 1, "": 2 * n - 2})
            for n in range(1, 5)
        ),
        query=(Part("P5/cam1", r"(?P<pid>\d+)_", {"pid": 1, "": 50_000}, 9),),
        gallery=(Part("P5/cam2", r"(?P<pid>\d+)_", {"pid": 1, "": 50_000}, 10),),
        counts=((6308, 1577, 8), (478, 239, 1), (478, 239, 1)),
        rule="P1 is CUHK01: train on one of them where the other is tested",
        page=_CUHK,
    ),
    "cuhk_sysu": Layout(
        "CUHK-SYSU (crops)",
        "cropped_images/p00001_s00001_1.jpg",
        train=(Part("cropped_images", r"p(?P<pid>\d+)_(?:n\d+_)?s(?P<scene>\d+)_", camid=1),),
        counts=((34574, 11934, 1), (0, 0, 0), (0, 0, 0)),
        rule="for training",
        page="ee.cuhk.edu.hk/~xgwang/PS/dataset.html",
    ),
    "sensereid": Layout(
        "SenseReID",
        "test_probe/00001_1.jpg",
        query=(Part("test_probe", r"(?P<pid>\d+)_(?P<cam>\d+)", {"pid": 1, "": 1}),),
        gallery=(Part("test_gallery", r"(?P<pid>\d+)_(?P<cam>\d+)", {"pid": 1, "": 1}),),
        counts=((0, 0, 0), (1040, 522, None), (3388, 1717, None)),
    ),
    "celeb_reid": Layout(
        "Celeb-reID",
        "train/1_1_0.jpg",
        train=(Part("train", r"(?P<pid>\d+)_\d+_", camid=1),),
        query=(Part("query", r"(?P<pid>\d+)_\d+_", {"pid": 1, "": TEST}, 1),),
        gallery=(Part("gallery", r"(?P<pid>\d+)_\d+_", {"pid": 1, "": TEST}, 2),),
        counts=((20208, 632, 1), (2972, 420, 1), (11006, 420, 1)),
        size=(224, 224),
        rule=f"clothes change; {_NOTHING}",
        terms="research only",
        page="github.com/Huang-3/Celeb-reID",
    ),
    "last": Layout(
        "LaST",
        "train/000000/000000_1.jpg",
        train=(Part("train", r"[^/]+/(?P<pid>\d+)_", {"pid": 1, "": 1}, 1),),
        query=(Part("test/query", r"(?P<pid>\d+)_", {"pid": 1, "": 1 + TEST}, 1),),
        gallery=(Part("test/gallery", r"(?:[^/]+/)?(?P<pid>\d+)_", {"pid": 1, "": 1 + TEST}, 2),),
        counts=((71248, 5000, 1), (10176, 5805, 1), (125353, 5806, 1)),
        rule=f"clothes change; {_NOTHING}",
        terms="academic use only",
        page="github.com/shuxjweb/last",
    ),
    **_prcc(),
    **_protocols(
        "ltcc",
        Layout(
            "LTCC",
            "train/000_1_c1_000001.png",
            train=(Part("train", _LTCC, _FROM_0),),
            query=(Part("query", _LTCC, _FROM_0),),
            gallery=(Part("test", _LTCC, _FROM_0),),
            counts=((9576, 77, None), (493, 75, None), (7050, 75, None)),
            size=(384, 192),
            terms="research only, by signed agreement",
            page="naiq.github.io/LTCC_Perosn_ReID.html",
        ),
    ),
    "deepchange": Layout(
        "DeepChange",
        "train-set/P0001_C01_a_1.jpg,17 (lines of train-set-bbox.txt)",
        **{
            split: (Part(folder, _DEEPCHANGE, listed=f"{folder}-bbox.txt", file="{file}"),)
            for split, folder in zip(SPLITS, ("train-set", "test-set-query", "test-set-gallery"), strict=True)
        },
        size=(384, 192),
        rule="clothes change",
        terms="non-commercial, by signed agreement",
        exclude="same track left out",
        page="github.com/PengBoXiangShang/deepchange",
    ),
    "grid": Layout(
        "GRID (underground)",
        "probe/0001_1_25004_107_32_106_221.jpeg",
        query=(Part("probe", r"(?P<pid>\d+)_(?P<cam>\d+)_"),),
        gallery=(Part("gallery", r"(?P<pid>\d+)_(?P<cam>\d+)_"),),
        counts=((250, 125, None), (125, 125, None), (900, 125, None)),
        rule="mean over the ten published splits",
        people=125,
        splits=10,
        published=_grid_split,
        page="personal.ie.cuhk.edu.hk/~ccloy/downloads_qmul_underground_reid.html",
    ),
    "ilids": Layout(
        "i-LIDS (119 people)",
        "Persons/0001001.jpg",
        gallery=(Part("Persons", r"(?P<pid>\d{4})(?P<image>\d{3})\.", camid={"image": 1}),),
        counts=((None, 59, None), (60, 60, None), (60, 60, None)),
        rule=f"{_TEN}; one query and one gallery image a person",
        people=59,
        splits=10,
        shot="pair",
    ),
    **{
        f"mars{ending}": Layout(
            f"MARS (tracklets){', queries apart' * apart}",
            "bbox_train/0001/0001C1T0001F001.jpg",
            train=(Part("bbox_train", _MARS),),
            gallery=(Part("bbox_test", _MARS),),
            counts=((509914, 625, None), (1980, 626, None), gallery),
            rule=rule,
            also=("info/test_name.txt", "info/tracks_test_info.mat", "info/query_IDX.mat"),
            tracks=True,
            queries=_mars_queries,
            apart=apart,
            page="liangzheng.com.cn/Project/project_mars.html",
        )
        for ending, apart, gallery, rule in (
            ("", False, (12180, 634, None), "queries are in the gallery too, as its authors score"),
            (
                "-noquery",
                True,
                (10200, 620, None),
                "no query in the gallery, as torchreid scores; 140 have no match",
            ),
        )
    },
    "ilids_vid": Layout(
        "iLIDS-VID (tracklets)",
        "cam1/person001/cam1_person001_00317.png",
        query=(Part("cam1", r"person(?P<pid>\d+)/", camid=1),),
        gallery=(Part("cam2", r"person(?P<pid>\d+)/", camid=2),),
        counts=((None, 150, 2), (150, 150, 1), (150, 150, 1)),
        rule="mean over the ten published splits",
        tracks=True,
        people=150,
        splits=10,
        published=_ilids_split,
        page="eecs.qmul.ac.uk/~xiatian/downloads_qmul_iLIDS-VID_ReID_dataset.html",
    ),
    "prid2011_video": Layout(
        "PRID-2011 (tracklets)",
        "cam_a/person_0001/0001.png",
        query=(Part("cam_a", r"person_(?:(?P<pid>0[01]\d\d|0200)|\d+)/", camid=1),),
        gallery=(Part("cam_b", r"person_(?:(?P<pid>0[01]\d\d|0200)|\d+)/", camid=2),),
        counts=((None, 89, 2), (89, 89, 1), (89, 89, 1)),
        rule="mean over the ten splits of splits_prid2011.json, 178 people",
        tracks=True,
        people=89,
        splits=10,
        published=_prid_split,
        page="tugraz.at (PRID 2011)",
    ),
    "dukemtmcvidreid": Layout(
        "DukeMTMC-VideoReID (tracklets)",
        "train/0001/0001/0001_C6_F0099_X30823.jpg",
        train=(Part("train", _DUKE_VIDEO),),
        query=(Part("query", _DUKE_VIDEO),),
        gallery=(Part("gallery", _DUKE_VIDEO),),
        counts=((None, 702, None), (702, 702, None), (2636, None, None)),
        terms=_WITHDRAWN,
        tracks=True,
        page="github.com/Yu-Wu/DukeMTMC-VideoReID",
    ),
    **{
        f"vehicleid-{size}": Layout(
            f"VehicleID, {size}",
            "0000001 1 (lines of train_test_split/train_list.txt)",
            train=(_vehicles("train_list", 1),),
            gallery=(_vehicles(f"test_list_{count}", 2),),
            counts=((113346, 13164, 1), (images - count, count, 1), (count, count, 1)),
            size=(256, 256),
            rule="mean over ten draws of one gallery image a vehicle; all others are queries",
            terms="by request",
            exclude="nothing left out",
            splits=10,
            shot="rest",
            page="pkuml.org/resources/pku-vehicleid.html",
        )
        for size, count, images in (("small", 800, 6493), ("medium", 1600, 13377), ("large", 2400, 19777))
    },
    **{
        f"veriwild-{size}": Layout(
            f"VERI-Wild, {size} (vehicles)",
            "00001/000001 (lines of train_test_split/train_list.txt)",
            **{
                split: (
                    Part(
                        "images",
                        r"(?P<pid>\d+)/(?P<image>[^./]+)",
                        camid="train_test_split/vehicle_info.txt",
                        listed=f"train_test_split/{listed}.txt",
                        file="{pid}/{image}.jpg",
                    ),
                )
                for split, listed in (("train", "train_list"), ("query", f"test_{n}_query"), ("gallery", f"test_{n}"))
            },
            counts=((277797, 30671, None), (None, n, None), (None, n, None)),
            size=(256, 256),
            terms="non-commercial research",
            page="github.com/PKU-IMRE/VERI-Wild",
        )
        for size, n in (("small", 3000), ("medium", 5000), ("large", 10000))
    },
    "luperson": Layout(
        "LUPerson (archive)",
        "lup_lmdb: 01_02_0003_00000004",
        train=(
            Part(
                "lup_lmdb",
                r"(?P<country>\d+)_(?P<town>\d+)_(?P<video>\d+)_(?P<pid>\d+)",
                {"": 0},
                {"country": 1_000_000, "town": 10_000, "video": 1, "": 1},
            ),
        ),
        counts=((None, None, None), (0, 0, 0), (0, 0, 0)),
        rule="for pretraining: nobody is labelled, each video is a camera",
        terms="research only; the images were never released",
        page="github.com/DengpanFu/LUPerson",
    ),
    "luperson_nl": Layout(
        "LUPerson-NL (archive)",
        "lmdb: 00001_000002_0000003_04.jpg",
        train=(Part("lmdb", r"(?P<video>\d+)_(?P<pid>\d+)_\d+_\d+", _FROM_0, {"video": 1}),),
        counts=((10683716, None, None), (0, 0, 0), (0, 0, 0)),
        rule="for pretraining: noisy labels, each video is a camera",
        terms="research only",
        page="github.com/DengpanFu/LUPerson-NL",
    ),
    "randperson": Layout(
        "RandPerson (drawn)",
        "subset/000000_s00_c00_f0000000.jpg",
        train=(Part("subset", _UNREAL, **_BY_SCENE),),
        counts=((132145, 8000, None), (0, 0, 0), (0, 0, 0)),
        size=(384, 128),
        rule="for training",
        page="github.com/VideoObjectSearch/RandPerson",
    ),
    "clonedperson": Layout(
        "ClonedPerson (drawn)",
        "train/700000_s02_c00_f0000000.jpg",
        train=(Part("train", _UNREAL, **_BY_SCENE),),
        query=(Part("test/query", _UNREAL, **_BY_SCENE),),
        gallery=(Part("test/gallery", _UNREAL, **_BY_SCENE),),
        size=(384, 128),
        rule="cameras of different scenes are kept apart; its authors' reader lets them fall together",
        page="github.com/Yanan-Wang-cs/ClonedPerson",
    ),
    "unrealperson": Layout(
        "UnrealPerson (drawn)",
        "unreal_v1.1/images/0001_c001_1.jpg",
        train=(
            Part(
                "",
                r"unreal_v(?P<scene>\d)\.(?P<batch>\d)/images/(?P<pid>\d+)_c(?P<cam>\d+)_",
                {"batch": 100_000, "pid": 1},
                {"scene": 1000, "cam": 1},
            ),
        ),
        counts=((None, None, None), (0, 0, 0), (0, 0, 0)),
        rule="for training",
        page="github.com/FlyHighest/UnrealPerson",
    ),
    "personx": Layout(
        "PersonX (drawn), subset 1",
        "bounding_box_train/0001_c3s1_33.jpg",
        **_market(r"(?P<pid>\d+)_c(?P<cam>\d+)s\d+_"),
        counts=((9840, None, 6), (5136, None, 6), (30816, None, 6)),
        page="github.com/sxzrt/Instructions-of-the-PersonX-dataset",
    ),
    "veri776": Layout(
        "VeRi-776 (vehicles)",
        "image_train/0001_c001_00016450_0.jpg",
        train=(Part("image_train", _DUKE),),
        query=(Part("image_query", _DUKE),),
        gallery=(Part("image_test", _DUKE),),
        counts=((37778, 576, 20), (1678, 200, None), (11579, 200, None)),
        size=(256, 256),
        terms="non-commercial research, by request",
        page="vehiclereid.github.io/VeRi",
    ),
}


_DRAWN = r"(?P<pid>-1|\d+)_c(?P<cam>\d+)s(?P<{}>\d+)_"
_SHOT = "bounding_box_train/0002_c1s1_000026_01.jpg"
# Editions of the drawn datasets: the ending of a name, behind its size → how the edition is read
DRAWN: dict[str, dict[str, Layout]] = {
    "occluded": {"": Layout("drawn, queries occluded", _SHOT, **_market(_DRAWN.format("sequence")))},
    "clothes": {
        ending.removeprefix("drawn"): layout
        for ending, layout in _protocols(
            "drawn", Layout("drawn, two sets of clothes", _SHOT, **_market(_DRAWN.format("clothes")))
        ).items()
    },
    "tracks": {"": Layout("drawn tracklets", _SHOT, **_market(_DRAWN.format("track")), tracks=True)},
}


def layout_names() -> dict[str, tuple[Layout, int]]:
    """Name of each dataset that can be read → its layout and the number of the split, 0 where there is one only."""
    names: dict[str, tuple[Layout, int]] = {}
    for name, layout in LAYOUTS.items():
        names |= {
            f"{name}-split{n}" if n else name: (layout, n) for n in range(1 if layout.splits else 0, layout.splits + 1)
        }
    return names


def with_splits(names: Sequence[str]) -> list[str]:
    """`names` with "viper" replaced by "viper-split1" to "viper-split10", and so on."""
    found = []
    for name in names:
        count = LAYOUTS[name].splits if name in LAYOUTS else 0
        found += [f"{name}-split{n}" for n in range(1, count + 1)] or [name]
    return found


def read_layout(name: str, root: Path, where: str, *, layout: Layout, split: int = 0) -> ReIDDataset:
    """A dataset of `LAYOUTS`, as a reader of `readers`.

    Args:
        name: The dataset, for messages.
        root: What data_paths.yaml names.
        where: The line that does.
        layout: Its declaration.
        split: Which of the random splits, from 1.

    Raises:
        FileNotFoundError: A folder or list of the layout is not there.
        ValueError: Names or lines that do not parse, counted; a folder without images.
    """
    wanted = tuple(entry for entry in layout.needs if entry)
    root, _, notes = find_root(root, {"": wanted or ("",)}, name, where)
    found: dict[str, list[Sample]] = {split_name: [] for split_name in SPLITS}
    tables = {p.camid: _cameras(root / p.camid) for _, p in layout.parts if isinstance(p.camid, str)}
    for folder, listed in dict.fromkeys((p.folder, p.listed) for _, p in layout.parts):
        parts = [(s, p, re.compile(p.path)) for s, p in layout.parts if (p.folder, p.listed) == (folder, listed)]
        texts, bad = (_lines(root / listed) if listed else _images(root / folder)), []
        for text in texts:
            for split_name, part, pattern in parts:
                if match := pattern.match(text):
                    if match["pid"] is not None:
                        found[split_name].append(_sample(root, part, match, text, tables))
                    break
            else:
                bad.append(text)
        if bad or not texts:
            what = f"paths not of the form {layout.example}: {some(bad)}" if bad else "no image"
            raise ValueError(f"{name}: {root / (listed or folder)} holds {what}")
    if layout.tracks:
        found |= {split_name: _tracklets(found[split_name]) for split_name in ("query", "gallery")}
    if layout.queries:
        firsts = layout.queries(root)
        found["query"] = [s for s in found["gallery"] if s.path.name in firsts]
        found["gallery"] = [s for s in found["gallery"] if not (layout.apart and s.path.name in firsts)]
    if layout.splits:
        found = _draw_split(**found, layout=layout, split=split, name=name, root=root)
    splits = {split_name: tuple(samples) for split_name, samples in found.items()}
    version = f"split {split}" * bool(split)
    return ReIDDataset(name, root, **splits, version=version, notes=tuple(notes), exclude=PROTOCOLS[layout.exclude])


def _sample(root: Path, part: Part, match: re.Match[str], text: str, tables: Mapping[str, Mapping[str, int]]) -> Sample:
    groups = match.groupdict()
    if isinstance(part.camid, str) and text not in tables[part.camid]:
        raise ValueError(f"{root / part.camid} has no line with the camera of {text}")
    path = part.file.format_map(groups) if part.file else text
    pid = _sum(part.pid, match)
    camid = tables[part.camid][text] if isinstance(part.camid, str) else _sum(part.camid, match)
    track = f"{pid}_{groups['track']}" if groups.get("track") else ""  # authors number tracklets within a person
    return Sample(root / part.folder / path, pid, camid, track, clothes=groups.get("clothes") or part.clothes)


def _sum(terms: Mapping[str, int] | int, match: re.Match[str]) -> int:
    if isinstance(terms, int):
        return terms
    return sum(factor * int(match[group]) if group else factor for group, factor in terms.items())


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _cameras(path: Path) -> dict[str, int]:
    """Beginning of each line of a table → camera; a first line that is a heading has no number there."""
    rows = (line.split(";") for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].strip().isdigit()}


def _tracklets(images: Sequence[Sample]) -> list[Sample]:
    """One sample a tracklet, in the order of their first images; a person under a camera is one where none is named."""
    frames: dict[tuple[int, int, str], list[Sample]] = {}
    for s in images:
        frames.setdefault((s.pid, s.camid, s.track), []).append(s)
    return [
        first._replace(track=first.track or str(first.pid), frames=tuple(s.path for s in (first, *others)))
        for first, *others in frames.values()
    ]


def _images(folder: Path) -> list[str]:
    """Paths of the images below a folder, from it; of an archive, its keys."""
    if (names := archived_names(folder)) is not None:
        return names
    return [path.relative_to(folder).as_posix() for path, no_image in walk_folder(folder) if not no_image]


def _draw_split(
    train: list[Sample],
    query: list[Sample],
    gallery: list[Sample],
    *,
    layout: Layout,
    split: int,
    name: str,
    root: Path,
) -> dict[str, list[Sample]]:
    """Train on some of those who are in both, by a published list or drawn with the number of the split as seed; test
    on the others. Then draw what `layout.shot` says.
    """
    rng, query = random.Random(split), query or gallery
    if layout.people:
        shared = sorted({s.pid for s in query} & {s.pid for s in gallery} - {0, -1})
        if len(shared) < 2:
            raise ValueError(f"{name}: {len(shared)} people are in both cameras, so that there is nothing to split")
        half = layout.people if layout.people < len(shared) else len(shared) // 2
        trained, tested = (layout.published and layout.published(root, split, shared)) or (set(), set())
        if not trained:
            trained = set(rng.sample(shared, half))
            tested = set(shared) - trained
        chosen = [s for s in dict.fromkeys([*query, *gallery]) if s.pid in trained]
        train = list(frames_of(chosen)[0])
        query = [s for s in query if s.pid in tested]
        gallery = [s for s in gallery if s.pid in tested or s.pid not in set(shared)]
    if layout.shot:
        images: dict[int, list[Sample]] = {}
        for s in gallery:
            images.setdefault(s.pid, []).append(s)
        drawn = {pid: rng.sample(images[pid], min(len(images[pid]), 2)) for pid in sorted(images)}
        gallery = [first for first, *_ in drawn.values()]
        if layout.shot == "rest":
            query = [s._replace(camid=1) for pid in sorted(images) for s in images[pid] if s != drawn[pid][0]]
        elif layout.shot == "pair":
            query = [second for _, *others in drawn.values() for second in others]
    return {"train": train, "query": query, "gallery": gallery}
