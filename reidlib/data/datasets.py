"""Datasets by name: which names there are, and what each of them reads."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from reidlib.data.drawn.writer import SETTINGS, SIZES, write_synthetic
from reidlib.data.patches import apply_corrections
from reidlib.data.readers import read_cuhk03, read_dukemtmcreid, read_market1501, read_msmt17
from reidlib.data.samples import COMBINED, ReIDDataset, Sample, merge
from reidlib.data.tables import TABLES, read_table
from reidlib.errors import unknown_name
from reidlib.paths import data_names, data_path, data_paths_file

__all__ = ["PUBLISHED", "READERS", "ReIDDataset", "Sample", "list_datasets", "load_dataset", "merge"]


def read_drawn(name: str, root: Path, where: str) -> ReIDDataset:
    """A drawn dataset, `<setting>-<size>`; drawn into `root` on first use, at 128 × 64 pixels."""
    return read_market1501(name, write_synthetic(root, *name.split("-")), where)


# name → function(name, path, where): `path` is what data_paths.yaml says of the name, or of its first word before a
# dash, and `where` the line that says so, for messages. Plug-ins add entries.
READERS: dict[str, Callable[[str, Path, str], ReIDDataset]] = {
    "market1501": read_market1501,
    "market1501-500k": partial(read_market1501, distractors=True),
    "dukemtmcreid": read_dukemtmcreid,
    "msmt17": read_msmt17,
    "msmt17-noval": partial(read_msmt17, val=False),
    **{f"{setting}-{size}": read_drawn for setting in SETTINGS for size in SIZES},
}
for _boxes in ("detected", "labelled"):
    READERS[f"cuhk03-{_boxes}"] = partial(read_cuhk03, boxes=_boxes)
    READERS |= {f"cuhk03-{_boxes}-split{n}": partial(read_cuhk03, boxes=_boxes, split=n) for n in range(1, 21)}

# (images, people, cameras) of train, query and gallery as published; None where the publication does not say.
PUBLISHED: dict[str, tuple[tuple[int | None, int, int], ...]] = {
    "market1501": ((12936, 751, 6), (3368, 750, 6), (19732, 750, 6)),
    "market1501-500k": ((12936, 751, 6), (3368, 750, 6), (None, 750, 6)),
    "dukemtmcreid": ((16522, 702, 8), (2228, 702, 8), (17661, 1110, 8)),
    "msmt17": ((32621, 1041, 15), (11659, 3060, 15), (82161, 3060, 15)),
    "msmt17-noval": ((30248, 1041, 15), (11659, 3060, 15), (82161, 3060, 15)),
    "cuhk03-detected": ((7365, 767, 2), (1400, 700, 2), (5332, 700, 2)),
    "cuhk03-labelled": ((7368, 767, 2), (1400, 700, 2), (5328, 700, 2)),
}
PUBLISHED |= {name: ((None, 1367, 2), (None, 100, 2), (None, 100, 2)) for name in READERS if "-split" in name}


def list_datasets() -> list[str]:
    """Every name that `load_dataset` takes here: those of `READERS`, and tables that data_paths.yaml names."""
    return sorted({*READERS, *(name for name, path in data_names().items() if path.lower().endswith(TABLES))})


def load_dataset(name: str, *, combineall: bool = False, tested_on: str = "", patch: str | Path = "") -> ReIDDataset:
    """Read a dataset from where data_paths.yaml says it lies.

    Args:
        name: one of `list_datasets()`; "a+b" joins training sets. "synthetic" and "synthetic_b" mean the size `small`.
        combineall: add query and gallery to the training set; the name's ending "-combineall" does the same.
        tested_on: the dataset whose query and gallery to take; see `merge`.
        patch: a table of corrected labels; see `patches`.

    Raises:
        ValueError: for an unknown name, files that do not fit their layout, or a patch that does not fit the dataset.
        FileNotFoundError: where the files are not there.
    """
    combineall |= name.endswith(COMBINED)
    parts = [_load(part) for part in name.removesuffix(COMBINED).split("+")]
    data = merge(parts, combineall=combineall, tested_on=_load(tested_on) if tested_on else None)
    return apply_corrections(data, patch) if patch else data


def _load(name: str) -> ReIDDataset:
    name += "-small" if name in SETTINGS else ""
    if name in READERS:
        return READERS[name](name, *data_path(name if name in data_names() else name.partition("-")[0]))
    if name in list_datasets():
        return read_table(name, *data_path(name))
    if name in data_names():
        path, where = data_path(name)
        raise ValueError(f"{name}: {path} ({where}) is no table ({', '.join(TABLES)}), and no layout has that name: "
                         f"write it under one of {_names()}")  # fmt: skip
    own = name if name.isidentifier() else "mine"
    raise ValueError(
        f"{unknown_name('dataset', name, list_datasets())} There are {_names()}. For images of your own write "
        f"`{own}: list.csv` into {data_paths_file()}, a table of path,pid,camid,split"
    )


def _names() -> str:
    """All names in a line, the twenty splits of CUHK03 as one."""
    names = [name for name in list_datasets() if "-split" not in name]
    return ", ".join(names) + ", cuhk03-detected-split1 to 20, cuhk03-labelled-split1 to 20"
