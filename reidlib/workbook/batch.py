"""Run notebooks in batch: papermill, with the checks that it lacks.

    python -m reidlib.batch train test ranklist gradcam tsne -p model osnet_x0_25 -p epochs 20

runs them one after the other into one run folder: `notebooks/<name>.ipynb` as executed and `<name>.html` beside it.
papermill only warns of a misspelt parameter and guesses types from the text; here an unknown name is refused with the
nearest one, and a value has the type that the notebook declares. A failure names notebook, cell and error.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from reidlib.errors import unknown_name
from reidlib.files import whole_file
from reidlib.paths import REPOSITORY
from reidlib.workbook.runs import Run

NOTEBOOKS = REPOSITORY / "notebooks"
_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died. The message says which notebook, which cell, and what it said."""


def list_notebooks() -> list[str]:
    return sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))


def parameters(name: str) -> dict[str, dict[str, Any]]:
    """The parameters of notebook `name`: for each its declared type, default and help, as text."""
    from papermill import inspect_notebook

    if name not in list_notebooks():
        raise unknown_name("notebook", name, list_notebooks())
    return inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))


def read_value(name: str, text: str, kind: str, *, optional: bool = False) -> Any:
    """`text` from a command line as the type that the notebook declares. Raises ValueError where it is not one.

    `optional`: where the notebook's own value is None, "None" is None.
    """
    if optional and text == "None":
        return None
    kind = kind.partition("[")[0]
    value = text if kind == "str" else yaml.safe_load(text)
    if kind == "float" and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(text)  # YAML 1.1 takes 1e-3 for text
    if kind == "list" and isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    wanted = _TYPES.get(kind)
    if wanted and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
        raise ValueError(f"parameter {name!r} is {kind}, got {text!r}")
    return value


def sort_parameters(names: Sequence[str], given: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What each notebook of `names` gets of the `given` texts. Raises ValueError for one that none of them knows."""
    known = {name: parameters(name) for name in names}
    every = {p for declared in known.values() for p in declared}
    for parameter in given:
        if parameter not in every:
            raise unknown_name(f"parameter of {', '.join(names)}", parameter, every)
    return {
        name: {
            p: read_value(p, text, declared[p]["inferred_type_name"], optional=declared[p]["default"] == "None")
            for p, text in given.items()
            if p in declared
        }
        for name, declared in known.items()
    }


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
    with tempfile.TemporaryDirectory() as scratch:
        executed = Path(scratch) / f"{name}.ipynb"
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
            code = (line.strip() for line in error.source.splitlines() if line.strip() and line.strip()[0] != "#")
            first = next(code, "")
            raise NotebookFailed(
                f"{name}.ipynb failed in cell {error.exec_count} (`{first}`): "
                f"{error.ename}: {_plain(error.evalue)}{kept}"
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
    run = given.get("run") or _new_name(names, values)
    for name in names:
        run_notebook(name, values[name] | {"run": run}, progress=progress)
    return Run(Run.folder(run))


_BEGINS = {"resume", "grid"}  # parameters of notebooks that make the run themselves


def _new_name(names: Sequence[str], values: dict[str, dict[str, Any]]) -> str:
    """A name no run has yet where a run begins or none is needed, else the newest run."""
    known = {name: parameters(name) for name in names}
    begins = [name for name in names if _BEGINS & known[name].keys()]
    if not begins and any("run" in declared for declared in known.values()):
        chosen = next((v for name, v in values.items() if "weights" in known[name]), {})
        return str(Run.open(model=chosen.get("model", ""), weights=chosen.get("weights", "")).path)
    first = [*begins, *names][0]
    default = {p: d["default"].strip("\"'") for p, d in known[first].items()}
    parts = [str(values[first].get(p, default[p])) for p in ("model", "dataset") if p in default] or [first]
    return "-".join([*parts, f"{datetime.now():%Y%m%d-%H%M%S}"])


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
            for name, about in parameters(args.show).items():
                print(f"{name}: {about['inferred_type_name']} = {about['default']}  # {about['help']}")
            return 0
        if not args.notebooks:
            parser.error(f"name at least one notebook of {', '.join(list_notebooks())}")
        given = dict(args.given)
        os.environ["REID_BATCH"] = "1"
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
        print(f"{'data set':<24}" + "".join(f"{_COLUMNS[key]:>9}" for key in columns))
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
