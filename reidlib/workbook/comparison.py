"""Two or more runs on one dataset: what differs in their settings, in their scores, and query by query."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reidlib.data.samples import ReIDDataset
from reidlib.evaluation import bootstrap, permutation_test
from reidlib.scores import NAMES, RETRIEVAL
from reidlib.workbook import parity
from reidlib.workbook.ranked import Ranked, of_run

if TYPE_CHECKING:
    import pandas as pd

    from reidlib.workbook.runs import Run

# Settings that say where and when a run was made, not how.
_ELSEWHERE = {"run", "resume", "output", "workers", "cpu", "skip_check", "plugin_files", "recipe_settings"}


def open_runs(names: Sequence[str], *, plugins: str = "", **first: Any) -> dict[str, "Run"]:
    """The runs of these names, by name; the newest run alone where no name is given.

    Args:
        names: Names or paths, each of another run.
        plugins: As in `Run.open`.
        first: Further arguments of `Run.open` for the first: it keeps what the comparison writes.

    Raises:
        ValueError: Two of them are one run, or have one name.
    """
    from reidlib.workbook.runs import Run

    found = [Run.open(name, plugins=plugins, **({} if n else first)) for n, name in enumerate(names or [""])]
    by_name = {run.name: run for run in found}
    if len(by_name) < len(found):
        raise ValueError(f"runs to compare need different names, got {', '.join(run.name for run in found)}")
    return by_name


def rank(
    runs: Mapping[str, "Run"],
    data: ReIDDataset,
    metric: str = "",
    *,
    flip: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Ranked]:
    """The ranking of a dataset by each run.

    Args:
        runs: Label → run. One alone is compared with its own network before any training.
        data: The dataset.
        metric: "cosine" or "euclidean"; empty: each run its own.
        flip, workers, progress: As for `Run.features`.

    Returns:
        Label → ranking, in the order of `runs`; "untrained" first where there is one run.
    """
    rankings: dict[str, Ranked] = {}
    for label, run in runs.items():
        if len(runs) == 1:
            untrained = run.load_model(random=run.params.get("seed") or 0)
            features = run.extract(untrained, data, flip=flip, workers=workers, progress=progress)
            rankings["untrained"] = Ranked(data, *features, metric or run.metric, label="untrained")
        rankings[label] = of_run(run, data, metric, flip=flip, workers=workers, progress=progress)
    return rankings


def published_lines(run: "Run", data: ReIDDataset, ranking: Ranked) -> list[str]:
    """What was published for a run's model beside its scores here, a sentence each."""
    about = {"metric": ranking.metric, "cameras": run.cameras(data) is not None, **data.stamp()}
    known = run.params | run.read_json("model.json")
    found = parity.compare(known, data.name, ranking.result.to_dict() | about, (ranking.query, ranking.gallery))
    return [f"{run.name}: {line}" for line in found]


def settings_that_differ(runs: Mapping[str, "Run"]) -> "pd.DataFrame":
    """Each setting in which the runs are not all alike, a column a run.

    Args:
        runs: Label → run. Settings are those of params.json, with the recipe's beside them.
    """
    import pandas as pd

    found = {label: _settings(run) for label, run in runs.items()}
    names = dict.fromkeys(name for settings in found.values() for name in settings)
    rows = {name: [str(settings.get(name, "")) for settings in found.values()] for name in names}
    rows = {name: values for name, values in rows.items() if len(set(values)) > 1}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(found))


def _settings(run: "Run") -> dict[str, Any]:
    params = run.params
    flat = {name: value for name, value in params.items() if not isinstance(value, dict) and name not in _ELSEWHERE}
    for value in params.values():
        if isinstance(value, dict):
            flat |= {name: inner for name, inner in value.items() if not isinstance(inner, dict)}
    return {name: value for name, value in flat.items() if name not in _ELSEWHERE}


def score_table(rankings: Mapping[str, Ranked], measured: Sequence[str] = ("rank1", "mAP")) -> "pd.DataFrame":
    """The scores of each ranking, and how far each is from the first: is that difference more than chance?

    Args:
        rankings: Label → ranking; all of the same dataset.
        measured: What is compared.

    Returns:
        A row a ranking: scores in percent; for each of `measured` the difference to the first in points, its 95 %
        interval (paired bootstrap over queries) and the p-value of a paired permutation test.

    Raises:
        ValueError: Rankings of other queries.
    """
    import pandas as pd

    base, rows = next(iter(rankings.values())).result, {}
    for label, ranking in rankings.items():
        scores = ranking.result.to_dict()
        row: dict[str, Any] = {NAMES[key]: f"{100 * scores[key]:.1f}" for key in RETRIEVAL}
        for name in measured if ranking.result is not base else ():
            difference, p = permutation_test(base, ranking.result, name)
            low, high = bootstrap(ranking.result, name, against=base)
            row[f"Δ {NAMES[name]}"] = f"{100 * difference:+.1f}"
            row[f"Δ {NAMES[name]}, 95 %"] = f"{100 * low:+.1f} to {100 * high:+.1f}"
            row[f"p ({NAMES[name]})"] = f"{p:.4f}" if p >= 0.001 else "< 0.001"
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def over_seeds(runs: Mapping[str, "Run"], rankings: Mapping[str, Ranked]) -> "pd.DataFrame":
    """Mean ± sample standard deviation of Rank-1 and mAP over runs that differ in their seed alone.

    Args:
        runs: Label → run.
        rankings: The same labels → ranking.

    Returns:
        A row a group of two or more runs; empty without one.
    """
    import pandas as pd

    groups: dict[str, list[str]] = {}
    for label, run in runs.items():
        settings = _settings(run)
        groups.setdefault(str(sorted((k, str(v)) for k, v in settings.items() if k != "seed")), []).append(label)
    rows = {}
    for labels in (group for group in groups.values() if len(group) > 1):
        scores = [rankings[label].result.to_dict() for label in labels]
        row = {}
        for key in ("rank1", "mAP"):
            values = [100 * score[key] for score in scores]
            row[NAMES[key]] = f"{mean(values):.1f} ± {stdev(values):.1f}"
        rows[", ".join(labels)] = row | {"runs": len(labels)}
    return pd.DataFrame.from_dict(rows, orient="index")


def moved_queries(first: Ranked, second: Ranked, count: int = 4) -> tuple[list[int], list[int]]:
    """Query indices: the `count` whose average precision rises most from `first` to `second`, and that falls most.

    Queries that do not move in that direction are left out.
    """
    change = torch.nan_to_num(second.result.ap - first.result.ap).numpy()
    order = np.argsort(change, kind="stable")
    better = [int(i) for i in order[::-1][:count] if change[i] > 0]
    return better, [int(i) for i in order[:count] if change[i] < 0]


def ap_table(first: Ranked, second: Ranked) -> "pd.DataFrame":
    """The queries with a match as points for `maps.explore_map`: x and y are their average precision in percent."""
    from reidlib.workbook.maps import map_table

    aps = torch.stack([first.result.ap, second.result.ap], dim=1)
    keep = torch.nonzero(~aps.isnan().any(dim=1)).flatten()
    return map_table(first, 100 * aps[keep], keep.tolist())
