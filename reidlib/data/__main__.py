"""`python -m reidlib.data`: every published dataset that can be read, and which of them are on this computer."""

import argparse

from reidlib.data.datasets import PUBLISHED, READERS
from reidlib.data.drawn.writer import SETTINGS
from reidlib.data.layouts import LAYOUTS
from reidlib.paths import data_names, data_path, data_paths_file

_FIRST = {
    "market1501": "Market-1501",
    "market1501-500k": "Market-1501 with 500k distractors",
    "dukemtmcreid": "DukeMTMC-reID (withdrawn)",
    "msmt17": "MSMT17",
    "cuhk03-detected": "CUHK03, 767/700, detected boxes",
    "cuhk03-labelled": "CUHK03, 767/700, labelled boxes",
}


def rows() -> list[tuple[str, ...]]:
    """Name, title, published images of train, query and gallery, rule, and the folder where it lies here."""
    titles = _FIRST | {name: layout.title for name, layout in LAYOUTS.items()}
    found: list[tuple[str, ...]] = []
    for name, title in titles.items():
        layout = LAYOUTS.get(name)
        shown = f"{name}-split1 to {layout.splits}" if layout and layout.splits else name
        reader = next(n for n in READERS if n == name or n.startswith(f"{name}-split"))
        counts = " / ".join("?" if count[0] is None else f"{count[0]:,}" for count in PUBLISHED[reader])
        found.append((shown, title, counts, layout.rule if layout else "", _where(name)))
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
    print(
        f"\nAn empty rule: Market-1501's. Paths: {data_paths_file()}. Drawn here on first use: {', '.join(SETTINGS)}."
    )


if __name__ == "__main__":
    main()
