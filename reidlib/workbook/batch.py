"""Run notebooks in batch: papermill, with the checks that it lacks.

    python -m reidlib.batch train test ranklist gradcam tsne -p model osnet_x0_25 -p epochs 20

runs them one after the other into one run folder: `notebooks/<name>.ipynb` as executed and `<name>.html` beside it.
papermill only warns of a misspelt parameter and guesses types from the text; here an unknown name is refused with the
nearest one, and a value has the type that is declared. Parameters that the notebook itself does not declare, and that a
training knows, go into its `settings`. All of it is checked before a kernel starts. A failure names notebook, section
and error.
"""

import argparse
import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from reidlib.errors import unknown_name
from reidlib.files import scratch_folder, whole_file
from reidlib.paths import REPOSITORY, data_paths_file, runs_root, slug
from reidlib.training.settings import read_text, type_name
from reidlib.workbook.runs import Run

NOTEBOOKS = REPOSITORY / "notebooks"
_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
_TASKS = ("train", "pretrain")  # notebooks whose `settings` takes every parameter of a training
_PATHS = {"run", "init", "weights", "plugins", "dataset", "datasets", "sources", "tested_on", "output"}


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died. The message says which notebook, which section, and what it said."""


class Parameter(NamedTuple):
    """One parameter: its type, default and help; `in_settings` if the notebook takes it through `settings`."""

    kind: Any
    default: Any
    help: str
    in_settings: bool = False

    @property
    def optional(self) -> bool:
        """Whether "None" is None."""
        return self.default is None


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
    cells = (cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(next(cells, {"source": ""})["source"])
    lines, declared = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            outer, _, inner = ast.unparse(node.annotation).rstrip("]").partition("[")
            kind = _TYPES[outer][_TYPES[inner]] if inner else _TYPES[outer]
            words = lines[node.end_lineno - 1][node.end_col_offset :].strip().removeprefix("#").strip()
            declared[node.target.id] = Parameter(kind, ast.literal_eval(node.value), words)
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
    if name not in _TASKS or "settings" not in (declared := parameters(name)):
        return
    from reidlib.training.job import Job

    defaults = {p: d.default for p, d in declared.items() if not d.in_settings}
    Job.from_params(_renamed(defaults | dict(values)), task=name)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """`batch` of the pretrain notebook is `people` of a recipe."""
    return {("people" if name == "batch" else name): value for name, value in values.items()}


def run_notebook(name: str, values: dict[str, Any], *, progress: bool = False) -> Path:
    """Execute notebook `name` with `values` (`run` among them) into the folder of that run; returns the executed one.

    It appears there, with its HTML, when it has ended well. Raises NotebookFailed otherwise, and keeps what was
    executed as `<name>.failed.ipynb` where the run folder exists.
    """
    import nbformat
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
                progress_bar={"desc": f"{name:9}"} if progress else False,
                extra_arguments=["--IPKernelApp.log_level=50"],  # what matters reaches us as outputs
            )
        except PapermillExecutionError as error:
            kept = _keep(executed, run, f"{name}.failed.ipynb")
            section = _section(executed, error.source)
            raise NotebookFailed(
                f"{name}.ipynb failed{section}, cell {error.exec_count}: {error.ename}: {_plain(error.evalue)}{kept}"
            ) from error
        except DeadKernelError as error:
            raise NotebookFailed(f"{name}.ipynb failed: its kernel died (out of memory, or killed)") from error
        notebook = nbformat.read(executed, as_version=4)
        folder = run.path / "notebooks"
        with whole_file(folder / f"{name}.ipynb") as part:
            shutil.copyfile(executed, part)
    (folder / f"{name}.failed.ipynb").unlink(missing_ok=True)
    with whole_file(folder / f"{name}.html") as part:
        part.write_text(to_html(notebook, name), encoding="utf-8")
    return folder / f"{name}.ipynb"


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


def _keep(executed: Path, run: Run, name: str) -> str:
    """Copy what was executed into the run folder, if there is one; a half sentence that says where it is."""
    if not (run.path / "params.json").is_file() or not executed.is_file():
        return ""
    try:
        with run.lock(), whole_file(run.path / "notebooks" / name) as part:
            shutil.copyfile(executed, part)
    except OSError:  # another process trains there: what failed is not its notebook
        return ""
    return f"\n  see {run.path / 'notebooks' / name}"


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


def to_html(notebook: Any, title: str) -> str:
    """The page for people without Jupyter. Tags remove_cell, remove_input and remove_output take those parts away."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.TagRemovePreprocessor.enabled = True  # off by default in HTMLExporter, whatever tags it is given
    config.TagRemovePreprocessor.remove_cell_tags = ("remove_cell", "injected-parameters-note")
    config.TagRemovePreprocessor.remove_input_tags = ("remove_input",)
    config.TagRemovePreprocessor.remove_all_outputs_tags = ("remove_output",)
    html, _ = HTMLExporter(config=config).from_notebook_node(notebook, {"metadata": {"name": title}})
    return html


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


_BEGINS = {"resume", "grid", "baseline"}  # parameters of notebooks that make the run themselves
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
    """A name no run has yet where a run begins or none is needed, else the newest run."""
    known = {name: parameters(name) for name in names}
    begins = [name for name in names if _BEGINS & known[name].keys()]
    if not begins and any("run" in declared for declared in known.values()):
        chosen = next((v for name, v in values.items() if "weights" in known[name]), {})
        return str(Run.open(model=chosen.get("model", ""), weights=chosen.get("weights", "")).path)
    first = [*begins, *names][0]
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
        help="search: values of a parameter, each as for -p; every combination is run, several seeds too",
    )
    parser.add_argument("--list", dest="show", metavar="NOTEBOOK", help="show the parameters of a notebook")
    args = parser.parse_args(argv)
    try:
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
        if args.grid:
            return _search(args.notebooks, given, args.grid)
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


def _search(names: Sequence[str], given: dict[str, str], axes: list[list[str]]) -> int:
    """The command line of a search: 1 where a point failed."""
    from reidlib.workbook.search import search, table

    grid: dict[str, list[str]] = {}
    for name, *values in axes:
        grid.setdefault(name, []).extend(values)
    folder = search(names, given, grid, progress=True)
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
        columns = [key for key in _COLUMNS if any(key in row for _, row in rows)]
        print(f"{'dataset':<24}" + "".join(f"{_COLUMNS[key]:>9}" for key in columns))
        for dataset, row in rows:
            cells = (f"{100 * row[key]:8.1f}%" if key in row else f"{'':>9}" for key in columns)
            print(f"{dataset:<24}{''.join(cells)}")
    print(f"\nnotebooks and pages: {run.path / 'notebooks'}\nfigures:             {run.path / 'figures'}")


_COLUMNS = {
    "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP",
    "top1": "top-1", "top5": "top-5",
}  # fmt: skip


def _with_untrained(dataset: str, row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    untrained = [("  before training", row["untrained"])] if "untrained" in row else []
    return [(dataset, row), *untrained]


if __name__ == "__main__":
    sys.exit(main())
