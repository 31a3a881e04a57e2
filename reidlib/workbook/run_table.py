"""All runs as one table, read from their folders alone: for a shell, for a notebook, and as runs/index.html.

A run is what its small files say (run.json, params.json, metrics.jsonl, result.json): there is no database to keep, and
a folder that cannot be read is a row that says so. The page needs no other file and makes no request.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from reidlib.errors import unknown_name
from reidlib.files import whole_file
from reidlib.paths import runs_root
from reidlib.run_folder import MARK
from reidlib.scores import HEADLINE, NAMES, SCORES
from reidlib.workbook.monitor import FIRST, Watch
from reidlib.workbook.runs import Run

if TYPE_CHECKING:
    from pandas import DataFrame

INDEX = "index.html"
TEMPLATES = Path(__file__).parent / "templates"
_STATES = {"ended": "done", "training": "running", "quiet": "quiet", "failed": "failed"}  # of the monitor → here
_SEARCH = "search.json"
_FILES = {MARK, "params.json", "metrics.jsonl", "model.json", "result.json", "last.pt", ".lock"}  # any of them: a run
_DEPTH = 3  # runs/<search>/<point> and one more


class Page(NamedTuple):
    """A page of the folder notebooks/: `name` is that of the notebook, with the dataset where there is one."""

    name: str
    path: Path
    failed: bool

    @property
    def title(self) -> str:
        """ "test · market1501"."""
        return self.name.replace("-", " · ", 1)  # no notebook has a dash in its name

    @property
    def link(self) -> str:
        """The page as seen from the folder of all runs, for a href."""
        return quote(Path(os.path.relpath(self.path, runs_root())).as_posix()) + "#error" * self.failed


@dataclass
class Row:
    """One run. What is not known is empty or None."""

    run: str
    path: Path
    state: str  # done, running, quiet, failed; broken: the folder cannot be read
    words: str = ""  # the same in a sentence
    model: str = ""
    data: str = ""
    recipe: str = ""
    changed: dict[str, Any] = field(default_factory=dict)  # settings that are not as the recipe has them
    epoch: int | None = None
    epochs: int | None = None  # that were asked for
    results: dict[str, dict[str, float]] = field(default_factory=dict)  # dataset → scores; its own comes first
    curve: list[tuple[int, float]] = field(default_factory=list)  # epoch and mAP (top-1 of a pretraining)
    minutes: float | None = None  # of training and its evaluations
    date: datetime | None = None  # when the run was last written to
    pages: list[Page] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, float]:
        """The scores on the run's own dataset, else on the first that it was tested on."""
        return next(iter(self.results.values()), {})

    @property
    def timestamp(self) -> float | None:
        """`date` as seconds since 1970."""
        return self.date.timestamp() if self.date else None

    @property
    def elsewhere(self) -> dict[str, dict[str, float]]:
        """The scores on further datasets."""
        return dict(list(self.results.items())[1:])

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch and score of the best evaluated epoch, the earlier of equals."""
        return max(self.curve[1:], key=lambda point: point[1], default=None)


def read_runs(root: Path | None = None) -> list[Row]:
    """Read every run, the one that was written to last first.

    Args:
        root: The folder of all runs; None: `runs_root()`.

    Returns:
        A row for each run, point of a search, search, and folder of pages.
    """
    rows = [read_run(Run(folder)) for folder in _folders(root or runs_root(), _DEPTH)]
    for row in rows:
        if (row.path / _SEARCH).is_file():  # as far as its points are
            states = {point.state for point in rows if point.path.parent == row.path}
            row.state = next((s for s in ("running", "failed", "broken", "quiet") if s in states | {row.state}), "done")
    return sorted(rows, key=lambda row: (-(row.timestamp or 0.0), row.run))


def read_run(run: Run) -> Row:
    """Read one run folder; a damaged one gives a row in state "broken"."""
    pages: list[Page] = []
    try:
        pages = list_pages(run.path)
        return _read_run(run, pages)
    except Exception as error:  # whatever is wrong with one folder, the others are shown
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Row(run.name, run.path, "broken", f"the folder cannot be read ({words})", pages=pages)


def list_pages(folder: Path, suffix: str = ".html") -> list[Page]:
    """The HTML pages of a run folder, or its executed notebooks (`suffix` ".ipynb"), in the order of their making."""
    try:
        entries = [e for e in os.scandir(folder / "notebooks") if e.name.endswith(suffix) and e.name[0] != "."]
    except OSError:
        return []
    stems = [e.name.removesuffix(suffix) for e in sorted(entries, key=lambda e: (e.stat().st_mtime, e.name))]
    pages = folder / "notebooks"
    return [Page(s.removesuffix(".failed"), pages / f"{s}{suffix}", s.endswith(".failed")) for s in stems]


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folders below `root` that hold a run, a search or pages. Nothing inside a run is looked at."""
    try:
        entries = sorted((e for e in os.scandir(root) if e.name[0] != "." and e.is_dir()), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        try:
            names = set(os.listdir(entry))
        except OSError:  # that it cannot be read is said in its row
            names = {MARK}
        if names & {*_FILES, _SEARCH, "notebooks"}:
            yield Path(entry)
        if depth > 1 and (_SEARCH in names or not names & (_FILES - {".lock"})):
            yield from _folders(Path(entry), depth - 1)


def _read_run(run: Run, pages: list[Page]) -> Row:
    files = ("params.json", "model.json", "result.json", _SEARCH)
    params, about, result, search = (run.read_json(name) for name in files)
    watch = Watch(run)
    row = Row(watch.name, run.path, "done", pages=pages, date=_written(run.path))
    if search:
        failed, points = search["failed"], search["points"]
        row.state = "failed" if failed else "done"
        row.words = f"a search over {', '.join(map(str, search['grid']))}: {len(points)} points, {len(failed)} failed"
        return row
    status = watch.look()
    row.words, row.state = status.words, _STATES.get(status.state, "")
    if not row.state:  # it waits for its first epoch, or holds nothing but pages
        age = datetime.now().astimezone() - row.date if row.date else None
        begun = (run.path / MARK).exists() or not pages
        row.state = "done" if not begun else "running" if age and age.total_seconds() < FIRST else "quiet"
        row.words = row.words if begun else ""
    if row.state == "done" and any(page.failed for page in pages):
        row.state, row.words = "failed", ", ".join(f"{page.title} failed" for page in pages if page.failed)
    row.model = str(about.get("name") or params.get("model") or "")
    row.data = str(about.get("trained_on") or params.get("dataset") or "")
    row.recipe = str(params.get("recipe") or ("published weights" if "weights" in about else ""))
    changed = [*params.get("overridden", ()), *(p for p in ("init", "combineall", "scaled") if params.get(p))]
    row.changed = {str(name): params[name] for name in changed}
    history = status.history
    row.epochs = status.epochs
    row.epoch = int(history[-1]["epoch"]) if history else None
    row.curve = [
        (int(line["epoch"]), float(line[score])) for line in history for score in ("mAP", "top1") if score in line
    ]
    timed = [float(line.get(key, 0)) for line in history for key in ("seconds", "eval_seconds")]
    row.minutes = sum(timed) / 60 if timed else None
    row.results = {
        str(data): {score: float(scores[score]) for score in SCORES if score in scores}
        for data, scores in result.get("results", {}).items()
    }
    if not row.results and row.best:  # not ended
        line = next(line for line in history if line["epoch"] == row.best[0])
        row.results = {row.data: {score: float(line[score]) for score in SCORES if score in line}}
    return row


def _written(folder: Path) -> datetime | None:
    """When a run folder was last written to."""
    times = []
    for name in (MARK, "metrics.jsonl", "result.json", "params.json", "notebooks"):
        with suppress(OSError):
            times.append(os.stat(f"{folder}/{name}").st_mtime)
    return datetime.fromtimestamp(max(times)).astimezone() if times else None


# Shown


def as_table(rows: Sequence[Row]) -> "DataFrame":
    """The runs as text, one row each, for a shell or a notebook."""
    import pandas as pd

    return pd.DataFrame([_cells(row) for row in rows]).fillna("")


def _cells(row: Row) -> dict[str, str]:
    cells = {"run": row.run, "state": row.state, "model": row.model, "data": row.data, "recipe": row.recipe}
    cells |= {"changed": changed_line(row.changed), "epoch": epoch_of(row)}
    cells |= {NAMES[score]: f"{100 * row.scores[score]:.1f}" for score in HEADLINE if score in row.scores}
    cells |= {"minutes": "" if row.minutes is None else f"{row.minutes:.1f}"}
    return cells | {"date": f"{row.date:%Y-%m-%d %H:%M}" if row.date else ""}


def changed_line(changed: Mapping[str, Any]) -> str:
    """Settings in one line, as `name=value`."""
    return ", ".join(f"{k}={'+'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in changed.items())


def epoch_of(row: Row) -> str:
    """ "12/60"; "" before the first line of metrics.jsonl."""
    return "" if row.epoch is None else f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)


def score_line(scores: Mapping[str, float]) -> str:
    """Scores of one dataset in one line, in percent."""
    return ", ".join(
        f"{NAMES[score]} {100 * scores[score]:.1f}" for score in ("rank1", "mAP", "top1") if score in scores
    )


def sparkline(row: Row, width: int = 90, height: int = 22) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Where the curve of a run is drawn.

    Args:
        row: The run; it has a curve.
        width, height: Of the drawing, in pixels. The last epoch that was asked for is at the right end, 0 % at the
            bottom and the best epoch at the top.

    Returns:
        The points of the line, and that of the best epoch.
    """
    last, top = max(row.epochs or 0, row.curve[-1][0], 1), max(score for _, score in row.curve) or 1
    at = {e: (2 + (width - 4) * e / last, height - 2 - (height - 4) * score / top) for e, score in row.curve}
    return list(at.values()), at[row.best[0] if row.best else row.curve[0][0]]


def select(rows: Sequence[Row], search: str = "", *, sort: str = "date") -> list[Row]:
    """Choose and order runs.

    Args:
        rows: The runs.
        search: Words that must all stand in a row of `as_table`, in any case.
        sort: A score, best first; "date" or "minutes", largest first; "run", "state", "model", "data" or "recipe".

    Raises:
        ValueError: There is nothing of the name `sort`.
    """
    scores = {NAMES[score]: score for score in SCORES}
    texts = ("run", "state", "model", "data", "recipe")
    if sort not in (names := [*scores, "date", "minutes", *texts]):
        raise unknown_name("value of sort", sort, names)
    found = [row for row in rows if all(w in " ".join(_cells(row).values()).lower() for w in search.lower().split())]
    if sort in texts:
        return sorted(found, key=lambda row: getattr(row, sort))

    def descending(row: Row) -> float:
        value = row.scores.get(scores[sort]) if sort in scores else row.minutes if sort == "minutes" else row.timestamp
        return float("inf") if value is None else -value

    return sorted(found, key=descending)


def show(rows: Sequence[Row]) -> Any:
    """The runs as HTML for a notebook, with their curves; links to pages are in index.html."""
    from IPython.display import HTML

    return HTML(_render("table.html.j2", rows, links=False))


def write_index(root: Path | None = None) -> Path | None:
    """Write index.html, the table of all runs, into the folder of runs; None if there is no such folder yet."""
    root = root or runs_root()
    if not root.is_dir():
        return None
    now = datetime.now().astimezone()
    with whole_file(root / INDEX) as part:
        part.write_text(_render("runs.html.j2", read_runs(root), root=root.name, now=now, links=True), encoding="utf-8")
    return root / INDEX


def _render(template: str, rows: Sequence[Row], **more: Any) -> str:
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    more |= {"changed_line": changed_line, "epoch_of": epoch_of, "score_line": score_line, "sparkline": sparkline}
    classes = any("top1" in row.scores for row in rows)
    return templates.get_template(template).render(rows=rows, names=NAMES, classes=classes, **more)
