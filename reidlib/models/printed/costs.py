"""What each model costs as it is built here, beside every size and cost that was printed of it.

`measured.csv` holds what `complexity` counts, in each way that a published table counted; `make zoo` renews it, and a
test counts every line of it again. So tables of all models need none of them built.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import torch

from reidlib.models import complexity, create_model, list_models
from reidlib.models.printed.published import published

IDENTITIES = {"market1501": 751, "dukemtmcreid": 702, "msmt17": 1041}  # in training; some counts depend on them

CAMERAS = 6  # of Market-1501, for the models that embed them

# Why a table's figure is another than the exact one: parameters, multiply-adds.
WHY = {
    "total": ("every parameter is counted, classifiers for 751 identities too", ""),
    "torchreid": (
        "a layer that runs several times has its parameters counted each time",
        "each bias is counted as a multiply-add",
    ),
    "thop": (
        "",
        "norms are counted, four an element, and average pools; matrix products outside layers are not",
    ),
    "thop-fastreid": (
        "only plain torch layers are counted: neither FastReID's batch norms nor bare parameters",
        "of norms only plain torch ones are counted, four an element, and average pools; matrix products outside "
        "layers are not",
    ),
    "thop-abd": (
        "its classifiers run at test time too, so the figure depends on the identities of the training set",
        "the matrix products of its attention are left out; norms, pools and classifiers are counted",
    ),
    "thop-apnet": (
        "its trunk is registered under two names and counted twice",
        "the layers of that trunk are counted twice under each of their two names",
    ),
    "thop-transreid": (
        "tokens and embeddings are no layers and left out; necks, which the feature does not pass, are counted",
        "the matrix products of its attention are left out; norms are counted, four an element",
    ),
}


class Measured(NamedTuple):
    """A model counted here in one way; `classes` identities in training, `feature` values an image."""

    model: str
    counting: str
    classes: int
    feature: int
    params: int
    macs: int


class Figure(NamedTuple):
    """What one table printed of one model, in millions and billions, beside the exact figures of the model here.

    `params_why` and `macs_why` say why they differ; empty where they are equal to the printed digit or none is printed.
    """

    model: str
    table: str
    trained_on: tuple[str, ...]
    printed_params: str
    printed_macs: str
    params: int
    macs: int
    counting: str
    params_why: str
    macs_why: str


@cache
def measured() -> dict[tuple[str, str, int], Measured]:
    """All lines of `measured.csv` by (model, counting, classes)."""
    rows = csv.reader(files(__package__).joinpath("measured.csv").read_text().splitlines()[1:])
    lines = [Measured(model, counting, *map(int, numbers)) for model, counting, *numbers in rows]
    return {line[:3]: line for line in lines}


def exact(model: str) -> Measured:
    """What a model really costs at test time, for Market-1501's people and cameras."""
    return measured()[model, "exact", IDENTITIES["market1501"]]


def counted(model: str, counting: str, trained_on: str) -> Measured:
    """The same as a table counted it for a dataset."""
    return measured()[_key(model, counting, trained_on)]


def figures(model: str | None = None) -> tuple[Figure, ...]:
    """Every printed size and cost, once a table (and a dataset where it depends on that), in order of the tables."""
    sets: dict[tuple[str, str, str, str, str], list[str]] = {}
    for row in published(model):
        if row.params:
            sets.setdefault((row.model, row.table, row.params, row.macs, row.counting), []).append(row.trained_on)
    return tuple(_figure(*key, tuple(dict.fromkeys(names))) for key, names in sets.items())


def _figure(model: str, table: str, params: str, macs: str, counting: str, trained_on: tuple[str, ...]) -> Figure:
    here = exact(model)
    params_why, macs_why = WHY.get(counting, ("", ""))
    return Figure(
        *(model, table, trained_on, params, macs, here.params, here.macs, counting),
        "" if agrees(here.params / 1e6, params) else params_why,
        "" if agrees(here.macs / 1e9, macs) else macs_why,
    )


def agrees(value: float, printed: str) -> bool:
    """Whether a value rounds to what is printed; nothing printed is agreed with."""
    return not printed or f"{value:.{len(printed.partition('.')[2])}f}" == printed


def pareto_front(cost: Sequence[float], score: Sequence[float]) -> list[bool]:
    """Which points none beats: cheaper or as cheap, and better or as good, one of both truly. Equal points all stay."""
    points = list(zip(cost, score, strict=True))
    return [not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points) for cost, score in points]


def count(progress: Callable[[str], None] = lambda model: None) -> Iterator[Measured]:
    """Build every model without memory and count it in all ways that were published; half a minute."""
    for name in list_models():
        progress(name)
        ways = {_key(name, row.counting, row.trained_on) for row in published(name) if row.params}
        for _, counting, classes in sorted({_key(name, "exact", "market1501")} | ways):
            with torch.device("meta"):
                model = create_model(name, num_classes=classes, num_cameras=CAMERAS)
            yield Measured(name, counting, classes, model.feature_dim, *complexity(model, counting=counting))


def _key(model: str, counting: str, trained_on: str) -> tuple[str, str, int]:
    # ABD-Net's count has the classifiers in it, whose size is the dataset's; all others were made with Market-1501's.
    return model, counting, IDENTITIES[trained_on if counting == "thop-abd" else "market1501"]
