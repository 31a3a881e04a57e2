"""What was published about each model: accuracy, size and cost as their sources print them, and where the weights are.

Five tables: the model zoo of KaiyangZhou/deep-person-reid in August 2018, March 2019, May 2019 and March 2020, and that
of HWliiu/pytorch-reid-models; and those of six projects that came later (`LATER`). One row a result in `published.csv`;
a row without figures is a link to weights only, trained on imagenet, on luperson, or by a project that prints no
figures beside its files.
Datasets have the names that `load_dataset` knows them by.

How a source counted is part of its result. torchreid ranks by the distance that its table prints, by the euclidean one
in the tables that print none (its code had no other), in float32; all its means run over the queries that have a match.
pytorch-reid-models ranks by cosine, with features extracted under float16 autocast and normalised in float16; CMC runs
over the queries that have a match, mAP and mINP over all of them, where one without a match counts 0. Neither averages
over flipped images. pytorch-reid-models reads MSMT17 V1; torchreid's tables do not say. The later six rank by cosine or
by the euclidean distance of normalised features, which gives the same order; LightMBN averages over flipped images.
"""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from reidlib.scores import RETRIEVAL


class Source(NamedTuple):
    """Where a table was printed, what it says of its own counting, and the licence of code and weights.

    The licence is "none" where the repository has no licence file; empty where it was not looked up.
    """

    title: str
    date: str
    url: str
    says: str
    licence: str = ""


_USED = "sizes and costs of the layers that are used at test time"
_TORCHREID, _HWLIIU = "https://github.com/KaiyangZhou/deep-person-reid", "https://github.com/HWliiu/pytorch-reid-models"
SOURCES = {  # by `Published.table`, oldest first
    "torchreid-2018-08": Source(
        "the first model zoo of deep-person-reid",
        *("2018-08-07", f"{_TORCHREID}/tree/1f685fe", "sizes without the classification layer", "MIT"),
    ),
    "torchreid-2019-03": Source(
        "the model zoo of deep-person-reid",
        *("2019-03-23", f"{_TORCHREID}/tree/d0fe37c", "sizes without the classification layer", "MIT"),
    ),
    "torchreid-2019-05": Source(
        "the model zoo of deep-person-reid",
        *(
            "2019-05-28",
            f"{_TORCHREID}/tree/21171eb",
            "sizes and costs of the layers that are used at test time",
            "MIT",
        ),
    ),
    "torchreid-2020-03": Source(
        "the model zoo of deep-person-reid",
        *(
            "2020-03-31",
            f"{_TORCHREID}/tree/322ec2b",
            "sizes and costs of the layers that are used at test time",
            "MIT",
        ),
    ),
    "pytorch-reid-models": Source(
        "the models of seven projects, trained again by pytorch-reid-models",
        *("", _HWLIIU, "sizes and costs by the profiler thop 0.1.1, without saying so"),
    ),
}
LATER = {
    name: Source(title, "", f"https://github.com/{repository}", "no sizes or costs", licence)
    for name, title, repository, licence in (
        ("CLIP-ReID", "files of CLIP-ReID (2023), one result", "Syliz517/CLIP-ReID/tree/eb1898b", "MIT"),
        ("SOLIDER", "SOLIDER (2023)", "tinyvision/SOLIDER-REID/tree/8c08e1c", "MIT"),
        ("TransReID-SSL", "TransReID-SSL (2021)", "damo-cv/TransReID-SSL/tree/fc39e88", "MIT"),
        ("PASS-reID", "PASS (2022)", "CASIA-IVA-Lab/PASS-reID/tree/5b84b42", "Apache-2.0"),
        ("PersonViT", "PersonViT (2024)", "hustvl/PersonViT/tree/de479ab", "none"),
        ("LightMBN", "LightMBN (2021)", "jixunbo/LightMBN/tree/1f4ec0d", "MIT"),
    )
}
SOURCES |= LATER


class Published(NamedTuple):
    """One row. Text is empty and a number None where the source prints none."""

    table: str
    model: str  # the name here
    printed: str  # the name there, where it is another
    trained_on: str
    tested_on: str
    version: str  # the dataset's, where it has several and the source says
    protocol: str  # where the dataset has several
    combineall: bool  # trained on all images of the dataset
    training: str  # "" with labels; "unsupervised" without; "adapted" with those of one dataset to another without
    init: str  # "imagenet", "scratch", or not said
    loss: str
    transforms: str
    input: str  # height x width
    distance: str  # cosine or euclidean
    cameras: int | None  # how many the model has an embedding of and is told, where it is
    precision: str  # of the features: float32 or float16
    means_over: str  # mAP and mINP: "valid" queries, or "all"
    rerank: bool  # whether the ranking was made again by k-reciprocal neighbours (Zhong et al., CVPR 2017)
    rank1: float | None  # these five in percent
    rank5: float | None
    rank10: float | None
    mAP: float | None
    mINP: float | None
    params: str  # millions, all digits that are printed
    macs: str  # billions of multiply-adds
    counting: str  # under which `complexity` gives these two
    link: str
    note: str

    @property
    def weights(self) -> str:
        """What the weights of this row are called, behind the name of their table: what they were trained on."""
        adapted = f"-to-{self.tested_on}" if self.training == "adapted" else ""
        return self.trained_on + "-combineall" * self.combineall + adapted

    @classmethod
    def read(cls, row: dict[str, str]) -> "Published":
        numbers = {key: float(row[key]) if row[key] else None for key in RETRIEVAL}
        cameras = int(row["cameras"]) if row["cameras"] else None
        flags = {key: row[key] == "yes" for key in ("combineall", "rerank")}
        return cls(**row | numbers | flags | {"cameras": cameras})


@cache
def published(model: str | None = None) -> tuple[Published, ...]:
    """All rows, or those of one model, oldest table first."""
    if model is not None:
        return tuple(row for row in published() if row.model == model)
    text = files(__package__).joinpath("published.csv").read_text()
    return tuple(map(Published.read, csv.DictReader(text.splitlines())))


def results(trained_on: str, tested_on: str = "", *, rerank: bool = False) -> tuple[Published, ...]:
    """The newest result of each model and loss, trained on one dataset and tested on another, or on its own.

    `rerank`: those with re-ranking instead of those without. Results adapted to the other dataset are left out.
    """
    rows = [row for row in published() if (row.trained_on, row.tested_on) == (trained_on, tested_on or trained_on)]
    rows = [row for row in rows if row.mAP is not None and row.rerank == rerank and row.training != "adapted"]
    return tuple({(row.model, row.loss): row for row in rows}.values())


def distance(model: str) -> str:
    """What the newest table ranks `model` by: "cosine" or "euclidean"; "cosine" where nothing is published."""
    return next((row.distance for row in reversed(published(model)) if row.distance), "cosine")
