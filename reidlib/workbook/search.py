"""Several seeds, or a search over parameters: every point is a run, all of them in the folder of the search.

    python -m reidlib.batch train test --grid lr 1e-3 3e-3 --grid seed 0 1 2 -p epochs 20 -p run rates --jobs 2

leaves `runs/rates/lr=0.001,seed=0/` and so on, each a run folder like any other, and beside them `search.json` (what
was asked for, and which points failed), `table.csv` (a line a point and dataset), `result.json` (mean and spread over
the seeds) and `figures/`. The same call again runs what has not ended well; one with more values adds points. Points
side by side are jobs of submitit, here or under Slurm; their logs are in `jobs/`.
"""

import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from reidlib.files import whole_file
from reidlib.run_folder import check_formats
from reidlib.scores import HEADLINE, NAMES, SCORES
from reidlib.training.settings import read_text
from reidlib.workbook import batch
from reidlib.workbook.runs import Run, write_tables
from reidlib.workbook.search_points import SEED, Texts, Trials, combinations, read_axes, sampled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Values = dict[str, Any]
POLL = 1.0  # seconds between two looks at what runs side by side
_SLURM = {"gpus": "gpus_per_node", "cpus": "cpus_per_task"}  # as submitit calls them


def search(
    names: Sequence[str],
    given: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    *,
    jobs: int = 1,
    slurm: str = "",
    sample: int = 0,
    optuna: int = 0,
    progress: bool = False,
) -> Run:
    """Run notebooks for each combination of the values in a grid.

    A notebook that ended well is not run again, a training that was interrupted goes on. A point that fails is noted in
    search.json, and the others go on.

    Args:
        names: The notebooks of each point, in this order.
        given: Parameters that all points share; its `run` names the folder.
        grid: The values of each parameter; a value may be a text, as on a command line, and a text may be a range (see
            `search_points`).
        jobs: Points at a time on this computer, each with a GPU, if there are any, and its share of the cores.
        slurm: Submit the points to Slurm: "partition=gpu,gpus=1,time=4:00:00", by the names of sbatch's options. Not
            more than `jobs` of them at a time, if that is above 1. This call waits for them.
        sample: Draw so many combinations at random, each with every seed, in place of all.
        optuna: Let optuna choose so many points one after the other, and stop those that are worse than the median.
        progress: Print what is begun and what has failed.

    Returns:
        The folder of the search.

    Raises:
        ValueError: Before anything runs: a parameter that no notebook knows or that is both given and searched, a
            folder that holds another search, arguments that contradict each other, a package that is not installed.
        OSError: Another process is at this search.
    """
    given = {name: _text(value) for name, value in given.items()}
    folder = Run(Run.folder(given.pop("run", "") or "-".join(["search", *grid])))
    if "formats" in given:
        folder.formats = check_formats(read_text("formats", given["formats"], tuple[str, ...]))
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if sample and optuna:
        raise ValueError("either draw points at random or let optuna choose them: leave out --sample or --optuna")
    for axis, values in grid.items():
        if axis in given or axis == "run":
            raise ValueError(f"{axis!r} cannot be searched: it is given, or the name of the search")
        if isinstance(values, str) or not values:
            raise ValueError(f"the grid needs a list of values for {axis!r}, got {values!r}")
    axes = read_axes({axis: [_text(value) for value in values] for axis, values in grid.items()})

    def point(texts: Texts) -> "Point":
        return _point(names, given, texts)

    fixed = [] if optuna else [point(texts) for texts in (sampled(axes, sample) if sample else combinations(axes))]
    with folder.lock():
        state = _state(folder, batch.sort_parameters(names, given), grid)
        trials = Trials(folder, axes, optuna, "mAP" if "train" in names else "top1") if optuna else None
        points = map(point, trials) if trials else fixed
        state["points"] |= {name: place for name, place, _ in fixed}
        folder.write_json("search.json", state)
        executor = _executor(folder, slurm) if slurm or jobs > 1 or trials else None
        at_a_time = jobs if jobs > 1 or not slurm else 1 << 20
        count = optuna or len(fixed)
        if executor is None:
            _one_by_one(folder, fixed, state, progress=progress)
        else:
            _SideBySide(folder, state, executor, trials, at_a_time, progress).run(points, count)
    return folder


Point = tuple[str, Values, dict[str, Values]]
"""A point's name, its place in the grid, and what each notebook gets."""


def _point(names: Sequence[str], given: Mapping[str, str], texts: Texts) -> Point:
    values = batch.sort_parameters(names, {**given, **texts})
    flat = [own | own.get("settings", {}) for own in values.values()]
    place = {axis: next(own[axis] for own in flat if axis in own) for axis in texts}
    return ",".join(f"{axis}={_slug(value)}" for axis, value in place.items()), place, values


def _one_by_one(folder: Run, points: Sequence[Point], state: dict[str, Any], *, progress: bool) -> None:
    for at, (name, _, values) in enumerate(points, 1):
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


class _SideBySide:
    """Points as jobs of submitit, whose ids search.json holds: a search called again waits for those that still run."""

    def __init__(
        self, folder: Run, state: dict[str, Any], executor: Any, trials: Trials | None, jobs: int, progress: bool
    ) -> None:
        self.folder, self.state, self.executor, self.trials = folder, state, executor, trials
        self.jobs, self.progress = jobs, progress
        self.running: dict[str, Any] = {}  # jobs by the name of their point
        self.slots: dict[str, int] = {}
        for key in ("jobs", "stopped"):
            self.state.setdefault(key, {})

    def run(self, points: Iterable[Point], count: int) -> None:
        try:
            for at, (name, place, values) in enumerate(self._when_free(points), 1):
                while name in self.running:
                    self._wait()
                self.state["points"][name] = place
                for key in ("failed", "stopped"):
                    self.state[key].pop(name, None)
                if self.trials:
                    self.trials.begin(name)
                self._say(f"{at}/{count} {self.folder.name}/{name}")
                self.running[name] = self._begin(name, values)
                self.folder.write_json("search.json", self.state)
            while self.running:
                self._wait()
        except BaseException:  # an interruption: jobs under Slurm go on by themselves
            if isinstance(self.executor, _local()):
                for job in self.running.values():
                    job.cancel()
            raise

    def _when_free(self, points: Iterable[Point]) -> Iterator[Point]:
        """The points, each asked for when it can begin: optuna then knows all that has ended."""
        source = iter(points)
        while True:
            while len(self.running) >= self.jobs:
                self._wait()
            if (point := next(source, None)) is None:
                return
            yield point

    def _begin(self, name: str, values: dict[str, Values]) -> Any:
        if known := self.state["jobs"].get(name):
            job = self.executor.job_class(folder=self.executor.folder, job_id=known)
            if not job.done():
                return job
        environment: dict[str, str | None] = {key: v for key, v in os.environ.items() if key.startswith("REID_")}
        if isinstance(self.executor, _local()):
            slot = self.slots[name] = min(set(range(self.jobs)) - set(self.slots.values()))
            environment |= _share(slot, self.jobs)
        job = self.executor.submit(_run_job, str(self.folder.path / name), values, environment)
        self.state["jobs"][name] = job.job_id
        return job

    def _wait(self) -> None:
        """Look at what runs; sleep a while if nothing has ended."""
        ended = [name for name, job in self.running.items() if job.done()]
        for name in ended:
            job = self.running.pop(name)
            error = str(job.exception() or "") or job.result()
            if error:
                self.state["failed"][name] = error.strip()
                self._say(f"{name}: {error.strip().splitlines()[-1]}")
            self._end(name, "FAIL" if error else "COMPLETE")
        for name, job in list(self.running.items()):
            if self.trials and self.trials.hopeless(name, Run(self.folder.path / name).metrics):
                job.cancel()
                while not job.done():
                    time.sleep(POLL / 10)
                self.running.pop(name)
                epoch = Run(self.folder.path / name).metrics[-1]["epoch"]
                self.state["stopped"][name] = f"stopped by optuna after epoch {epoch}"
                self._say(f"{name}: {self.state['stopped'][name]}")
                self._end(name, "PRUNED")
        if not ended:
            time.sleep(POLL)

    def _end(self, name: str, state: str) -> None:
        if self.trials:
            self.trials.end(name, Run(self.folder.path / name).metrics, state)
        self.slots.pop(name, None)
        self.state["jobs"].pop(name, None)
        self.folder.write_json("search.json", self.state)
        _write_scores(self.folder)

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, flush=True)


def _local() -> type:
    from submitit import LocalExecutor

    return LocalExecutor


def _executor(folder: Run, slurm: str) -> Any:
    """Where points are run side by side. Raises ValueError without submitit or Slurm, or for an option it lacks."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError("points side by side need submitit: pip install submitit") from error
    jobs = folder.path / "jobs"
    if not slurm:
        executor = submitit.LocalExecutor(jobs)
        executor.update_parameters(timeout_min=60 * 24 * 365)
        return executor
    options = dict(part.strip().partition("=")[::2] for part in slurm.split(","))
    if "time" not in options:
        raise ValueError("--slurm needs the time that a point may take: partition=gpu,gpus=1,time=4:00:00")
    given = {_SLURM.get(name, name): int(value) if value.isdigit() else value for name, value in options.items()}
    try:
        executor = submitit.SlurmExecutor(jobs)
        executor.update_parameters(**given | {"time": _minutes(options["time"])})
    except (RuntimeError, ValueError) as error:  # no srun here, or an unknown option
        raise ValueError(f"--slurm {slurm}: {error}") from error
    return executor


def _minutes(time_limit: str) -> int:
    """Minutes of a time as Slurm writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes]."""
    days, dash, rest = time_limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes = [*parts, 0][:2]
        return (24 * int(days) + hours) * 60 + minutes
    return parts[0] * 60 + parts[1] if len(parts) == 3 else parts[0]


def _share(slot: int, jobs: int) -> dict[str, str | None]:
    """What a job gets of this computer: one GPU, if there are any, and its share of the cores."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // jobs))
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)] if gpus else visible, "OMP_NUM_THREADS": str(threads)}


def _run_job(path: str, notebooks: dict[str, Values], environment: Mapping[str, str | None]) -> str:
    """Run a point in a process of its own. Returns why it failed, or nothing."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        _run_point(Run(path), notebooks, progress=False)
    except (batch.NotebookFailed, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


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
        if name not in state["failed"] and name not in state.get("stopped", {}):
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
    ended = state["failed"] | state.get("stopped", {})
    failed = [{"run": name, **_plain(state["points"][name]), "failed": why} for name, why in ended.items()]
    with whole_file(folder.path / "table.csv") as part:
        pd.DataFrame(rows + failed).to_csv(part, index=False)
    folder.write_json("result.json", {"over": SEED, "settings": spread(folder)})
    write_tables(table(folder), folder.path / "results")
    for data, figure in figures(folder).items():
        folder.save_figure(figure, data)
