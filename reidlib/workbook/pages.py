"""HTML pages of executed notebooks, for people without Jupyter: whole in one file, without a request to any host.

The template `templates/page` inherits from nbconvert's own. The head says what the run is and how it did, parameters
that differ from the notebook's defaults come first, code is folded, and a failed page opens at its error.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from reidlib.files import whole_file
from reidlib.paths import runs_root
from reidlib.workbook.run_table import INDEX, TEMPLATES, Page, Row, list_pages, read_run, score_line
from reidlib.workbook.runs import Run

if TYPE_CHECKING:
    from nbformat import NotebookNode

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
_INJECTED = "injected-parameters"  # papermill's tag for the cell with the values that were given


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


def declared_parameters(notebook: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameters that the cell tagged `parameters` of a notebook declares, by name."""
    cells = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(next(cells, {"source": ""})["source"])
    lines, declared = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            outer, _, inner = ast.unparse(node.annotation).rstrip("]").partition("[")
            kind = _TYPES[outer][_TYPES[inner]] if inner else _TYPES[outer]
            words = lines[node.end_lineno - 1][node.end_col_offset :].strip().removeprefix("#").strip()
            declared[node.target.id] = Parameter(kind, ast.literal_eval(node.value), words)
    return declared


def write_pages(run: Run) -> None:
    """Write the page of every executed notebook of a run, each with links to the others."""
    import nbformat

    row, pages = read_run(run), list_pages(run.path, ".ipynb")
    for page in pages:
        notebook = nbformat.read(page.path, as_version=4)
        with whole_file(page.path.with_suffix(".html")) as part:
            part.write_text(to_html(notebook, page.path.stem, row, pages), encoding="utf-8")


def to_html(notebook: "NotebookNode", name: str, row: Row | None = None, pages: Sequence[Page] = ()) -> str:
    """The page of an executed notebook. Tags remove_cell, remove_input and remove_output take those parts away.

    Args:
        notebook: As executed by papermill, or by hand.
        name: Of the page, such as "test" or "train.failed".
        row: The run that the page is of.
        pages: The pages of the run, to link to.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.TagRemovePreprocessor.enabled = True  # off by default in HTMLExporter, whatever tags it is given
    # papermill marks an error by cells of its own; the page shows it in its head
    config.TagRemovePreprocessor.remove_cell_tags = ("remove_cell", "papermill-error-cell-tag")
    config.TagRemovePreprocessor.remove_input_tags = ("remove_input",)
    config.TagRemovePreprocessor.remove_all_outputs_tags = ("remove_output",)
    config.CSSHTMLHeaderPreprocessor.style = "default"  # with colours of its own, where Jupyter's needs a theme
    exporter = HTMLExporter(config=config, template_name="page", extra_template_basedirs=[str(TEMPLATES)])
    page = _head(notebook, name, row) | {"file": f"{name}.html"}
    page["sisters"] = [(sister.title, f"{sister.path.stem}.html", sister.failed) for sister in pages]
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": page["title"]}, "page": page})
    return html


def _head(notebook: "NotebookNode", name: str, row: Row | None) -> dict[str, Any]:
    """What the template shows above and beside the cells."""
    title = name.removesuffix(".failed").replace("-", " · ", 1)
    errors = (o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error")
    error = next(errors, None)
    given, seconds = _given(notebook), notebook.metadata.get("papermill", {}).get("duration")
    declared = declared_parameters(notebook)
    own = {p: value for p, value in given.items() if p not in declared or declared[p].default != value}
    page: dict[str, Any] = {
        "title": title,
        "error": f"{error.ename}: {error.evalue}" if error else "",
        "failed": name.endswith(".failed"),
        "differ": [
            (p, value, declared[p].default if p in declared else "", _help(declared, p)) for p, value in own.items()
        ],
        "others": [(p, d.default, d.help) for p, d in declared.items() if p not in own],
        "minutes": "" if seconds is None else f"{seconds / 60:.1f}",
        "index": "",
    }
    if row:
        environment = Run(row.path).read_json("environment.json")
        inside = row.path.is_relative_to(runs_root())
        up = len(row.path.relative_to(runs_root()).parts) + 1 if inside else 0
        page |= {
            "title": f"{row.run} · {title}",
            "row": row,
            "commit": environment.get("git") or "",
            "scores": {data: score_line(scores) for data, scores in row.results.items()},
            "index": "../" * up + INDEX if inside else "",
        }
    return page


def _given(notebook: "NotebookNode") -> dict[str, Any]:
    """The parameters that a notebook was executed with, those of `settings` among them."""
    given = dict(notebook.metadata.get("papermill", {}).get("parameters", {}))
    settings = given.pop("settings", None) or {}
    return given | dict(settings)


def _help(declared: Mapping[str, Parameter], name: str) -> str:
    return declared[name].help if name in declared else "through settings"
