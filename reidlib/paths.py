"""Where datasets, weights and runs lie on this computer.

`data_paths.yaml` is the file that REID_DATA_PATHS names, else the nearest one from the working directory upward, else
the repository's. Relative paths in it start at the file's own folder; ~ and $VARIABLES are expanded. Runs go to
REID_RUNS, else to `runs/` beside it. Nothing here depends on where a notebook happens to be started.
"""

import os
import re
from pathlib import Path

import yaml

from reidlib.errors import unknown_name

FILE_NAME = "data_paths.yaml"
REPOSITORY = Path(__file__).resolve().parents[1]
_UNPRINTABLE = r"[\x00-\x1f\x7f\ud800-\udfff]"
_WEIGHTS = "weights"  # the one line that is not a dataset's


def data_paths_file() -> Path:
    """The data_paths.yaml that holds here. Raises FileNotFoundError where REID_DATA_PATHS names no file."""
    named = os.environ.get("REID_DATA_PATHS")
    if named:
        file = _expanded(named, "REID_DATA_PATHS").resolve()
        if not file.is_file():
            raise FileNotFoundError(f"REID_DATA_PATHS names {file}, which is not a file")
        return file
    here = Path.cwd()
    near = (folder / FILE_NAME for folder in (here, *here.parents))
    return next((file for file in near if file.is_file()), REPOSITORY / FILE_NAME)


def data_names() -> dict[str, str]:
    """What the data_paths.yaml that holds here says of datasets: name → folder or file, as written.

    Raises:
        FileNotFoundError: for a file that cannot be read.
        ValueError: for one that is not YAML of `name: folder`, a name that is given twice or cannot be a dataset's.
    """
    return {name: path for name, (path, _) in _lines().items() if name != _WEIGHTS}


def _lines() -> dict[str, tuple[str, int]]:
    """Name → what is written, and in which line."""
    file = data_paths_file()
    try:
        # Composed only: names and folders stay text (YAML makes some numbers or booleans), and know their lines.
        document = yaml.compose(file.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except OSError as error:
        raise FileNotFoundError(f"cannot read {file}: copy data_paths.yaml from the repository there") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, yaml.MappingNode | None):
        raise ValueError(f"{file}: expected lines of the form `name: folder`")
    entries: dict[str, tuple[str, int]] = {}
    for key, value in document.value if document else ():
        name, line = key.value, key.start_mark.line + 1
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise ValueError(f"{file}, line {line}: expected a line of the form `name: folder`")
        if name in entries:
            raise ValueError(f"{file}: {name!r} is written twice, in lines {entries[name][1]} and {line}: keep one")
        if re.search(rf"[/\\+]|^\.|^\s*$|{_UNPRINTABLE}", name):  # it becomes part of file names, and + joins datasets
            raise ValueError(f"{file}, line {line}: {name!r} cannot be a name: use letters, digits, _ and -")
        entries[name] = value.value, line
    return entries


def _expanded(path: str, where: str) -> Path:
    """`path` with ~ and $VARIABLES replaced. Raises ValueError naming `where`, for those that are not set."""
    text = os.path.expandvars(path)
    unset = re.search(r"\$\{?\w+\}?", text)
    if unset:
        raise ValueError(f"{where}: the environment variable in {path!r} is not set: {unset[0]}")
    if not text or re.search(_UNPRINTABLE, text):
        raise ValueError(f"{where}: {path!r} is not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{where}: there is no home folder for the {Path(text).parts[0]} in {path!r}") from error


def data_path(name: str) -> tuple[Path, str]:
    """The folder or file of dataset `name`, and where that is written (file, line), for error messages.

    Raises what `data_names` raises, and ValueError for a name that the file does not have.
    """
    file = data_paths_file()
    if name not in data_names():
        raise unknown_name(f"dataset in {file}", name, data_names())
    path, line = _lines()[name]
    where = f"{file}, line {line}"
    return (file.parent / _expanded(path, where)).resolve(), where


def packs_root() -> Path:
    """The folder of packed datasets; made when the first is."""
    return data_paths_file().parent / "data" / "packed"


def weights_root() -> Path:
    """The folder of weights that were fetched by hand: what data_paths.yaml says of `weights`, else data/weights."""
    file = data_paths_file()
    path, line = _lines().get(_WEIGHTS, ("data/weights", 0))
    return (file.parent / _expanded(path, f"{file}, line {line}")).resolve()


def weights_file(name: str) -> Path | None:
    """The file of weights at the path `name`, or of that name in the folder of weights; None if there is none."""
    path = Path(name).expanduser()
    path = path if path.is_file() else weights_root() / name
    return path if path.is_file() else None


def runs_root() -> Path:
    """The folder of all runs; made when the first run is."""
    named = os.environ.get("REID_RUNS")
    return _expanded(named, "REID_RUNS").resolve() if named else data_paths_file().parent / "runs"


def run_folder(run: str | Path) -> Path:
    """`run` as a folder: a bare name lies in the runs root, `runs/<name>` too, any other path is itself."""
    path = Path(run).expanduser()
    if path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("runs",) else path.parts
    return runs_root().joinpath(*parts)


def slug(text: str) -> str:
    """A name as one part of a folder's name: what could not stand there becomes a dash."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "data"
