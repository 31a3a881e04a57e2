"""Shared by all tests: a tiny drawn dataset, and a world of its own for runs and data paths."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What takes longest, first: begun last, each would keep one process busy while the others wait. The notebook `train`
# before all, as the notebooks that stand in neither list open its run, where they would train one of their own.
LONG = (
    *("train", "search", "test_models", "test_workbook", "test_browser", "test_survive", "test_parallel", "test_plots"),
    *("test_ranking", "pretrain", "generalise", "your_idea", "zoo", "dataset"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes long first and the notebooks that open a run last.

    pytest-xdist hands modules and notebooks out whole, in this order with --no-loadscope-reorder.
    """
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG) + (item.path.suffix == ".ipynb")))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its own data_paths.yaml and runs; drawn data is shared by the whole session."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "data_paths.yaml").write_text(
        "synthetic: data\nsynthetic_b: data\nmarket1501: missing/Market-1501\nsynthetic_c: data\n"
    )
    return folder


@pytest.fixture(autouse=True)
def _own_world(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REID_DATA_PATHS", str(world / "data_paths.yaml"))
    monkeypatch.setenv("REID_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def tiny(world: Path):
    """The smallest drawn dataset."""
    from reidlib.data.datasets import load_dataset

    assert os.environ["REID_DATA_PATHS"].startswith(str(world))
    return load_dataset("synthetic-tiny")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root on Linux")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
