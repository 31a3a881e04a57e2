"""`python -m reidlib.models.printed.page`: write MODEL_ZOO.md (`make zoo`), every model counted anew."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from reidlib.files import whole_file
from reidlib.models import list_models
from reidlib.models.printed.cards import same_network
from reidlib.models.printed.costs import WHY, Figure, Measured, count, exact, figures, measured, pareto_front
from reidlib.models.printed.published import LATER, SOURCES, Published, published, results
from reidlib.models.wirings import MGN
from reidlib.models.zoo import MODELS, Model
from reidlib.paths import REPOSITORY

PAGE = REPOSITORY / "MODEL_ZOO.md"
DATASETS = {"market1501": "Market-1501", "dukemtmcreid": "DukeMTMC-reID", "msmt17": "MSMT17"}
SECTIONS: tuple[
    tuple[str, str, Callable[[Model], bool], dict[str, str]], ...
] = (  # heading, what to know, models, columns
    (
        "FastReID: bagtricks, AGW, SBS",
        "Three recipes (Luo et al., Ye et al., He et al.) on many trunks.",
        lambda spec: spec.family == "fast-reid" and spec.wiring is not MGN,
        DATASETS,
    ),
    (
        "FastReID: MGN",
        "The whole image, halves and thirds (Wang et al.), with the pools of the same three recipes.",
        lambda spec: spec.wiring is MGN,
        DATASETS,
    ),
    (
        "TransReID, ABD-Net, APNet, AGW, BoT",
        "Each from its authors' code. `vit_transreid` and `deit_transreid` are told the camera.",
        lambda spec: spec.family in ("TransReID", "ABD-Net", "APNet", "AGW", "reid-strong-baseline"),
        DATASETS,
    ),
    (
        "torchreid",
        "The zoo of deep-person-reid in 2020, and in 2019 where that left a model out; `_dpr` are the same networks "
        "trained again by pytorch-reid-models. `hacnn` was trained from scratch. Of `osnet_ibn_x1_0` and "
        "`osnet_ain_x1_0` results were published [across datasets](#from-one-dataset-to-another). The models without a "
        "result complete torchreid's list; for these there are no weights but ImageNet's.",
        lambda spec: spec.family == "torchreid",
        DATASETS,
    ),
    (
        "CLIP-ReID, SOLIDER, PersonViT, PASS, TransReID-SSL",
        "Transformers, and one ResNet, pretrained on more than ImageNet: on images with their captions (CLIP), or on "
        "images of persons without labels (LUPerson). Those named `usl` were fine-tuned without labels, too. Of "
        "CLIP-ReID its authors publish files without figures.",
        lambda spec: spec.family in ("CLIP-ReID", "SOLIDER", "PersonViT", "PASS", "TransReID-SSL"),
        DATASETS,
    ),
    (
        "LightMBN",
        "Three branches on an OSNet or a ResNet-50; features are averaged over mirror images, and each of their seven "
        "parts is normalised.",
        lambda spec: spec.family == "LightMBN",
        DATASETS,
    ),
    (
        "torchreid, 2018",
        "The first zoo of deep-person-reid: mostly the same networks in other weights. CUHK03: detected boxes, new "
        "protocol (767/700).",
        lambda spec: spec.family == "torchreid-2018",
        DATASETS | {"cuhk03-detected": "CUHK03"},
    ),
)
CROSSINGS = (
    *(("market1501", "dukemtmcreid"), ("dukemtmcreid", "market1501")),
    *(("msmt17", "market1501"), ("msmt17", "dukemtmcreid")),
)
# Figures in it are of the tables and of `measured.csv`; a test compares them.
WHICH = (
    "**Which model should I take today?** On a laptop `osnet_x1_0`: 2.2 M parameters, 1.0 G multiply-adds, plain "
    "downloads; or `lmbn_n`, with 91.5 mAP on Market-1501, for 2.4 G, twice where features are averaged over mirror "
    "images. On a server `solider_swin_tiny` (91.6 mAP at 5.5 G) or `personvit_vit_small` (92.9 mAP at 2.9 G; its "
    "repository has no licence). For a paper compare with the best that is published, `personvit_vit_base` (95.0 on "
    "Market-1501, 80.8 on MSMT17), `solider_swin_base` (93.9 and 77.1) and `clipreid_vit_b16`, beside a baseline that "
    "everybody has, `resnet50_bot` or `vit_base_transreid`."
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
    yield "<!-- Written by `make zoo` from reidlib/models/printed/published.csv and measured.csv: edit those. -->"
    yield (
        f"**{len(list_models())} models, {len(scored)} published results, {len(links)} files of weights.** Accuracies "
        "are percentages as each source printed them. Parameters (millions) and multiply-adds (billions an image) are "
        "counted here: all that runs at test time, once, without classifiers; where a source prints another figure, "
        "[it is said why](#what-the-sources-count-otherwise). [`notebooks/zoo.ipynb`](notebooks/zoo.ipynb) searches, "
        "sorts and draws all of this, and has a card for each model; so has `python -m reidlib.models NAME`."
    )
    yield (
        "```python\nimport reidlib\n\n"
        'model = reidlib.create_model("resnet50_bot", weights="market1501")  # the newest of that name\n'
        'model = reidlib.create_model("hacnn", weights="torchreid-2019-03:dukemtmcreid")  # those of one source\n```'
    )
    titles = ["Which one?", *(title for title, *_ in SECTIONS), "From one dataset to another", "Sources"]
    yield " · ".join(f"[{title}](#{_anchor(title)})" for title in titles)


def fronts() -> Iterator[str]:
    yield "## Which one?"
    yield WHICH
    yield (
        "No other result beats these in both mAP and multiply-adds, from the cheapest to the best. **Rank-1** / mAP "
        "stand where that is so, trained and tested on the same dataset, without re-ranking, linked to the weights. "
        "First among all results, the front of 2026; then among the tables of torchreid and pytorch-reid-models alone, "
        "whose networks are of 2021 and before."
    )
    for later in (True, False):
        best: dict[str, dict[str, Published]] = {}
        for name in DATASETS:
            rows = [row for row in results(name) if later or row.table not in LATER]
            front = pareto_front([exact(row.model).macs for row in rows], [float(row.mAP) for row in rows])
            for row in (row for row, on in zip(rows, front, strict=True) if on):
                best.setdefault(row.model, {})[name] = row
        cells = [
            (f"`{model}`", *_size(model), *(_score(best[model].get(name)) for name in DATASETS))
            for model in sorted(best, key=lambda model: exact(model).macs)
        ]
        yield f"### The front of {2026 if later else 2021}"
        yield _table(("Model", "Params", "Mult-adds", *DATASETS.values()), cells)
    yield "![mAP on Market-1501 over multiply-adds and over parameters](docs/zoo.jpg)"


def families() -> Iterator[str]:
    yield "## All models"
    yield "**Rank-1** / mAP, linked to the weights. Within a family, the best on Market-1501 first."
    for title, text, belongs, columns in SECTIONS:
        names = [name for name in list_models() if belongs(MODELS[name])]
        lines: dict[tuple[str, str], dict[str, Published]] = {}
        for column in columns:
            for row in results(column):
                if row.model in names:
                    lines.setdefault((row.model, row.loss), {})[column] = row
        files = {(row.model, row.trained_on): row for row in published() if row.link and row.rank1 is None}
        order = sorted(lines.items(), key=lambda line: -getattr(line[1].get("market1501"), "mAP", 0))
        several = [model for model, _ in lines]
        cells = []
        for (model, loss), rows in order + [((name, ""), {}) for name in names if name not in several]:
            name = f"`{model}`" + f" ({loss})" * (several.count(model) > 1)
            size = "{}×{}".format(*MODELS[model].input_size)
            scores = [_score(rows.get(column) or files.get((model, column))) for column in columns]
            cells.append((name, *_size(model, notes=True), exact(model).feature, size, *scores))
        yield f"### {title}"
        yield text
        yield _table(("Model", "Params", "Mult-adds", "Feature", "Input", *columns.values()), cells)
    again = {name: {row.model: row for row in results(name, rerank=True)} for name in DATASETS}
    models = dict.fromkeys(model for name in DATASETS for model in again[name])
    cells = [(f"`{model}`", *(_score(again[name].get(model)) for name in DATASETS)) for model in models]
    yield _folded(
        f"With re-ranking: Rank-1 / mAP of the {len(cells)} models that they are printed for",
        _table(("Model", *DATASETS.values()), cells),
    )
    more = {name: {row.model: row for row in results(name) if row.mINP is not None} for name in DATASETS}
    models = sorted(more["market1501"], key=lambda model: -more["market1501"][model].mINP)
    cells = [
        (f"`{m}`", *(f"{more[d][m].rank5:.1f}\u00a0/\u00a0{more[d][m].mINP:.1f}" for d in DATASETS)) for m in models
    ]
    title = f"Rank-5 / mINP of the {len(models)} models that they are printed for"
    yield _folded(title, _table(("Model", *DATASETS.values()), cells))


def crossings() -> Iterator[str]:
    rows = {pair: {row.model: row for row in results(*pair)} for pair in CROSSINGS}
    models = sorted(rows["msmt17", "market1501"].values(), key=lambda row: -row.mAP)
    yield "## From one dataset to another"
    yield (
        "**Rank-1** / mAP without an image of the target in training. From MSMT17, all of its images were trained on. "
        "All with flips and colour jitter; `osnet_ain_x1_0` is ranked by cosine, the others by euclidean distance."
    )
    head = [f"{DATASETS[a]}{', all images' * (a == 'msmt17')} → {DATASETS[b]}" for a, b in CROSSINGS]
    cells = [(f"`{row.model}`", *(_score(rows[pair].get(row.model)) for pair in CROSSINGS)) for row in models]
    yield _table(("Model", *head), cells)


def starts() -> Iterator[str]:
    yield "## Weights to start from"
    for trained_on, text in (
        ("imagenet", "Trained on ImageNet, for networks that no library has"),
        ("luperson", "Trunks trained on LUPerson without labels, `weights='luperson'`"),
    ):
        links = [_linked(f"`{row.model}`", row) for row in published() if row.trained_on == trained_on]
        yield f"{text}: " + ", ".join(links) + "."


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
        where = f" on {DATASETS[row.trained_on]}" if "its file is" in row.note else ""
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
        licence = source.licence or "not looked up"
        cells.append((f"[{name}]({source.url})", source.title, source.says, ways, licence, len(rows)))
    yield _table(("Name", "What", "Counts", "Evaluates by", "Licence", "Results"), cells, left=5)
    yield (
        "The published networks and weights belong to their authors. A repository without a licence grants none: ask "
        "its authors before use. Links to mega.nz, Google Drive, OneDrive and Hugging Face require a browser (the last "
        "two are folders of files), the others are plain downloads."
    )


def footnotes() -> Iterator[str]:
    for counting, whys in WHY.items():
        odd = [figure for figure in figures() if figure.counting == counting]
        said = []
        for model in dict.fromkeys(figure.model for figure in odd):
            for unit, side in (("M", 0), ("G", 1)):
                printed = dict.fromkeys(_notable(figure)[side] for figure in odd if figure.model == model)
                if values := ", ".join(filter(None, printed)):
                    said.append((f"`{model}` {values} {unit}", whys[side]))
        if said:
            reasons = "; ".join(dict.fromkeys(why for _, why in said))
            yield f"[^{counting}]: Printed are {', '.join(text for text, _ in said)}: {reasons}."


def _notable(figure: Figure) -> tuple[str, ...]:
    """What is printed of a model's parameters and multiply-adds; empty where that is not far from what it has."""
    sides = (
        (figure.params_why, figure.printed_params, figure.params / 1e6),
        (figure.macs_why, figure.printed_macs, figure.macs / 1e9),
    )
    return tuple(text if why and abs(float(text) / here - 1) > NOTABLE else "" for why, text, here in sides)


def _size(model: str, *, notes: bool = False) -> tuple[str, str]:
    """Millions of parameters and billions of multiply-adds; `notes` marks those that are printed far off."""
    here = exact(model)
    marks = (
        dict.fromkeys(f"\u00a0[^{figure.counting}]" for figure in figures(model) if notes and _notable(figure)[side])
        for side in (0, 1)
    )
    params, macs = ("".join(each) for each in marks)
    return f"{here.params / 1e6:.2f}{params}", f"{here.macs / 1e9:.2f}{macs}"


def _score(row: Published | None) -> str:
    """On one line: the spaces do not break."""
    if row is not None and row.rank1 is None:
        return _linked("file", row)
    return _linked(f"**{row.rank1:.1f}**\u00a0/\u00a0{row.mAP:.1f}", row) if row else "–"


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
