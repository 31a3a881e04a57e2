"""Several seeds, or a small grid of parameters: every combination is a run, all of them in the folder of the search.

    python -m reidlib.batch train test --grid lr 1e-3 3e-3 --grid seed 0 1 2 -p epochs 20 -p run rates

leaves `runs/rates/lr=0.001,seed=0/` and so on, each a run folder like any other, and beside them `search.json` (what
was asked for, and which points failed), `table.csv` (a line a point and dataset), `result.json` (mean and spread over
the seeds) and `figures/`. The same call again runs what has not ended well; one with more values adds points.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from reidlib.files import whole_file
from reidlib.run_folder import check_formats
from reidlib.scores import HEADLINE, NAMES, SCORES
from reidlib.training.settings import read_text
from reidlib.workbook import batch
from reidlib.workbook.runs import Run, write_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SEED = "seed"  # the parameter over which mean and spread are taken
Values = dict[str, Any]


def search(
    names: Sequence[str], given: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], *, progress: bool = False
) -> Run:
    """Run the notebooks `names` for each combination of the values in `grid`; returns the folder of the search.

    `given` are the parameters that all points share; its `run` names the folder. A value may be a text, as on a command
    line. A notebook that ended well is not run again, a training that was interrupted goes on. A point that fails is
    noted in search.json, and the others go on. Before anything runs, raises ValueError for a parameter that no notebook
    knows or that is both given and searched, and where the folder holds another search; OSError where another process
    is at it.
    """
    given = {name: _text(value) for name, value in given.items()}
    folder = Run(Run.folder(given.pop("run", "") or "-".join(["search", *grid])))
    if "formats" in given:
        folder.formats = check_formats(read_text("formats", given["formats"], tuple[str, ...]))
    points = dict(_points(names, given, grid))
    with folder.lock():
        state = _state(folder, batch.sort_parameters(names, given), grid)
        state["points"] |= {name: axes for name, (axes, _) in points.items()}
        folder.write_json("search.json", state)
        _run_points(folder, points, state, progress=progress)
    return folder


def _run_points(
    folder: Run, points: dict[str, tuple[Values, dict[str, Values]]], state: dict[str, Any], *, progress: bool
) -> None:
    for at, (name, (_, values)) in enumerate(points.items(), 1):
        if progress:
            print(f"{at}/{len(points)} {folder.name}/{name}", flush=True)
        state["failed"].pop(name, None)
        try:
            _run_point(Run(folder.path / name), values, progress=progress)
        except batch.NotebookFailed as error:
            state["failed"][name] = str(error)
            if progress:
                print(f"  {error}", flush=True)
        folder.write_json("search.json", state)
        _write_scores(folder)


def _points(
    names: Sequence[str], given: Mapping[str, str], grid: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, tuple[Values, dict[str, Values]]]]:
    """The name of each point, its place in the grid, and what each notebook gets."""
    for axis, values in grid.items():
        if axis in given or axis == "run":
            raise ValueError(f"{axis!r} cannot be searched: it is given, or the name of the search")
        if isinstance(values, str) or not values:
            raise ValueError(f"the grid needs a list of values for {axis!r}, got {values!r}")
    for texts in product(*([_text(v) for v in values] for values in grid.values())):
        values = batch.sort_parameters(names, {**given, **dict(zip(grid, texts, strict=True))})
        flat = [own | own.get("settings", {}) for own in values.values()]
        axes = {axis: next(own[axis] for own in flat if axis in own) for axis in grid}
        yield ",".join(f"{axis}={_slug(value)}" for axis, value in axes.items()), (axes, values)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if value is None else json.dumps(value)


def _slug(value: Any) -> str:
    """A value as part of a folder's name, another for each value: a list's entries are joined by +."""
    text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    plain = re.sub(r"[^\w.+-]+", "-", text)
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"


def _state(folder: Run, notebooks: dict[str, Values], grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What search.json holds, `notebooks` added; it must be the same search."""
    new = json.loads(json.dumps({"grid": list(grid), "notebooks": notebooks, "points": {}, "failed": {}}))
    old = folder.read_json("search.json")
    if not old:
        if folder.path.exists() and any(path.name != ".lock" for path in folder.path.iterdir()):
            raise ValueError(f"{folder.path} exists and is not the folder of a search: choose another `run`")
        return new
    wrong = [] if old["grid"] == new["grid"] else [f"over {', '.join(old['grid'])}"]
    for name, values in new["notebooks"].items():
        made = old["notebooks"].get(name, values)
        differ = [p for p in {**made, **values} if made.get(p) != values.get(p)]
        wrong += [f"{name}: {p} {made.get(p)} → {values.get(p)}" for p in differ]
    if wrong:
        raise ValueError(f"{folder.path} holds another search ({'; '.join(wrong)}): choose another `run`")
    return old | {"notebooks": old["notebooks"] | new["notebooks"]}


def _run_point(run: Run, notebooks: dict[str, Values], *, progress: bool) -> None:
    """What has not ended well of a point's notebooks, and whatever comes after it."""
    done = True
    for name, values in notebooks.items():
        done = done and (run.path / "notebooks" / f"{batch.page_name(name, values, run)}.ipynb").is_file()
        if not done:
            batch.run_notebook(name, values | {"run": str(run.path)}, progress=progress)


def _results(folder: Run) -> Iterator[tuple[str, Values, str, str, dict[str, float]]]:
    """The point, its place in the grid, the weights that it began with, a dataset and the scores on it; ended ones."""
    state = folder.read_json("search.json")
    for name, axes in state["points"].items():
        if name not in state["failed"]:
            result = Run(folder.path / name).read_json("result.json")
            for data, row in result.get("results", {}).items():
                scores = {key: value for key, value in row.items() if isinstance(value, float)}
                yield name, axes, result.get("init") or "", data, scores


def spread(folder: Run) -> list[dict[str, Any]]:
    """Mean and spread over the seeds, one entry for each setting of the rest of the grid, in the order of the search.

    An entry has `setting` (its values), `seeds` (runs that ended well), `init` (the weights that they began with) and
    `results[dataset][score]`, a share each: `mean`, `std` (sample standard deviation; None for a single run) and the
    `values` themselves.
    """
    settings: dict[str, dict[str, Any]] = {}
    for _, axes, init, data, row in _results(folder):
        setting = {axis: value for axis, value in axes.items() if axis != SEED}
        entry = settings.setdefault(json.dumps(setting), {"setting": setting, "seeds": 0, "init": init, "results": {}})
        for score, value in row.items():
            entry["results"].setdefault(data, {}).setdefault(score, []).append(value)
    for entry in settings.values():
        counts = [len(values) for row in entry["results"].values() for values in row.values()]
        entry["seeds"] = max(counts, default=0)
        for row in entry["results"].values():
            row |= {
                score: {"mean": mean(v), "std": stdev(v) if len(v) > 1 else None, "values": v}
                for score, v in row.items()
            }
    return list(settings.values())


def table(folder: Run) -> "DataFrame":
    """Mean ± spread in percent, one row a setting and dataset."""
    import pandas as pd

    rows = []
    for entry in spread(folder):
        for data, row in entry["results"].items():
            cells = {NAMES[score]: _percent(row[score]) for score in SCORES if score in row}
            about = {"dataset": data, "weights before": entry["init"], "seeds": entry["seeds"]}
            rows.append(_plain(entry["setting"]) | about | cells)
    return pd.DataFrame(rows).fillna("")


def _plain(axes: Values) -> Values:
    """Values of a point as cells of a table."""
    return {axis: _slug(value) if isinstance(value, list | dict) else value for axis, value in axes.items()}


def _percent(score: dict[str, Any]) -> str:
    return f"{100 * score['mean']:.1f}" + ("" if score["std"] is None else f" ± {100 * score['std']:.1f}")


def figures(folder: Run) -> dict[str, "Figure"]:
    """For each dataset every run's scores as dots, a row a setting, with mean and spread."""
    from reidlib.plots import score_spread

    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in spread(folder):
        label = ", ".join(f"{axis} {value}" for axis, value in _plain(entry["setting"]).items()) or "all seeds"
        for data, row in entry["results"].items():
            for score in (score for score in HEADLINE if score in row):
                rows.setdefault(data, {}).setdefault(score, {})[label] = row[score]["values"]
    return {data: score_spread(panels, title=f"{folder.name} on {data}") for data, panels in rows.items()}


def _write_scores(folder: Run) -> None:
    """table.csv, result.json and the figures, as far as the search has come."""
    import pandas as pd

    state = folder.read_json("search.json")
    rows = [
        {"run": name, **_plain(axes), "init": init, "dataset": data, **row}
        for name, axes, init, data, row in _results(folder)
    ]
    failed = [{"run": name, **_plain(state["points"][name]), "failed": why} for name, why in state["failed"].items()]
    with whole_file(folder.path / "table.csv") as part:
        pd.DataFrame(rows + failed).to_csv(part, index=False)
    folder.write_json("result.json", {"over": SEED, "settings": spread(folder)})
    write_tables(table(folder), folder.path / "results")
    for data, figure in figures(folder).items():
        folder.save_figure(figure, data)
