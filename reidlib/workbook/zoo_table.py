"""The zoo as its notebook shows it: one table to search, filter and sort, the card of a model, and its speed here."""

import math
import time
from collections.abc import Iterable, Sequence
from html import escape
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch

from reidlib.errors import unknown_name
from reidlib.models import create_model, list_models
from reidlib.models.printed.cards import Card, card, sections
from reidlib.models.printed.costs import exact, figures, pareto_front
from reidlib.models.printed.page import CROSSINGS, DATASETS
from reidlib.models.printed.published import LATER, SOURCES, published, results
from reidlib.models.zoo import MODELS
from reidlib.scores import NAMES, RETRIEVAL
from reidlib.training.recipes import RECIPES, Recipe
from reidlib.workbook.views import is_interactive

if TYPE_CHECKING:
    import pandas as pd

FILTERS = ("trained on", "tested on", "source", "family")
WHY = {"params printed": "params differ", "mult-adds printed": "mult-adds differ"}  # a figure, and its reason
NEVER = (*WHY.values(), "link")  # columns that are shown as marks
HIDDEN = ("feature", NAMES["rank5"], NAMES["rank10"], "loss", "transforms", "distance", "protocol", "note", "training")


def zoo_table() -> "pd.DataFrame":
    """Every published result as printed, newest source first, beside the parameters (millions) and multiply-adds
    (billions) counted here; where a printed one differs, `params differ` and `mult-adds differ` say why.
    """
    import pandas as pd

    why = {(f.model, f.table, data): (f.params_why, f.macs_why) for f in figures() for data in f.trained_on}
    rows = []
    for row in (row for row in reversed(published()) if row.rank1 is not None):
        here, spec = exact(row.model), MODELS[row.model]
        params_why, macs_why = why.get((row.model, row.table, row.trained_on), ("", ""))
        rows.append(
            {
                "model": row.model,
                "trained on": row.trained_on + " (all images)" * row.combineall,
                "tested on": row.tested_on,
                **{NAMES[key]: getattr(row, key) for key in RETRIEVAL},
                "params": round(here.params / 1e6, 3),
                "params printed": row.params,
                "params differ": params_why,
                "mult-adds": round(here.macs / 1e9, 3),
                "mult-adds printed": row.macs,
                "mult-adds differ": macs_why,
                "source": row.table,
                "re-ranked": "yes" * row.rerank,
                "training": row.training or "with labels",
                "licence": SOURCES[row.table].licence,
                "family": spec.family,
                "feature": here.feature,
                "input": "{} × {}".format(*spec.input_size),
                **{key: getattr(row, key) for key in ("loss", "transforms", "distance", "protocol", "note", "link")},
            }
        )
    return pd.DataFrame(rows)


def select(
    table: "pd.DataFrame", search: str = "", *, sort: str = "mAP", descending: bool = True, **filters: str
) -> "pd.DataFrame":
    """The rows in which every word of `search` stands (in any case), sorted by the column `sort`.

    `filters`: trained_on, tested_on, source, family, each one value or "" for any. Rows without a value to sort by come
    last; equals stay in their order. ValueError for an unknown column or value, with the nearest ones.
    """
    if sort not in table.columns:
        raise unknown_name("column", sort, table.columns)
    keep = table.index >= 0
    for key, value in filters.items():
        column = key.replace("_", " ")
        if column not in FILTERS:
            raise unknown_name("filter", key, [name.replace(" ", "_") for name in FILTERS])
        if value and value not in set(table[column]):
            raise unknown_name(f"value of {key}", value, sorted(set(table[column])))
        keep &= (table[column] == value) | (not value)
    text = table.apply(lambda row: " ".join(map(str, row)).lower(), axis=1)
    for word in search.lower().split():
        keep &= text.str.contains(word, regex=False)
    return table[keep].sort_values(sort, ascending=not descending, kind="stable", na_position="last")


def show(table: "pd.DataFrame", rows: int = 0, *, sort: str = "", every: bool = False) -> Any:
    """The first `rows` (0: all) as HTML: each mAP is a link to its weights; figures that are printed otherwise than
    counted here carry a number, and the reasons stand below. `every` column is shown, or the chief ones and `sort`.
    """
    from IPython.display import HTML

    hidden = NEVER if every else (*NEVER, *(column for column in HIDDEN if column != sort))
    columns = [column for column in table.columns if column not in hidden]
    reasons: dict[str, int] = {}
    cells = []
    for row in (table.head(rows) if rows else table).to_dict("records"):
        line = {column: "" if row[column] != row[column] else escape(str(row[column])) for column in columns}
        if row["link"]:
            line["mAP"] = f'<a href="{escape(row["link"])}" target="_blank" rel="noopener">{line["mAP"]}</a>'
        for printed, why in WHY.items():
            if row[why]:
                line[printed] += f"<sup>{reasons.setdefault(row[why], len(reasons) + 1)}</sup>"
        cells.append(line.values())
    notes = "".join(f"<br><sup>{number}</sup> {escape(why)}" for why, number in reasons.items())
    said = f"{len(table)} published results" + f", the first {len(cells)} shown" * (len(cells) < len(table))
    units = (
        "parameters in millions, multiply-adds in billions, counted here and as printed; each mAP links to its weights"
    )
    box = f'<div style="max-height: 32em; overflow: auto">{_html(columns, cells, wrap=False)}</div>'
    return HTML(f"<p>{said}; {units}.</p>{box}<p><small>{notes.removeprefix('<br>')}</small></p>")


def plain(table: "pd.DataFrame") -> Any:
    """A small table as HTML, its text on the left."""
    from IPython.display import HTML

    return HTML(_html(table.columns, table.itertuples(index=False)))


def browse_table(table: "pd.DataFrame", *, rows: int = 0, every: bool = False, **chosen: Any) -> Any:
    """`show(select(table, **chosen), rows)`; where somebody watches, all rows, with fields to choose them by."""
    if not is_interactive():
        return show(select(table, **chosen), rows, sort=chosen.get("sort", ""), every=every)
    from IPython.display import display
    from ipywidgets import Checkbox, Dropdown, HBox, Text, VBox, interactive_output

    fields: dict[str, Any] = {"search": Text(chosen.get("search", ""), placeholder="any words", description="search")}
    for column in FILTERS:
        key, values = column.replace(" ", "_"), sorted(set(table[column]))
        options = [("any", ""), *((value, value) for value in values)]
        fields[key] = Dropdown(options=options, value=chosen.get(key, ""), description=column)
    fields["sort"] = Dropdown(
        options=[c for c in table.columns if c not in NEVER], value=chosen.get("sort", "mAP"), description="sort by"
    )
    fields["descending"] = Checkbox(chosen.get("descending", True), description="largest first")
    fields["every"] = Checkbox(every, description="all columns")

    def draw(*, every: bool, **values: Any) -> None:
        display(show(select(table, **values), sort=values["sort"], every=every))

    parts = list(fields.values())
    return VBox([HBox(parts[:3]), HBox(parts[3:5]), HBox(parts[5:]), interactive_output(draw, fields)])


def differences() -> "pd.DataFrame":
    """How many printed figures are those counted here, and for each reason how many are not, by how much at most."""
    import pandas as pd

    reasons: dict[tuple[str, str], list[float]] = {}
    for figure in figures():
        for what, why, printed, here in (
            ("parameters", figure.params_why, figure.printed_params, figure.params / 1e6),
            ("multiply-adds", figure.macs_why, figure.printed_macs, figure.macs / 1e9),
        ):
            if printed:
                reasons.setdefault((what, why), []).append(100 * (float(printed) / here - 1) if why else 0)
    rows = [(what, why or "as here", len(off), round(max(off, key=abs), 1)) for (what, why), off in reasons.items()]
    table = pd.DataFrame(rows, columns=["printed", "beside what is counted here", "figures", "off by at most (%)"])
    return table.sort_values(["printed", "figures"], ascending=False, kind="stable", ignore_index=True)


def cost_figure(dataset: str, score: str = "mAP") -> Any:
    """The newest results of all models on a dataset, `score` (mAP, rank1, rank5 or mINP) over what they cost here."""
    from reidlib.plots import cost_accuracy

    rows = [row for row in results(dataset) if getattr(row, score) is not None]
    scores = [getattr(row, score) for row in rows]
    costs = {
        "multiply-adds (G)": [exact(row.model).macs / 1e9 for row in rows],
        "parameters (M)": [exact(row.model).params / 1e6 for row in rows],
    }
    fronts = {key: pareto_front(cost, scores) for key, cost in costs.items()}
    old = [row.table not in LATER for row in rows]
    earlier = {}
    for key, cost in costs.items():
        front = iter(pareto_front(list(compress(cost, old)), list(compress(scores, old))))
        earlier[key] = [known and next(front) for known in old]
    names, families = [row.model for row in rows], [MODELS[row.model].family for row in rows]
    title = f"{DATASETS[dataset]}: {score} of {len(rows)} published results over cost"
    return cost_accuracy(
        costs, fronts, scores, names, families, title, f"{score} (%)", earlier, "the front of 2021 (dashed)"
    )


def crossing_matrix(score: str = "mAP") -> tuple[list[list[float]], list[str], list[str]]:
    """Published `score` as fractions from one dataset to another, NaN where there is none; models, and the columns."""
    rows = {pair: {row.model: getattr(row, score) for row in results(*pair)} for pair in CROSSINGS}
    last = rows[CROSSINGS[-1]]
    models = sorted(last, key=lambda model: -last[model])
    short = {"market1501": "Market", "dukemtmcreid": "Duke", "msmt17": "MSMT17 (all)"}
    matrix = [[(rows[pair].get(model) or math.nan) / 100 for pair in CROSSINGS] for model in models]
    return matrix, models, [f"{short[a]} → {short[b]}" for a, b in CROSSINGS]


def card_page(shown: Card) -> Any:
    """A card as HTML: facts, parts, every printed figure beside what is counted here, results, weights, recipe."""
    from IPython.display import HTML

    settings = RECIPES[shown.recipe]
    changed = ", ".join(f"{name} {getattr(settings, name)}" for name in settings.changed(Recipe()))
    pages = [f"<h3>{escape(shown.name)}</h3>"]
    for title, columns, rows in sections(shown, changed):
        pages += [f"<h4>{title}</h4>"] * bool(title)
        pages.append(_html(map(escape, columns), (map(_linked, row) for row in rows)))
    return HTML("".join(pages) + "<p>No weights were published.</p>" * (not shown.weights))


def _linked(cell: str) -> str:
    text = escape(cell)
    return f'<a href="{text}" target="_blank" rel="noopener">{text}</a>' if cell.startswith("http") else text


def browse_cards(names: Sequence[str], **how: Any) -> Any:
    """The cards of `names`, each with its speed here (`how`: what `speed_line` takes); where somebody watches, one of
    them, and a field to choose any other model by.
    """
    from IPython.display import display

    def draw(name: str) -> None:
        display(card_page(card(name)))
        print(speed_line(name, **how))

    if not is_interactive():
        for name in names:
            draw(name)
        return None
    from ipywidgets import Dropdown, interactive

    return interactive(draw, name=Dropdown(options=list_models(), value=names[0], description="model"))


def speed_line(name: str, *, batch: int = 8, seconds: float = 1.0, device: str | torch.device = "cpu") -> str:
    """What `speed` measures, in words; empty where it has no `seconds` for it."""
    if not seconds:
        return ""
    latency, rate = speed(name, batch=batch, seconds=seconds, device=device)
    threads = f", {torch.get_num_threads()} thread(s)" * (str(device) == "cpu")
    return f"{name} here, on {device}{threads}: {latency:.1f} ms an image, {rate:.1f} images/s in batches of {batch}"


def speed(
    name: str, *, batch: int = 8, seconds: float = 1.0, device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """Milliseconds for one image, and images a second in batches of `batch`, on this computer.

    Fresh weights in eval mode, float32, black images; of the runs that fit into `seconds` the quickest counts, which
    other work on the computer disturbs least.
    """
    model = create_model(name, num_classes=1, num_cameras=1).eval().to(device)
    best = []
    with torch.inference_mode():
        for count in (1, batch):
            images = torch.zeros(count, 3, *model.input_size, device=device)
            camids = torch.zeros(count, dtype=torch.int64, device=device)
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < 3 or time.perf_counter() < end:  # the first warms up
                start = time.perf_counter()
                model(images, camids).sum().item()  # waits for a GPU
                times.append(time.perf_counter() - start)
            best.append(min(times))
    return 1e3 * best[0], batch / best[1]


def _html(head: Iterable[str], rows: Iterable[Iterable[object]], *, wrap: bool = True) -> str:
    """A table with its text on the left; the first column, and all without `wrap`, keep to one line."""
    left, line = "text-align: left", "text-align: left; white-space: nowrap"
    over = "position: sticky; top: 0; background: var(--jp-layout-color0, white)"  # what scrolls below the titles
    titles = "".join(f'<th style="{line}; {over}">{title}</th>' for title in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{left if wrap and i else line}">{cell}</td>' for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
