"""Plug-ins: a user's own networks, losses, augmentations, datasets and recipes, from a Python file of theirs.

The file defines plain functions and puts them into plain dicts, `MODELS`, `LOSSES`, `AUGMENTATIONS`, `DATASETS`,
`RECIPES`, whose entries join those of the package under their names. It is code, and is trusted as a notebook is. A run
keeps a copy of the file and its hash; the copy is executed again only after a person has named that very file.
"""

import ast
import json
import shutil
import sys
from collections.abc import Mapping, MutableMapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from reidlib.data.datasets import READERS
from reidlib.data.transforms import AUGMENTATIONS
from reidlib.errors import unknown_name
from reidlib.files import sha256, whole_file
from reidlib.models import zoo
from reidlib.paths import runs_root
from reidlib.training.losses import LOSSES
from reidlib.training.recipes import CLASS_RECIPES, RECIPES, Recipe

TABLES: dict[str, MutableMapping[str, Any]] = {
    "MODELS": zoo.MODELS,
    "LOSSES": LOSSES,
    "AUGMENTATIONS": AUGMENTATIONS,
    "DATASETS": READERS,
    "RECIPES": RECIPES,
}
_added: dict[tuple[str, str], str] = {}  # (table, name) of every entry that came from a file, and that file's name
FOLDER = "plugins"  # of a run folder


def load_plugins(paths: str) -> dict[str, str]:
    """Execute plug-in files and add their entries to the package's tables.

    Args:
        paths: The files, separated by commas; "" for none.

    Returns:
        The hash of each file by its path.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file cannot be executed, defines no entry, or takes a name of the package.
    """
    files = [Path(part.strip()).expanduser().resolve() for part in paths.split(",") if part.strip()]
    for path in files:
        if path.suffix != ".py" or not path.is_file():
            raise FileNotFoundError(f"plugins names {path}, which is not a Python file")
        _add(path)
    return {str(path): sha256(path) for path in files}


def _add(path: Path) -> None:
    name = f"reidlib_plugin_{path.stem}"
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = _line(path, error)
        raise ValueError(f"the plug-in {path}{line} raised {type(error).__name__}: {error}") from error
    entries = {table: vars(module)[table] for table in TABLES if table in vars(module)}
    for table in _dicts(path) - TABLES.keys():
        raise unknown_name(f"table in the plug-in {path}", table, TABLES)
    if not any(entries.values()):
        raise ValueError(f"the plug-in {path} defines none of {', '.join(TABLES)}: put your functions into one of them")
    for table, things in entries.items():
        if not isinstance(things, Mapping):
            raise ValueError(f"{table} in the plug-in {path} is a {type(things).__name__}: make it a dict of names")
        for key, thing in things.items():
            _check(path, table, key, thing)
    models = {key: zoo.as_model(key, thing) for key, thing in entries.get("MODELS", {}).items()}  # or an error
    for (table, key), file in list(_added.items()):  # an older version of this file
        if file == path.name:
            del TABLES[table][key], _added[table, key]
    for table, things in entries.items():
        for key, thing in things.items():
            TABLES[table][key] = models[key] if table == "MODELS" else thing
            _added[table, key] = path.name


def _check(path: Path, table: str, key: Any, thing: Any) -> None:
    if not isinstance(key, str) or not key:
        raise ValueError(f"{table} in the plug-in {path} has the name {key!r}: use text")
    mine = _added.get((table, key))
    if (key in TABLES[table] and mine != path.name) or (table == "RECIPES" and key in CLASS_RECIPES):
        owner = f"the plug-in {mine}" if mine else "the package"
        raise ValueError(f"{table} in the plug-in {path}: {key!r} is a name of {owner}, choose another")
    if table == "RECIPES" and not isinstance(thing, Recipe):
        raise ValueError(f"RECIPES in the plug-in {path}: {key!r} is a {type(thing).__name__}, not a Recipe")
    if table not in ("MODELS", "RECIPES") and not callable(thing):
        raise ValueError(f"{table} in the plug-in {path}: {key!r} is a {type(thing).__name__}, not a function")


def _dicts(path: Path) -> set[str]:
    """Names in capitals that the file gives a dict: a misspelt table is none of these by chance."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    return {t.id for node in found for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()}


def _line(path: Path, error: Exception) -> str:
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f", line {line}," if line else ""


# Copies in run folders


def keep_plugins(files: Mapping[str, str], folder: Path) -> None:
    """Copy plug-in files into a run folder, and trust them from now on.

    Args:
        files: The hash of each file by its path, of `load_plugins`.
        folder: The run folder.
    """
    for path in files:
        with whole_file(folder / FOLDER / Path(path).name) as part:
            shutil.copyfile(path, part)
    trust(files)


def trust(files: Mapping[str, str]) -> None:
    """Note that a person has named these files, so that copies of them in run folders may be executed.

    Args:
        files: The hash of each file by its path.
    """
    if files:
        with whole_file(_noted()) as part:
            part.write_text(json.dumps(_trusted() | {digest: Path(path).name for path, digest in files.items()}))


def _noted() -> Path:
    return runs_root() / ".plugins.json"


def _trusted() -> dict[str, str]:
    try:
        return json.loads(_noted().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def load_kept_plugins(folder: Path, hashes: Mapping[str, str]) -> None:
    """Execute the copies that a run keeps.

    Args:
        folder: The run folder.
        hashes: The hash of each file by its name, as the run's params.json has them.

    Raises:
        ValueError: A copy has changed, or nobody here has named that file yet.
    """
    trusted = _trusted()
    for name, digest in hashes.items():
        path = folder / FOLDER / Path(name).name
        if not path.is_file() or sha256(path) != digest:
            raise ValueError(f"{path} is not the plug-in that the run was trained with: restore it, or train anew")
        if digest not in trusted:
            raise ValueError(
                f"the run needs the plug-in {path}, which is code: read it, then set plugins={str(path)!r}"
            )
        if _loaded_as(path):
            continue
        _add(path)


def _loaded_as(path: Path) -> bool:
    """Whether the entries of a file of this name and content are in the tables already."""
    module = sys.modules.get(f"reidlib_plugin_{path.stem}")
    source = Path(getattr(module, "__file__", "") or "")
    return source.is_file() and sha256(source) == sha256(path)
