"""Published datasets that are folders of images whose paths say person and camera: a declaration each.

A `Layout` says which folders make each split, how a path is read, what its authors count, and by which rule papers
score it. Counts, rules and terms are those that the authors or the readers in wide use state; None is a number that
nobody states. Sets without a published list of splits (VIPeR, PRID-2011, CUHK01) get ten splits drawn by seed, as
torchreid draws its own: scores are means over the ten. Where a set has no cameras and its rule leaves nothing out,
queries are camera 1 and the gallery camera 2.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reidlib.data.own_images import walk_folder
from reidlib.data.readers import FOLDERS, find_root, some
from reidlib.data.samples import SPLITS, ReIDDataset, Sample

TEST = 20_000  # added to the pids of test where its people are numbered from 1 as those of train are
Counts = tuple[int | None, int | None, int | None]  # images, people, cameras
_PID = {"pid": 1}


@dataclass(frozen=True)
class Part:
    """Images of a split.

    Attributes:
        folder: Where they lie.
        path: A regular expression that the beginning of each path below `folder` matches; an image is left out where
            it matches without its group "pid".
        pid: The person's number as a sum: group of `path` → factor; "" → a constant.
        camid: The camera's number likewise; one number where paths do not say it.
    """

    folder: str
    path: str
    pid: Mapping[str, int] = field(default_factory=lambda: _PID)
    camid: Mapping[str, int] | int = field(default_factory=lambda: {"cam": 1})


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
        people: With `splits`: how many of those who are in query and gallery are trained on.
        splits: Number of random splits; the names end in "-split1" and so on.
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
    people: int = 0
    splits: int = 0

    @property
    def folders(self) -> tuple[str, ...]:
        """What has to be in the root."""
        return tuple(dict.fromkeys(p.folder or "" for split in SPLITS for p in getattr(self, split)))


def _market(pattern: str) -> dict[str, tuple[Part, ...]]:
    """Train, query and gallery in the folders of Market-1501."""
    return {split: (Part(folder, pattern),) for split, folder in zip(SPLITS, FOLDERS, strict=True)}


def _pair(query: str, gallery: str, pattern: str) -> dict[str, tuple[Part, ...]]:
    """Query and gallery of a set without cameras."""
    return {"query": (Part(query, pattern, camid=1),), "gallery": (Part(gallery, pattern, camid=2),)}


_DUKE = r"(?P<pid>\d+)_c(?P<cam>\d+)_"
_UNREAL = r"(?P<pid>\d+)_s(?P<scene>\d+)_c(?P<cam>\d+)_"  # its people are counted from 0
_BY_SCENE = {"pid": {"pid": 1, "": 1}, "camid": {"scene": 100, "cam": 1, "": 1}}
_NOTHING = "nothing is left out of the gallery"
_WITHDRAWN = "withdrawn with DukeMTMC, which it is made from"
_TEN = "mean over ten random splits"
_ACADEMIC = "academic use, by agreement"

LAYOUTS: dict[str, Layout] = {
    "occluded_dukemtmc": Layout(
        "Occluded-DukeMTMC",
        "0005_c2_f0046985.jpg",
        **_market(_DUKE),
        counts=((15618, 702, 8), (2210, 519, 8), (17661, 1110, 8)),
        terms=_WITHDRAWN,
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
    ),
    "occluded_reid": Layout(
        "Occluded-REID",
        "001/001_01.tif",
        **_pair("occluded_body_images", "whole_body_images", r"(?:\d+/)?(?P<pid>\d+)_"),
        counts=((0, 0, 0), (1000, 200, 1), (1000, 200, 1)),
        rule=_NOTHING,
        terms=_ACADEMIC,
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
    ),
    "cuhk_sysu": Layout(
        "CUHK-SYSU (crops)",
        "cropped_images/p00001_s00001_1.jpg",
        train=(Part("cropped_images", r"p(?P<pid>\d+)_(?:n\d+_)?s(?P<scene>\d+)_", camid=1),),
        counts=((34574, 11934, 1), (0, 0, 0), (0, 0, 0)),
        rule="for training",
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
    ),
    **{
        f"prcc-{which}": Layout(
            f"PRCC, {words}",
            "rgb/train/001/A_cropped_rgb001.jpg",
            train=tuple(
                Part("rgb/train", rf"(?P<pid>\d+)/{letter}", camid=camid) for camid, letter in enumerate("ABC", 1)
            ),
            query=(Part(f"rgb/test/{letter}", r"(?P<pid>\d+)/", camid=1 + "ABC".index(letter)),),
            gallery=(Part("rgb/test/A", r"(?P<pid>\d+)/", camid=1),),
            counts=((17896, 150, 3), (images, 71, 1), (3384, 71, 1)),
            size=(384, 192),
            rule="all of camera A as gallery; the original draws one image a person: its mAP cannot be compared",
        )
        for which, words, letter, images in (
            ("changed", "other clothes", "C", 3543),
            ("same", "same clothes", "B", 3873),
        )
    },
    "randperson": Layout(
        "RandPerson (drawn)",
        "subset/000000_s00_c00_f0000000.jpg",
        train=(Part("subset", _UNREAL, **_BY_SCENE),),
        counts=((132145, 8000, None), (0, 0, 0), (0, 0, 0)),
        size=(384, 128),
        rule="for training",
    ),
    "clonedperson": Layout(
        "ClonedPerson (drawn)",
        "train/700000_s02_c00_f0000000.jpg",
        train=(Part("train", _UNREAL, **_BY_SCENE),),
        query=(Part("test/query", _UNREAL, **_BY_SCENE),),
        gallery=(Part("test/gallery", _UNREAL, **_BY_SCENE),),
        size=(384, 128),
        rule="cameras of different scenes are kept apart; its authors' reader lets them fall together",
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
    ),
    "personx": Layout(
        "PersonX (drawn), subset 1",
        "bounding_box_train/0001_c3s1_33.jpg",
        **_market(r"(?P<pid>\d+)_c(?P<cam>\d+)s\d+_"),
        counts=((9840, None, 6), (5136, None, 6), (30816, None, 6)),
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
    ),
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
        FileNotFoundError: A folder of the layout is not there.
        ValueError: Names that do not parse, counted; a folder without images.
    """
    wanted = tuple(folder for folder in layout.folders if folder)
    root, _, notes = find_root(root, {"": wanted or ("",)}, name, where)
    found: dict[str, list[Sample]] = {split_name: [] for split_name in SPLITS}
    for folder in layout.folders:
        parts = [(s, p, re.compile(p.path)) for s in SPLITS for p in getattr(layout, s) if p.folder == folder]
        images = (path for path, no_image in walk_folder(root / folder) if not no_image)
        paths, bad = [path.relative_to(root / folder).as_posix() for path in images], []
        for path in paths:
            for split_name, part, pattern in parts:
                if match := pattern.match(path):
                    if match["pid"] is not None:
                        sample = Sample(root / folder / path, _sum(part.pid, match), _sum(part.camid, match))
                        found[split_name].append(sample)
                    break
            else:
                bad.append(path)
        if bad or not paths:
            what = f"paths not of the form {layout.example}: {some(bad)}" if bad else "no image"
            raise ValueError(f"{name}: {root / folder} holds {what}")
    if layout.splits:
        found = _draw_split(found["query"], found["gallery"], layout.people, split, name)
    splits = {split_name: tuple(samples) for split_name, samples in found.items()}
    return ReIDDataset(name, root, **splits, version=f"split {split}" * bool(split), notes=tuple(notes))


def _sum(terms: Mapping[str, int] | int, match: re.Match[str]) -> int:
    if isinstance(terms, int):
        return terms
    return sum(factor * int(match[group]) if group else factor for group, factor in terms.items())


def _draw_split(
    query: Sequence[Sample], gallery: Sequence[Sample], people: int, split: int, name: str
) -> dict[str, list[Sample]]:
    """Train on `people` of those who are in both, drawn with the number of the split as seed; test on the others."""
    shared = sorted({s.pid for s in query} & {s.pid for s in gallery})
    if len(shared) < 2:
        raise ValueError(f"{name}: {len(shared)} people are in both cameras, so that there is nothing to split")
    half = people if people < len(shared) else len(shared) // 2
    trained = set(random.Random(split).sample(shared, half))
    tested = set(shared) - trained
    return {
        "train": [s for s in (*query, *gallery) if s.pid in trained],
        "query": [s for s in query if s.pid in tested],
        "gallery": [s for s in gallery if s.pid not in trained],
    }
