"""The rules of the house that code can check: who imports whom, one pinned list, quiet imports, tidy notebooks."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reidlib"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Pins


def requirements() -> dict[str, list[Requirement]]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            pins.setdefault(Requirement(line).name, []).append(Requirement(line))
    return pins


def asked() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in sum(extras, project["dependencies"])]


def test_every_pin_is_exact_and_is_what_is_installed() -> None:
    for name, pins in requirements().items():
        here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
        assert len(here) <= 1, f"{name} is pinned twice for this computer"
        for pin in here:
            (version,) = (spec.version for spec in pin.specifier if spec.operator == "==")
            assert Version(metadata.version(name)).public == Version(version).public, f"{name} is not as pinned"


def test_pins_lie_within_the_ranges_of_pyproject() -> None:
    pins = requirements()
    for wanted in asked():
        assert wanted.name in pins, f"{wanted.name} is not pinned: run `make lock`"
        for pin in pins[wanted.name]:
            (spec,) = pin.specifier
            assert wanted.specifier.contains(spec.version), f"{pin} is outside {wanted}: run `make lock`"


def test_conda_installs_the_same_list() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert {re.split("[=<>]", entry)[0] for entry in conda} == {"python", "pip"}  # nothing that pip also pins
    assert pip == ["-r requirements.txt", "-e ."]
    assert "-r requirements.txt" in (ROOT / "Makefile").read_text()


# Imports

# Each room may import those named here, and itself. A file at the top level is a room of its own.
BASE = {"decoding", "errors", "files", "lazy", "paths", "scores", "seeds"}
FOLDER = BASE | {"run_folder"}
ALLOWED = {
    "decoding": set(),
    "errors": set(),
    "files": set(),
    "lazy": set(),
    "scores": set(),
    "seeds": set(),
    "paths": {"errors"},
    "run_folder": BASE,
    "data": FOLDER,
    "models": FOLDER,
    "evaluation": FOLDER,
    "plots": FOLDER,
    "training": FOLDER | {"data", "models", "evaluation"},
    "workbook": FOLDER | {"data", "models", "evaluation", "plots", "training"},
    **{door: {"workbook"} for door in ("batch", "extract", "find")},  # the doors of the command line
    "__init__": {"lazy"},
}
LADDER = ["layers", "backbones", "heads", "wirings", "zoo"]  # each may import those before it


def imports(path: Path) -> set[str]:
    """The reidlib modules that a file imports anywhere, functions included; `if TYPE_CHECKING` blocks are not run."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "reidlib":
            room = rest[0] if rest and rest[0] in ALLOWED else "__init__"  # the package itself reaches every room
            assert room in ALLOWED[parts[0]] | {parts[0]}, f"{path} imports {name}"
            if parts[0] == room == "models" and parts[1] in LADDER and rest[1] in LADDER:
                assert LADDER.index(rest[1]) <= LADDER.index(parts[1]), f"{path} imports {name}"
        if top == "timm" or name.startswith("torchvision.models"):
            assert parts[:2] == ("models", "backbones"), f"{path} imports {name}: only backbones do"
    if parts == ("models", "checkpoints"):
        assert not any("zoo" in name or "wirings" in name for name in imports(path))


def test_importing_is_quick_and_has_no_side_effect() -> None:
    code = """
import os, sys, time
start = time.perf_counter()
import reidlib
quick = time.perf_counter() - start
heavy = {"torch", "timm", "matplotlib", "pandas", "sklearn"} & set(sys.modules)
import torch, torchvision  # torchvision itself sets TORCHINDUCTOR_CACHE_DIR
before = dict(os.environ)
state = torch.random.get_rng_state()
names = reidlib.list_models()
import reidlib.plots, reidlib.training, reidlib.workbook.runs, reidlib.batch
assert torch.equal(state, torch.random.get_rng_state()), "an import drew random numbers"
assert dict(os.environ) == before, "an import changed the environment"
assert not heavy, heavy
late = {"timm", "sklearn", "pytorch_grad_cam", "seaborn", "pandas", "matplotlib.pyplot"} & set(sys.modules)
assert not late, late
assert quick < 0.5, quick
assert len(names) >= 8
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "an import printed"


def test_public_names_exist_and_others_are_refused() -> None:
    import reidlib

    for name in reidlib.__all__:
        assert getattr(reidlib, name) is not None
    with pytest.raises(AttributeError, match=r"it has .*create_model"):
        _ = reidlib.creat_model


@pytest.mark.parametrize("package", ["reidlib", "reidlib.evaluation", "reidlib.plots", "reidlib.training"])
def test_checkers_and_editors_see_the_public_names_that_python_gives(package: str) -> None:
    import importlib

    module = importlib.import_module(package)
    text = Path(module.__file__).read_text()
    assert "__getattr__" in text, "this package imports its names at once: take it off this list"
    # What a checker reads: a file where the block's imports are run.
    seen: dict[str, object] = {}
    (block,) = (node for node in ast.parse(text).body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    exec(compile(ast.Module(block.body, []), package, "exec"), seen)  # an import of a name that is not there fails
    del seen["__builtins__"]
    assert sorted(seen) == module.__all__
    for name, value in seen.items():
        assert getattr(module, name) is value
        assert name in dir(module)
    # `as` the same name: without it a strict checker takes an import for the module's private business.
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)


def test_a_lazy_package_without_public_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "idle.py").write_text("from reidlib.lazy import lazy\nlazy(__name__)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"idle.* has no source with public names"):
        __import__("idle")


def test_every_room_is_reachable_after_importing_the_package() -> None:
    rooms = sorted({path.relative_to(PACKAGE).with_suffix("").parts[0] for path in files()} - {"__init__", "lazy"})
    assert {"data", "errors", "models", "plots", "workbook"} <= set(rooms)
    code = f"import reidlib; print(*(getattr(reidlib, room).__name__ for room in {rooms}), *dir(reidlib))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {f"reidlib.{room}" for room in rooms} | {*rooms, "create_model"} <= set(done.stdout.split())


# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_tidy(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert "papermill" not in book.metadata
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.AnnAssign), f"{ast.unparse(node)}: parameters are `name: type = literal`"
        ast.literal_eval(node.value)
    assert len(tagged[0].source.splitlines()) <= 18
    assert not any("globals()" in cell.source for cell in code), "a scratch variable would change what is trained"
    for line in tagged[0].source.splitlines():
        assert re.search(r"  # \S", line), f"no help comment: {line}"
    for cell in code:
        if cell is not tagged[0]:
            assert cell.source.count("\n") < 13, f"a long cell:\n{cell.source}"
        assert not any(output.output_type == "error" for output in cell.outputs)
    assert any(cell.outputs for cell in code), "no outputs: a reader of the page sees nothing"
    text = json.dumps([cell.get("outputs", []) for cell in code])
    assert str(Path.home()) + "/" not in text
    assert str(ROOT) not in text
    assert path.stat().st_size < 2_000_000
    assert sum(cell.cell_type == "markdown" for cell in book.cells) >= 2


def test_a_training_takes_every_setting_through_its_notebook() -> None:
    from reidlib.training.job import SETTINGS
    from reidlib.workbook.batch import parameters

    for name in ("train", "pretrain"):
        declared = parameters(name)
        assert SETTINGS.keys() - {"task", "people"} <= declared.keys()
        assert sum(not p.in_settings for p in declared.values()) <= 18


def test_there_is_a_notebook_for_each_task() -> None:
    asked = {"dataset", "train", "test", "ranklist", "gradcam", "tsne", "pretrain", "monitor", "search"}
    assert asked <= {path.stem for path in NOTEBOOKS}


# The tree


def test_nothing_speaks_of_a_computer_or_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    home = re.compile("|".join(map(re.escape, {os.environ.get("HOME", "/root") + "/", str(ROOT) + "/"})))
    hosts = re.compile("py" + r"pi\.org|pythonhos" + "ted|registry" + r"\.npmjs")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".ipynb", ".md", ".toml", ".yml", ".yaml", ".txt", "") and path.is_file():
            text = path.read_text(errors="replace")
            assert not hosts.search(text), f"{name} names a registry"
            assert not home.search(text), f"{name} names a folder of this computer"


def test_every_score_of_the_evaluator_has_a_name() -> None:
    from reidlib.evaluation import evaluate_ranking
    from reidlib.scores import HEADLINE, NAMES, RETRIEVAL, percent

    feats = np.ones((1, 2), np.float32)
    ranking = evaluate_ranking(feats, feats, [1], [1], [0], [1])
    assert set(RETRIEVAL) == set(ranking.to_dict()) - {"num_valid", "num_query"}
    assert set(RETRIEVAL) | set(HEADLINE) <= set(NAMES)
    assert percent(ranking.mAP) == "100.0%"
