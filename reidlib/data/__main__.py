"""`python -m reidlib.data`: every published dataset that can be read, and which of them are on this computer."""

import argparse

from reidlib.data.datasets import PUBLISHED
from reidlib.data.drawn.writer import SETTINGS
from reidlib.data.layouts import LAYOUTS, Layout
from reidlib.paths import data_names, data_path, data_paths_file

_ZHENG, _CUHK = "zheng-lab.cecs.anu.edu.au/Project/project_reid.html", "ee.cuhk.edu.hk/~xgwang/CUHK_identification.html"
_RESEARCH = "research only, no redistribution"
_AGREEMENT = "by signed agreement"
_MSMT17 = "pkuvmc.com/publications/msmt17.html"
_FIRST = {  # title, rule, terms, page
    "market1501": ("Market-1501", "", _RESEARCH, _ZHENG),
    "market1501-500k": ("Market-1501 with 500k distractors", "", _RESEARCH, _ZHENG),
    "dukemtmcreid": ("DukeMTMC-reID", "", "CC BY-NC-SA 4.0; withdrawn by its authors in 2019", "none"),
    "msmt17": ("MSMT17", "trained on train and val, 32,621 images", _AGREEMENT, _MSMT17),
    "msmt17-noval": ("MSMT17", "trained on train alone, 30,248 images, as torchreid does", _AGREEMENT, _MSMT17),
    "cuhk03-detected": ("CUHK03, 767/700, detected boxes", "", "terms not found", _CUHK),
    "cuhk03-labelled": ("CUHK03, 767/700, labelled boxes", "", "terms not found", _CUHK),
}


def all_layouts() -> dict[str, Layout]:
    """Every published dataset that can be read; the first have readers of their own."""
    first = {
        name: Layout(title, "", counts=PUBLISHED[name], rule=rule, terms=terms, page=page)
        for name, (title, rule, terms, page) in _FIRST.items()
    }
    return first | LAYOUTS


def rows() -> list[tuple[str, ...]]:
    """Name, title, published images of train, query and gallery, rule, and the folder where it lies here."""
    found: list[tuple[str, ...]] = []
    for name, layout in all_layouts().items():
        shown = f"{name}-split1 to {layout.splits}" if layout.splits else name
        title, _, images, _, _, rule, *_ = layout.cells()
        found.append((shown, title, images, rule, _where(name)))
    return found


def _where(name: str) -> str:
    """The folder that data_paths.yaml names, if it is there."""
    line = next((n for n in (name, name.partition("-")[0]) if n in data_names()), "")
    if not line:
        return ""
    folder, _ = data_path(line)
    return str(folder) if folder.exists() else f"missing: {folder}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reidlib.data", description=__doc__)
    parser.parse_args()
    table = [("name", "dataset", "images: train / query / gallery", "rule", "here"), *rows()]
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    for row in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    drawn = ", ".join(SETTINGS)
    print(f"\nThe standard rule is Market-1501's. Paths: {data_paths_file()}. Drawn here on first use: {drawn}.")


if __name__ == "__main__":
    main()
