"""Datasets by name: which names there are, and what each of them reads."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from reidlib.data.drawn.writer import SETTINGS, SIZES, write_synthetic
from reidlib.data.layouts import DRAWN, LAYOUTS, Counts, Layout, layout_names, read_layout
from reidlib.data.own_images import has_images, read_folder
from reidlib.data.patches import apply_corrections
from reidlib.data.readers import read_cuhk03, read_dukemtmcreid, read_market1501, read_msmt17
from reidlib.data.samples import COMBINED, ReIDDataset, Sample, merge
from reidlib.data.tables import TABLES, read_table
from reidlib.errors import unknown_name
from reidlib.paths import data_names, data_path, data_paths_file, slug

__all__ = ["PUBLISHED", "READERS", "ReIDDataset", "Sample", "list_datasets", "load_dataset", "merge"]


def read_drawn(name: str, root: Path, where: str) -> ReIDDataset:
    """A drawn dataset, `<setting>-<size>`; drawn into `root` on first use, at 128 × 64 pixels."""
    return read_market1501(name, write_synthetic(root, *name.split("-")), where)


def read_edition(name: str, root: Path, where: str, *, edition: str, layout: Layout) -> ReIDDataset:
    """An edition of a drawn dataset, `<setting>-<edition>-<size>` and its protocol's ending; drawn on first use."""
    setting, _, size = name.split("-")[:3]
    return read_layout(name, write_synthetic(root, setting, size, edition=edition), where, layout=layout)


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
for _edition, _layouts in DRAWN.items():
    READERS |= {
        f"synthetic-{_edition}-{size}{ending}": partial(read_edition, edition=_edition, layout=layout)
        for size in SIZES
        for ending, layout in _layouts.items()
    }
for _boxes in ("detected", "labelled"):
    READERS[f"cuhk03-{_boxes}"] = partial(read_cuhk03, boxes=_boxes)
    READERS |= {f"cuhk03-{_boxes}-split{n}": partial(read_cuhk03, boxes=_boxes, split=n) for n in range(1, 21)}

READERS |= {name: partial(read_layout, layout=layout, split=n) for name, (layout, n) in layout_names().items()}

# (images, people, cameras) of train, query and gallery as published; None where the publication does not say.
PUBLISHED: dict[str, tuple[Counts, ...]] = {
    "market1501": ((12936, 751, 6), (3368, 750, 6), (19732, 750, 6)),
    "market1501-500k": ((12936, 751, 6), (3368, 750, 6), (None, 750, 6)),
    "dukemtmcreid": ((16522, 702, 8), (2228, 702, 8), (17661, 1110, 8)),
    "msmt17": ((32621, 1041, 15), (11659, 3060, 15), (82161, 3060, 15)),
    "msmt17-noval": ((30248, 1041, 15), (11659, 3060, 15), (82161, 3060, 15)),
    "cuhk03-detected": ((7365, 767, 2), (1400, 700, 2), (5332, 700, 2)),
    "cuhk03-labelled": ((7368, 767, 2), (1400, 700, 2), (5328, 700, 2)),
}
PUBLISHED |= {
    name: ((None, 1367, 2), (None, 100, 2), (None, 100, 2)) for name in READERS if re.match("cuhk03-.*-split", name)
}
PUBLISHED |= {name: layout.counts for name, (layout, _) in layout_names().items()}


def list_datasets() -> list[str]:
    """Every name that `load_dataset` takes here: those of `READERS`, and tables that data_paths.yaml names."""
    return sorted({*READERS, *(name for name, path in data_names().items() if path.lower().endswith(TABLES))})


def load_dataset(
    name: str | Path,
    *,
    combineall: bool = False,
    tested_on: str = "",
    patch: str | Path = "",
    people: str = "",
    pattern: str = "",
    split: str = "",
    seed: int = 0,
) -> ReIDDataset:
    """Read a dataset from where data_paths.yaml says it lies, or a folder of images or a table by its path.

    A folder, or a table with the column `path` alone, gives a dataset without labels: all images are in the gallery.

    Args:
        name: one of `list_datasets()`; "a+b" joins training sets. "synthetic" alone, and so on, means the size `small`.
            Or the path of a folder or of a table.
        combineall: add query and gallery to the training set; the name's ending "-combineall" does the same.
        tested_on: the dataset whose query and gallery to take; see `merge`.
        patch: a table of corrected labels; see `patches`.
        people: "folders": of a folder, each sub-folder is a person; see `own_images.read_folder`.
        pattern: what the file names of a folder say, such as `{camid}_{time}_*.jpg` or `{pid}_c{camid}s*`; with a "/"
            in it, what paths say: `{camid}/{pid}/*`.
        split: "auto": by person, half of them to train; see `own_images.dataset_of`.
        seed: of that split.

    Raises:
        ValueError: for an unknown name, files that do not fit their layout, or a patch that does not fit the dataset.
        FileNotFoundError: where the files are not there.
    """
    own = {"people": people, "pattern": pattern, "split": split, "seed": seed}
    name = str(name)
    combineall |= name.endswith(COMBINED)
    joined = [name] if _is_path(name) else name.removesuffix(COMBINED).split("+")
    parts = [_load(part, **own) for part in joined]
    data = merge(parts, combineall=combineall, tested_on=_load(tested_on) if tested_on else None)
    return apply_corrections(data, patch) if patch else data


def _is_path(name: str) -> bool:
    """Whether a name that no dataset has is the path of something."""
    if name in READERS or name in SETTINGS or "\0" in name:
        return False
    return name not in data_names() and Path(name).expanduser().exists()


def load_adaptation(source: str, target: str, *, tested_on: str = "") -> ReIDDataset:
    """A labelled source and a target to be clustered as one dataset.

    Args:
        source: one of `list_datasets()`, whose people are `labelled`; or empty.
        target: what `load_dataset` takes; pids of its training set only measure the clusters. Of images without labels,
            such as a folder, all are clustered.
        tested_on: whose query and gallery to take; empty: the target's own, if it has labels.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`.
    """
    labelled, other = [_load(source)] if source else [], _load(target)
    if not other.train:
        other = replace(other, train=other.query + other.gallery, query=(), gallery=())
    data = merge([*labelled, other], tested_on=_load(tested_on) if tested_on else other)
    people = frozenset(s.pid for part in labelled for s in part.train if s.pid > 0)  # the first keep their numbers
    return replace(data, labelled=people)


def _load(name: str, *, people: str = "", pattern: str = "", split: str = "", seed: int = 0) -> ReIDDataset:
    name += "-small" if name in SETTINGS else ""
    own = {"people": people, "pattern": pattern, "split": split}
    if name in READERS:
        if asked := [argument for argument, value in own.items() if value]:
            raise ValueError(f"{name} has a layout of its own: {', '.join(asked)} are for folders and tables of yours")
        return READERS[name](name, *data_path(name if name in data_names() else name.partition("-")[0]))
    if name in data_names():
        path, where = data_path(name)
    elif _is_path(name):
        path, where = Path(name).expanduser().absolute(), "as given"
        name = slug(path.stem if path.is_file() else path.name)
    else:
        raise _unknown(name)
    if path.is_dir() and (where == "as given" or has_images(path)):
        return read_folder(name, path, **own, seed=seed)
    if str(path).lower().endswith(TABLES):
        if asked := [argument for argument in ("people", "pattern") if own[argument]]:
            raise ValueError(f"{', '.join(asked)} are for folders: {path} is a table, whose columns say it")
        return read_table(name, path, where, split=split, seed=seed)
    raise ValueError(f"{name}: {path} ({where}) is no table ({', '.join(TABLES)}), no folder of images, and no layout "
                     f"has that name: write it under one of {_names()}")  # fmt: skip


def _unknown(name: str) -> Exception:
    """The error for a name that is neither a dataset's nor a path's, with what could have been meant."""
    path = Path(name).expanduser()
    if name.isprintable() and (len(path.parts) > 1 or path.suffix.lower() in TABLES):
        there = next(folder for folder in path.parents if folder.is_dir())
        near = get_close_matches(path.name, os.listdir(there), n=1) if there == path.parent else []
        hint = f"did you mean {there / near[0]}?" if near else f"of it there is {there}"
        return FileNotFoundError(f"there is no folder or table {path}: {hint}")
    own = name if name.isidentifier() else "mine"
    return ValueError(
        f"{unknown_name('dataset', name, list_datasets())} There are {_names()}. For images of your own give the path "
        f"of their folder, or write `{own}: list.csv` into {data_paths_file()}, a table of path,pid,camid,split"
    )


def _names() -> str:
    """Names in a line, the splits of a dataset and the sizes of a drawn one together; of `LAYOUTS` only where they are
    listed.
    """
    further = layout_names()
    splits: dict[str, int] = {}
    for name in list_datasets():
        if name not in further:
            base, _, number = name.partition("-split")
            splits[base] = max(splits.get(base, 0), int(number or 0))
    # A name without splits may have some beside it: cuhk03-detected.
    several = [f"{base}-split1 to {last}" for base, last in splits.items() if last]
    drawn = [f"{setting}-{', -'.join(SIZES)}" for setting in (*SETTINGS, *(f"synthetic-{e}" for e in DRAWN))]
    names = {name for name in list_datasets() if "-split" not in name} - further.keys()
    single = sorted(name for name in names if name.partition("-")[0] not in SETTINGS)
    return ", ".join([*single, *drawn, *several, f"and {len(LAYOUTS)} that `python -m reidlib.data` lists"])
