"""Data sets by name: which names there are, and what each of them reads."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from reidlib.data.drawn import writer
from reidlib.data.readers import read_cuhk03, read_dukemtmcreid, read_market1501, read_msmt17, read_table
from reidlib.data.samples import COMBINED, ReIDDataset, Sample, merge
from reidlib.errors import unknown_name
from reidlib.paths import data_names, data_path

__all__ = ["PUBLISHED", "ReIDDataset", "Sample", "list_datasets", "load_dataset", "merge", "read_market1501"]

# A name's first word is its line in data_paths.yaml; what follows a dash chooses among its protocols.
READERS: dict[str, Callable[[str, Path, str], ReIDDataset]] = {
    "market1501": read_market1501,
    "market1501-500k": partial(read_market1501, distractors=True),
    "dukemtmcreid": read_dukemtmcreid,
    "msmt17": read_msmt17,
    "msmt17-noval": partial(read_msmt17, val=False),
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


def _tables() -> list[str]:
    """Names in data_paths.yaml that are tables of somebody's own."""
    return [name for name, folder in data_names().items() if Path(str(folder)).suffix in (".csv", ".parquet")]


def list_datasets() -> list[str]:
    """Every name that `load_dataset` knows here. Synthetic ones take a size: `synthetic-tiny`."""
    drawn = (f"{setting}-{size}" for setting in writer.SETTINGS for size in writer.SIZES)
    return sorted([*READERS, *drawn, *_tables()])


def load_dataset(
    name: str, *, image_size: tuple[int, int] = (128, 64), combineall: bool = False, tested_on: str = ""
) -> ReIDDataset:
    """Read data set `name` from where data_paths.yaml says it lies.

    `a+b` joins training sets, `combineall` (or the name's ending "-combineall") adds query and gallery to them, and
    `tested_on` names the data set whose query and gallery to take: see `merge`. `synthetic` and `synthetic_b`, with a
    size behind a dash (no dash: small), are drawn on first use at `image_size` (height, width), which other data sets
    ignore: their pictures are resized when they are loaded. A name whose line in data_paths.yaml is a .csv or .parquet
    file is a table of one's own. Raises ValueError for an unknown name, FileNotFoundError where the files are not.
    """
    combineall |= name.endswith(COMBINED)
    parts = [_load(part, image_size) for part in name.removesuffix(COMBINED).split("+")]
    return merge(parts, combineall=combineall, tested_on=_load(tested_on, image_size) if tested_on else None)


def _load(name: str, image_size: tuple[int, int]) -> ReIDDataset:
    line, _, size = name.partition("-")
    if line in writer.SETTINGS:
        size = size or "small"
        if size not in writer.SIZES:
            raise unknown_name("size of the synthetic data set", size, writer.SIZES)
        folder, where = data_path(line)
        root = writer.write_synthetic(folder, line, size, image_size=image_size)
        return read_market1501(f"{line}-{size}", root, where)
    if name in READERS:
        return READERS[name](name, *data_path(line))
    if name in _tables():
        return read_table(name, *data_path(name))
    raise unknown_name("data set", name, list_datasets())
