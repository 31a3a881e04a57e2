"""`python -m reidlib.models.zoo_page`: count every model anew, then write MODEL_ZOO.md from the tables (`make zoo`)."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from reidlib.files import whole_file
from reidlib.models import list_models
from reidlib.models.cards import same_network
from reidlib.models.costs import WHY, Figure, Measured, count, exact, figures, measured, pareto_front
from reidlib.models.published import SOURCES, Published, published, results
from reidlib.models.zoo import MODELS

PAGE = Path(__file__).parents[2] / "MODEL_ZOO.md"
DATASETS = {"market1501": "Market-1501", "dukemtmcreid": "DukeMTMC-reID", "msmt17": "MSMT17"}
SECTIONS = (  # heading, what to know, families, columns
    (
        "FastReID",
        "`bagtricks` (Luo et al.), `agw` (Ye et al.), `sbs` (He et al.) and `mgn` (Wang et al.) on many trunks.",
        ("fast-reid",),
        DATASETS,
    ),
    (
        "TransReID, ABD-Net, APNet, AGW, BoT",
        "Each from its authors' code. `vit_transreid` and `deit_transreid` are told the camera.",
        ("TransReID", "ABD-Net", "APNet", "AGW", "reid-strong-baseline"),
        DATASETS,
    ),
    (
        "torchreid",
        "The zoo of deep-person-reid in 2020, and in 2019 where that left a model out; `_dpr` are the same networks "
        "trained again by pytorch-reid-models. `hacnn` was trained from scratch.",
        ("torchreid",),
        DATASETS,
    ),
    (
        "torchreid, 2018",
        "The first zoo of deep-person-reid: mostly the same networks in other weights. CUHK03: detected boxes, new "
        "protocol (767/700).",
        ("torchreid-2018",),
        DATASETS | {"cuhk03-detected": "CUHK03"},
    ),
)
CROSSINGS = (
    *(("market1501", "dukemtmcreid"), ("dukemtmcreid", "market1501")),
    *(("msmt17", "market1501"), ("msmt17", "dukemtmcreid")),
)
NOTABLE = 0.02  # a printed figure that is off by a larger share gets a footnote


def main() -> None:
    with whole_file(Path(__file__).with_name("measured.csv")) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Measured._fields)
        writer.writerows(count(lambda name: print("counting", name, flush=True)))
    measured.cache_clear()
    with whole_file(PAGE) as part:
        part.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole of MODEL_ZOO.md."""
    parts = (introduction, fronts, families, crossings, starts, contradictions, sources, footnotes)
    return "\n\n".join(block for part in parts for block in part()) + "\n"


def introduction() -> Iterator[str]:
    scored = [row for row in published() if row.rank1 is not None]
    links = {row.link for row in published() if row.link}
    yield "# The model zoo"
    yield "<!-- Written by `make zoo` from reidlib/models/published.csv and measured.csv: edit those. -->"
    yield (
        f"**{len(list_models())} models, {len(scored)} published results, {len(links)} files of weights.** Accuracies "
        "are percentages as each source printed them. Parameters (millions) and multiply-adds (billions an image) are "
        "counted here: all that runs at test time, once, without classifiers; where a source prints another figure, "
        "[it is said why](#what-the-sources-count-otherwise). [`notebooks/zoo.ipynb`](notebooks/zoo.ipynb) searches, "
        "sorts and draws all of this, and has a card for each model; so has `python -m reidlib.models NAME`."
    )
    yield (
        "```python\nimport reidlib\n\n"
        'model = reidlib.create_model("resnet50_bot", weights="market1501")               # the newest of that name\n'
        'model = reidlib.create_model("hacnn", weights="torchreid-2019-03:dukemtmcreid")  # those of one source\n```'
    )
    titles = ["Which one?", *(title for title, *_ in SECTIONS), "From one data set to another", "Sources"]
    yield " · ".join(f"[{title}](#{_anchor(title)})" for title in titles)


def fronts() -> Iterator[str]:
    yield "## Which one?"
    yield (
        "For each data set, the results that no other beats in both mAP and multiply-adds, from the cheapest to the "
        "best; all trained and tested on that data set."
    )
    yield "![mAP on Market-1501 over multiply-adds and over parameters](docs/zoo.jpg)"
    for name, title in DATASETS.items():
        rows = results(name)
        front = pareto_front([exact(row.model).macs for row in rows], [row.mAP for row in rows])
        best = sorted((row for row, on in zip(rows, front, strict=True) if on), key=lambda row: exact(row.model).macs)
        cells = [(f"`{row.model}`", *_size(row.model), _score(row)) for row in best]
        yield f"### {title}"
        yield _table(("Model", "Params", "Mult-adds", "Rank-1 / mAP"), cells)


def families() -> Iterator[str]:
    yield "## All models"
    yield "**Rank-1** / mAP, linked to the weights. Within a family, the best on Market-1501 first."
    for title, text, families, columns in SECTIONS:
        names = [name for name in list_models() if MODELS[name].family in families]
        lines: dict[tuple[str, str], dict[str, Published]] = {}
        for column in columns:
            for row in results(column):
                if row.model in names:
                    lines.setdefault((row.model, row.loss), {})[column] = row
        order = sorted(lines.items(), key=lambda line: -line[1]["market1501"].mAP)
        several = [model for model, _ in lines]
        cells = []
        for (model, loss), rows in order + [((name, ""), {}) for name in names if name not in several]:
            name = f"`{model}`" + f" ({loss})" * (several.count(model) > 1)
            size = "{} × {}".format(*MODELS[model].input_size)
            scores = [_score(rows[column]) if column in rows else "–" for column in columns]
            cells.append((name, *_size(model, notes=True), exact(model).feature, size, *scores))
        yield f"### {title}"
        yield text
        yield _table(("Model", "Params", "Mult-adds", "Feature", "Input", *columns.values()), cells)
    more = {name: {row.model: row for row in results(name) if row.mINP is not None} for name in DATASETS}
    models = sorted(more["market1501"], key=lambda model: -more["market1501"][model].mINP)
    cells = [(f"`{m}`", *(f"{more[d][m].rank5:.1f} / {more[d][m].mINP:.1f}" for d in DATASETS)) for m in models]
    title = f"Rank-5 / mINP of the {len(models)} models that they are printed for"
    yield _folded(title, _table(("Model", *DATASETS.values()), cells))


def crossings() -> Iterator[str]:
    rows = {pair: {row.model: row for row in results(*pair)} for pair in CROSSINGS}
    models = sorted(rows["msmt17", "market1501"].values(), key=lambda row: -row.mAP)
    yield "## From one data set to another"
    yield (
        "**Rank-1** / mAP without a picture of the target in training. From MSMT17, all of its images were trained on. "
        "All with flips and colour jitter; `osnet_ain_x1_0` is ranked by cosine, the others by euclidean distance."
    )
    head = [f"{DATASETS[a]}{', all images' * (a == 'msmt17')} → {DATASETS[b]}" for a, b in CROSSINGS]
    cells = [
        (f"`{m}`", *(_score(rows[p][m]) if m in rows[p] else "–" for p in CROSSINGS)) for m in (r.model for r in models)
    ]
    yield _table(("Model", *head), cells)


def starts() -> Iterator[str]:
    links = [_linked(f"`{row.model}`", row) for row in published() if row.trained_on == "imagenet"]
    yield "## Weights to start from"
    yield "Trained on ImageNet, for networks that no library has: " + ", ".join(links) + "."


def contradictions() -> Iterator[str]:
    yield "## What the sources count otherwise"
    yield (
        "Every printed size and cost is reproduced here to its last digit, by counting as its source did. Where that "
        "is not what the model has and does, this is why:"
    )
    odd = [figure for figure in figures() if figure.params_why or figure.macs_why]
    cells = []
    for counting, reasons in WHY.items():
        models = list(dict.fromkeys(figure.model for figure in odd if figure.counting == counting))
        few = ", ".join(f"`{model}`" for model in models) if len(models) < 4 else f"{len(models)} models"
        tables = dict.fromkeys(figure.table for figure in odd if figure.counting == counting)
        cells.append((few, ", ".join(tables), *(why or "as here" for why in reasons)))
    yield _table(("Models", "Source", "Parameters", "Multiply-adds"), cells, left=4)
    cells = []
    for (model, table), group in groupby(odd, key=lambda figure: (figure.model, figure.table)):
        each = list(group)
        params, macs = (" / ".join(dict.fromkeys(v)) for v in zip(*(figure[3:5] for figure in each), strict=True))
        here = f"{each[0].params / 1e6:.3f}", f"{each[0].macs / 1e9:.3f}"
        cells.append((f"`{model}`", table, params, here[0], macs or "–", here[1]))
    head = ("Model", "Source", "Params, printed", "here", "Mult-adds, printed", "here")
    yield _folded(f"All {len(cells)} of them in figures", _table(head, cells, left=2))
    yield "Further:"
    notes: dict[str, dict[str, None]] = {}
    for row in published():
        where = f" on {DATASETS[row.trained_on]}" if "its file" in row.note else ""
        notes.setdefault(row.note, {})[f"`{row.model}`{where} ({row.table})"] = None
    lines = [f"- {', '.join(models)}: {note}." for note, models in notes.items() if note]
    alike = dict.fromkeys(tuple(sorted((name, *same_network(name)))) for name in list_models() if same_network(name))
    names = "; ".join(" = ".join(f"`{name}`" for name in names) for names in alike)
    lines.append(f"- One network under several names, in other weights: {names}.")
    lines.append("- The tables of 2019 and 2020 print the same results where they share a model: the same weights.")
    yield "\n".join(lines)


def sources() -> Iterator[str]:
    yield "## Sources"
    cells = []
    for name, source in SOURCES.items():
        rows = [row for row in published() if row.table == name and row.rank1 is not None]
        distances = " or ".join(dict.fromkeys(row.distance for row in rows))
        ways = f"{distances} distance, {rows[0].precision}, means over {rows[0].means_over} queries"
        cells.append((f"[{name}]({source.url})", source.title, source.date, source.says, ways, len(rows)))
    yield _table(("Name", "What", "Date", "Counts", "Evaluates by", "Results"), cells, left=5)
    yield (
        "The published networks and weights belong to their authors. Links to mega.nz and Google Drive ask for a "
        "person, the others are plain downloads."
    )


def footnotes() -> Iterator[str]:
    notes: dict[str, dict[str, None]] = {}
    for figure in figures():
        notes.setdefault(figure.counting, {}).update(dict.fromkeys(_notable(figure)))
    for counting, printed in notes.items():
        if printed:
            params_why, macs_why = WHY[counting]
            parts = (("M", params_why), ("G", macs_why))
            reasons = [why for unit, why in parts if any(text.endswith(unit) for text in printed) and why]
            yield f"[^{counting}]: Printed are {', '.join(printed)}: {'; '.join(reasons)}."


def _notable(figure: Figure) -> list[str]:
    """What is printed of a model and far from what it has."""
    sides = (
        (figure.params_why, figure.printed_params, figure.params / 1e6, "M"),
        (figure.macs_why, figure.printed_macs, figure.macs / 1e9, "G"),
    )
    return [
        f"`{figure.model}` {printed} {unit}"
        for why, printed, here, unit in sides
        if why and abs(float(printed) / here - 1) > NOTABLE
    ]


def _size(model: str, *, notes: bool = False) -> tuple[str, str]:
    """Millions of parameters and billions of multiply-adds; `notes` marks those that are printed far off."""
    here = exact(model)
    marks = dict.fromkeys(f"[^{figure.counting}]" for figure in figures(model) if notes and _notable(figure))
    return f"{here.params / 1e6:.2f}{''.join(marks)}", f"{here.macs / 1e9:.2f}"


def _score(row: Published) -> str:
    return _linked(f"**{row.rank1:.1f}** / {row.mAP:.1f}", row)


def _linked(text: str, row: Published) -> str:
    return f"[{text}]({row.link})" if row.link else text


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> str:
    """The first `left` columns are text, the others numbers."""
    lines = [head, (":--",) * left + ("--:",) * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _folded(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def _anchor(title: str) -> str:
    """As GitHub makes them."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


if __name__ == "__main__":
    main()
