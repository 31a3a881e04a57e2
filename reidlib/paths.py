"""Where data sets, weights and runs lie on this computer.

`data_paths.yaml` is the file that REID_DATA_PATHS names, else the nearest one from the working directory upward, else
the repository's. Relative paths in it start at the file's own folder. Runs go to REID_RUNS, else to `runs/` beside it.
Nothing here depends on where a notebook happens to be started.
"""

import os
import re
from pathlib import Path

import yaml

from reidlib.errors import unknown_name

FILE_NAME = "data_paths.yaml"
REPOSITORY = Path(__file__).resolve().parents[1]
_WEIGHTS = "weights"  # the one line that is not a data set's


def data_paths_file() -> Path:
    """The data_paths.yaml that holds here. Raises FileNotFoundError where REID_DATA_PATHS names no file."""
    named = os.environ.get("REID_DATA_PATHS")
    if named:
        file = Path(named).expanduser().resolve()
        if not file.is_file():
            raise FileNotFoundError(f"REID_DATA_PATHS names {file}, which is not a file")
        return file
    here = Path.cwd()
    near = (folder / FILE_NAME for folder in (here, *here.parents))
    return next((file for file in near if file.is_file()), REPOSITORY / FILE_NAME)


def data_names() -> dict[str, object]:
    """What the data_paths.yaml that holds here says of data sets: name → folder or file, as written.

    Raises FileNotFoundError for a file that cannot be read, ValueError for one that is not YAML of `name: folder`.
    """
    return {name: folder for name, folder in _lines().items() if name != _WEIGHTS}


def _lines() -> dict[str, object]:
    file = data_paths_file()
    try:
        paths = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise FileNotFoundError(f"cannot read {file}: copy data_paths.yaml from the repository there") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(paths, dict):
        raise ValueError(f"{file}: expected lines of the form `name: folder`, found {paths!r}")
    return paths


def data_path(name: str) -> tuple[Path, str]:
    """The folder of data set `name`, and where that is written (file, line), for error messages.

    Raises what `data_names` raises, and ValueError for a name that the file does not have.
    """
    file, paths = data_paths_file(), data_names()
    if name not in paths:
        raise unknown_name(f"data set in {file}", name, paths)
    if not isinstance(paths[name], str):
        raise ValueError(f"{file}: expected lines of the form `name: folder`, found {paths[name]!r} for {name!r}")
    text = file.read_text(encoding="utf-8").splitlines()
    lines = (i for i, line in enumerate(text, 1) if line.split(":")[0].strip("\"' ") == name)
    return (file.parent / Path(paths[name]).expanduser()).resolve(), f"{file}, line {next(lines, '?')}"


def packs_root() -> Path:
    """The folder of packed data sets; made when the first is."""
    return data_paths_file().parent / "data" / "packed"


def weights_root() -> Path:
    """The folder of weights that were fetched by hand: what data_paths.yaml says of `weights`, else data/weights."""
    return (data_paths_file().parent / Path(str(_lines().get(_WEIGHTS, "data/weights"))).expanduser()).resolve()


def runs_root() -> Path:
    """The folder of all runs; made when the first run is."""
    named = os.environ.get("REID_RUNS")
    return Path(named).expanduser().resolve() if named else data_paths_file().parent / "runs"


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
