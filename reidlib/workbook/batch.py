"""Run notebooks in batch: papermill, with the checks that it lacks.

    python -m reidlib.batch train test ranklist gradcam tsne -p model osnet_x0_25 -p epochs 20

runs them one after the other into one run folder: `notebooks/<name>.ipynb` as executed and `<name>.html` beside it.
papermill only warns of a misspelt parameter and guesses types from the text; here an unknown name is refused with the
nearest one, and a value has the type that is declared. Parameters that the notebook itself does not declare, and that a
training knows, go into its `settings`. All of it is checked before a kernel starts. A failure names notebook, section
and error.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reidlib.errors import unknown_name
from reidlib.files import scratch_folder, whole_file
from reidlib.paths import REPOSITORY, data_paths_file, runs_root, slug
from reidlib.scores import NAMES, SCORES
from reidlib.training.settings import read_text, type_name
from reidlib.workbook.pages import Parameter, declared_parameters, write_pages
from reidlib.workbook.run_table import INDEX, as_table, list_pages, read_runs, write_index
from reidlib.workbook.runs import Run

if TYPE_CHECKING:
    from reidlib.training.job import Job

NOTEBOOKS = REPOSITORY / "notebooks"
_TASKS = ("train", "pretrain")  # notebooks whose `settings` takes every parameter of a training
_PATHS = {"run", "init", "weights", "plugins", "dataset", "datasets", "sources", "tested_on", "output"}


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died. The message says which notebook, which section, and what it said."""


def list_notebooks() -> list[str]:
    """The names of the notebooks, sorted."""
    return sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))


def parameters(name: str) -> dict[str, Parameter]:
    """The parameters of a notebook by name, those that it takes through `settings` last.

    Raises:
        ValueError: There is no notebook of that name.
    """
    if name not in list_notebooks():
        raise unknown_name("notebook", name, list_notebooks())
    book = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    declared = declared_parameters(book)
    if name in _TASKS and "settings" in declared:
        from reidlib.training.job import SETTINGS, describe_settings

        for setting, (_, default, words) in describe_settings(declared).items():
            declared[setting] = Parameter(SETTINGS[setting].type, default, words, in_settings=True)
    return declared


def sort_parameters(names: Sequence[str], given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What each notebook of `names` gets of the `given` texts.

    Raises:
        ValueError: None of them knows a parameter, or a text is no value of its type.
    """
    known = {name: parameters(name) for name in names}
    every = {p for declared in known.values() for p in declared}
    for parameter in given:
        if parameter not in every:
            raise unknown_name(f"parameter of {', '.join(names)}", parameter, every)
    sorted_values = {}
    for name, declared in known.items():
        read = {
            p: _absolute(p, read_text(p, text, declared[p].kind, optional=declared[p].optional))
            for p, text in given.items()
            if p in declared
        }
        further = {p: value for p, value in read.items() if declared[p].in_settings}
        values = {p: value for p, value in read.items() if p not in further}
        if further:
            values["settings"] = values.get("settings", {}) | {p: _plain_value(v) for p, v in further.items()}
        sorted_values[name] = values
    return sorted_values


def _plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _absolute(parameter: str, value: Any) -> Any:
    """Paths from the caller's folder: the kernel runs in another one."""
    if parameter not in _PATHS:
        return value
    if isinstance(value, list):
        return [_absolute(parameter, item) for item in value]
    if parameter == "plugins":
        return ",".join(str(Path(part.strip()).expanduser().resolve()) for part in value.split(",") if part.strip())
    if not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    written_as_path = value.startswith((".", "~")) or path.suffix or (len(path.parts) > 1 and path.parts[0] != "runs")
    return str(path.resolve()) if value.startswith(("./", "../", "~")) or (written_as_path and path.exists()) else value


def check_job(name: str, values: Mapping[str, Any]) -> None:
    """Check the parameters of a training as its notebook will.

    Args:
        name: A notebook; those that do not train are left to themselves.
        values: What it gets.

    Raises:
        ValueError, OSError: What `Job.from_params` raises, and what a run of that name or weights would.
    """
    if name in _TASKS and "settings" in parameters(name):
        _job(name, values)


def _job(name: str, values: Mapping[str, Any]) -> "Job":
    """The job that the notebook of a training makes of its parameters."""
    from reidlib.training.job import Job

    defaults = {p: d.default for p, d in parameters(name).items() if not d.in_settings}
    return Job.from_params(_renamed(defaults | dict(values)), task=name)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """`batch` of the pretrain notebook is `people` of a recipe."""
    return {("people" if name == "batch" else name): value for name, value in values.items()}


def page_name(name: str, values: Mapping[str, Any], run: Run) -> str:
    """The name under which an executed notebook is kept: with the datasets where one run may be shown on several."""
    declared = parameters(name)
    if not ("output" in declared and {"dataset", "datasets"} & declared.keys()):
        return name
    data = values.get("datasets") or values.get("dataset")
    if not data:
        try:
            data = run.tested_on
        except (OSError, ValueError, KeyError):  # nothing is trained yet
            return name
    return "-".join([name, *(["+".join(map(slug, data))] if isinstance(data, list) else [slug(data)])])


def run_notebook(name: str, values: dict[str, Any], *, progress: bool = False) -> Path:
    """Execute notebook `name` with `values` (`run` among them) into the folder of that run.

    The executed notebook is kept in notebooks/ under `page_name`, with its page beside it; then the pages of the run
    and the index of all runs are renewed.

    Args:
        name: The notebook.
        values: Its parameters; those that it does not know are left out.
        progress: Show a bar on a terminal, and what a training prints.

    Returns:
        The executed notebook.

    Raises:
        NotebookFailed: A cell raised an error, or the kernel died. What was executed is kept as `<page>.failed.ipynb`,
            with its page, where the run folder exists.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    run = Run(Run.folder(values["run"]))
    known = parameters(name)
    with scratch_folder() as scratch:
        executed = scratch / f"{name}.ipynb"
        try:
            execute_notebook(
                str(NOTEBOOKS / f"{name}.ipynb"),
                str(executed),
                {p: value for p, value in values.items() if p in known},
                kernel_name="python3",
                cwd=str(NOTEBOOKS),
                progress_bar={"desc": f"{name:9}"} if progress and sys.stderr.isatty() else False,
                stdout_file=_Console() if progress and name in _TASKS else None,
                extra_arguments=["--IPKernelApp.log_level=50"],  # what matters reaches us as outputs
            )
        except (PapermillExecutionError, DeadKernelError) as error:
            page = f"{page_name(name, values, run)}.failed"
            if isinstance(error, DeadKernelError):
                words = f"{name}.ipynb failed: its kernel died (out of memory, or killed)"
            else:
                words = f"{name}.ipynb failed{_section(executed, error.source)}, cell {error.exec_count}"
                words += f": {error.ename}: {_plain(error.evalue)}"
            raise NotebookFailed(words + _keep(executed, run, page, words)) from error
        kept = run.path / "notebooks" / f"{page_name(name, values, run)}.ipynb"
        with whole_file(kept) as part:
            shutil.copyfile(executed, part)
    for suffix in (".failed.ipynb", ".failed.html"):
        kept.with_suffix(suffix).unlink(missing_ok=True)
    write_pages(run)
    _renew_index()
    return kept


def _renew_index() -> None:
    with suppress(OSError):  # of a full disk, say: the runs themselves are whole
        write_index()


class _Console:
    """Shows on this console what a notebook prints, above papermill's progress bar where there is one."""

    def write(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, end="")

    def flush(self) -> None:
        sys.stdout.flush()


def _section(executed: Path, source: str) -> str:
    """The heading above the cell of that source."""
    heading = ""
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"] if executed.is_file() else ():
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (found := re.match(r"#+ (.+)", text)):
            heading = f" in the section {found[1].strip()!r}"
        if cell["cell_type"] == "code" and text == source:
            return heading
    return ""


def _keep(executed: Path, run: Run, page: str, words: str) -> str:
    """Keep what was executed in the run folder, if there is one; half a sentence that says where it is."""
    if not (run.path / "params.json").is_file() or not executed.is_file():
        return ""
    kept = run.path / "notebooks" / f"{page}.ipynb"
    try:
        with run.lock():
            with whole_file(kept) as part:
                shutil.copyfile(executed, part)
            if run.state.get("state") == "training":  # its kernel could not say that it died
                run.write_state("failed", error=words)
    except (OSError, ValueError):  # another process trains there: what failed is not its notebook
        return ""
    write_pages(run)
    _renew_index()
    return f"\n  see {kept.with_suffix('.html')}"


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


def run_all(names: Sequence[str], given: dict[str, str], *, progress: bool = True) -> Run:
    """Check everything, then run the notebooks in order into one run folder. Returns that run."""
    values = sort_parameters(names, given)
    for name in names:
        check_job(name, values[name])
    _check_run(names, values)
    run = next((v["run"] for v in values.values() if v.get("run")), "") or _new_name(names, values)
    for name in names:
        run_notebook(name, values[name] | {"run": run}, progress=progress)
    return Run(Run.folder(run))


_BEGINS = {"resume", "grid", "baseline", "protocol"}  # parameters of notebooks that make the run themselves
_OPENS = {"output", "quiet_after"}  # and of those that open one


def _check_run(names: Sequence[str], values: dict[str, dict[str, Any]]) -> None:
    """Check that the run that the first notebook is to open exists, and holds the model that is named."""
    first = values[names[0]]
    if first.get("model") and "weights" in parameters(names[0]):
        from reidlib.models.zoo import canonical_name

        canonical_name(first["model"])
    if first.get("run") and _OPENS & parameters(names[0]).keys() and not first.get("weights"):
        Run.open(first["run"], plugins=first.get("plugins", ""), trained=names[0] != "monitor")


def _new_name(names: Sequence[str], values: dict[str, dict[str, Any]]) -> str:
    """Where a run begins, the name that its job has by itself; else the newest run, or a new name if none is needed."""
    known = {name: parameters(name) for name in names}
    begins = [name for name in names if _BEGINS & known[name].keys()]
    if not begins and any("run" in declared for declared in known.values()):
        chosen = next((v for name, v in values.items() if "weights" in known[name]), {})
        return str(Run.open(model=chosen.get("model", ""), weights=chosen.get("weights", "")).path)
    first = [*begins, *names][0]
    if first in _TASKS and "settings" in known[first]:
        return _job(first, values[first]).name
    default = {p: d.default for p, d in known[first].items()}
    parts = [str(values[first].get(p, default[p])) for p in ("model", "dataset") if p in default] or [first]
    return "-".join([*map(slug, parts), f"{datetime.now():%Y%m%d-%H%M%S}"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 when all went well, 1 when a notebook failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="python -m reidlib.batch",
        description="Run notebooks one after the other into one run folder.",
        epilog="`--list NOTEBOOK` shows a notebook's parameters.",
    )
    parser.add_argument("notebooks", nargs="*", help=f"of {', '.join(list_notebooks())}")
    parser.add_argument(
        "-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter"
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="search: values of a parameter, each as for -p, or ranges such as 1e-4..1e-2:log:5; all combinations run",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="search: N points at a time on this computer")
    parser.add_argument(
        "--slurm", default="", metavar="OPTIONS", help="search: submit the points, as partition=gpu,gpus=1,time=4:00:00"
    )
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="search: draw N combinations at random")
    parser.add_argument("--optuna", type=int, default=0, metavar="N", help="search: let optuna choose N points")
    parser.add_argument("--list", dest="show", metavar="NOTEBOOK", help="show the parameters of a notebook")
    parser.add_argument("--runs", action="store_true", help="show all runs, and renew their page index.html")
    args = parser.parse_args(argv)
    try:
        if args.runs:
            rows = read_runs()
            print(as_table(rows).to_string(index=False) if rows else f"no runs in {runs_root()}")
            print(*(f"\nas a page: {page}" for page in [write_index()] if page))
            return 0
        if args.show:
            for name, (kind, default, words, further) in parameters(args.show).items():
                print(f"{'  ' * further}{name}: {type_name(kind)} = {json.dumps(default)}  # {words}")
            return 0
        if not args.notebooks:
            parser.error(f"name at least one notebook of {', '.join(list_notebooks())}")
        given = dict(args.given)
        for name, _ in args.given:
            if [other for other, _ in args.given].count(name) > 1:
                raise ValueError(f"the parameter {name!r} is given twice: keep one of them")
        # Kernels run in another folder: what is relative starts here.
        os.environ |= {"REID_BATCH": "1", "REID_DATA_PATHS": str(data_paths_file()), "REID_RUNS": str(runs_root())}
        print(f"data: {data_paths_file()}\nruns: {runs_root()}", flush=True)
        how = {name: getattr(args, name) for name in ("jobs", "slurm", "sample", "optuna")}
        if args.grid:
            return _search(args.notebooks, given, args.grid, how)
        if how != {"jobs": 1, "slurm": "", "sample": 0, "optuna": 0}:
            raise ValueError("--jobs, --slurm, --sample and --optuna are for a search: name what to search by --grid")
        run = run_all(args.notebooks, given, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotebookFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `resume` goes on from the last whole epoch", file=sys.stderr)
        return 130
    print_results(run)
    return 0


def _search(names: Sequence[str], given: dict[str, str], axes: list[list[str]], how: dict[str, Any]) -> int:
    """The command line of a search: 1 where a point failed."""
    from reidlib.workbook.search import search, table

    grid: dict[str, list[str]] = {}
    for name, *values in axes:
        grid.setdefault(name, []).extend(values)
    folder = search(names, given, grid, **how, progress=True)
    failed = folder.read_json("search.json")["failed"]
    print(f"\n{table(folder).to_string(index=False)}\n\ntable, mean and spread, figures: {folder.path}")
    if failed:
        print(f"error: {len(failed)} points failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def print_results(run: Run) -> None:
    """The table of result.json, and where to look."""
    result = run.read_json("result.json")
    if "results" in result:
        init = f", from {result['init']} weights," if result.get("init") else ""
        print(f"\n{result.get('model')}{init} in {run.path}\n")
        rows = [(d, r) for d, row in result["results"].items() for d, r in _with_untrained(d, row)]
        columns = [key for key in SCORES if any(key in row for _, row in rows)]
        print(f"{'dataset':<24}" + "".join(f"{NAMES[key]:>9}" for key in columns))
        for dataset, row in rows:
            cells = (f"{100 * row[key]:8.1f}%" if key in row else f"{'':>9}" for key in columns)
            print(f"{dataset:<24}{''.join(cells)}")
    pages = [("page:", page.path) for page in list_pages(run.path)]
    index = [("all runs:", runs_root() / INDEX)] * (runs_root() / INDEX).is_file()
    print("\n" + "\n".join(f"{what:<10}{path}" for what, path in [*pages, ("figures:", run.path / "figures"), *index]))


def _with_untrained(dataset: str, row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    untrained = [("  before training", row["untrained"])] if "untrained" in row else []
    return [(dataset, row), *untrained]


if __name__ == "__main__":
    sys.exit(main())
