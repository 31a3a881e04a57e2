"""The workbook runs from a read-only checkout with a space in its path, without HOME, and without root's rights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["-p", "dataset", "synthetic-tiny", "-p", "epochs", "1", "-p", "people", "4"]
QUICK += ["-p", "height", "64", "-p", "width", "32"]


@pytest.fixture
def checkout(tmp_path: Path):
    """A read-only copy of what is in the package and the notebooks, in a folder with a space in its name."""
    folder = tmp_path / "a checkout"
    for name in ("reidlib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "data_paths.yaml", folder)
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in paths:
        path.chmod(0o755)


def powerless(command: list[str]) -> list[str]:
    """As an ordinary user: root without its capabilities, who may write only where the mode of a file says so."""
    if os.getuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("root can only give up its rights with setpriv (util-linux)")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command]


@pytest.mark.slow
@pytest.mark.parametrize("home", ["unset", "read-only"])
def test_batch_runs_from_a_read_only_checkout(checkout: Path, tmp_path: Path, home: str) -> None:
    out = tmp_path / "my out"
    (out / "tmp").mkdir(parents=True)
    (out / "paths.yaml").write_text("synthetic: drawn people\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout), "TMPDIR": str(out / "tmp")}
    environment |= {"REID_RUNS": str(out / "my runs"), "REID_DATA_PATHS": str(out / "paths.yaml")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": str(checkout)} if home == "read-only" else {}
    command = [sys.executable, "-m", "reidlib.batch", "train", "-p", "run", "first", *QUICK]
    done = subprocess.run(
        powerless(command), cwd=checkout, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    run = out / "my runs" / "first"
    assert (run / "notebooks" / "train.html").is_file()
    assert (run / "model.safetensors").is_file()
    assert "Traceback" not in done.stderr
