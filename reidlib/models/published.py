"""What was published about each model: accuracy, size and cost as their sources print them, and where the weights are.

Five tables: the model zoo of KaiyangZhou/deep-person-reid in August 2018, March 2019, May 2019 and March 2020, and that
of HWliiu/pytorch-reid-models. One row a result in `published.csv`; a row trained on imagenet is a link to weights only.
"""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Published(NamedTuple):
    """One row. Text is empty and a number None where the source prints none."""

    table: str
    model: str  # the name here
    printed: str  # the name there, where it is another
    trained_on: str
    tested_on: str
    protocol: str  # where the data set has several
    combineall: bool  # trained on all images of the data set
    init: str  # "imagenet", "scratch", or not said
    loss: str
    transforms: str
    input: str  # height x width
    distance: str
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

    @classmethod
    def read(cls, row: dict[str, str]) -> "Published":
        numbers = {k: float(row[k]) if row[k] else None for k in ("rank1", "rank5", "rank10", "mAP", "mINP")}
        return cls(**row | numbers | {"combineall": row["combineall"] == "yes"})


@cache
def published(model: str | None = None) -> tuple[Published, ...]:
    """All rows, or those of one model, oldest table first."""
    if model is not None:
        return tuple(row for row in published() if row.model == model)
    text = files(__package__).joinpath("published.csv").read_text()
    return tuple(map(Published.read, csv.DictReader(text.splitlines())))
