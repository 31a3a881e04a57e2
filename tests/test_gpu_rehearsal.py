"""`make gpu` before there is a GPU: all of its code runs, without what notebooks need, and nothing stops the rest."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a machine for `make gpu` need not have; a child process cannot import it.
ABSENT = """
import sys

class Absent:
    names = {"papermill", "jupyterlab", "jupyter_client", "ipykernel", "IPython", "ipywidgets", "nbclient", "nbconvert",
             "nbformat", "traitlets", "pytorch_grad_cam", "pytorch_metric_learning", "openTSNE", "umap", "jscatter"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a child process for which ABSENT is not installed."""
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    # Plug-ins of pytest are imported by themselves, and nbval's needs nbformat.
    return os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_that_a_gpu_will_run_runs_on_a_cpu(bare: dict[str, str], tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks").glob("*.*")}
    call = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(call, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks").glob("*.*")} == before
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"torch", "triton", "processor", "python"} <= found["machine"].keys()
    rows = {part: {row[1]: row for row in result["rows"]} for part, result in found["parts"].items()}
    kinds = {part.partition("-")[0] for part in rows}
    assert kinds == {"tests", "million", "reranking", "demo", "features", "training"}
    assert rows["tests"]["skipped"][2] >= 1
    way = rows["million"]["**this evaluator**"]
    assert way[2] > 0
    assert way[5].startswith("mAP 0.8254")
    assert "| plain torch, no kernel |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_the_tests_for_a_gpu_are_found_without_what_notebooks_need(bare: dict[str, str], script: ModuleType) -> None:
    """And all of them are in the files that `make gpu` runs."""

    def found(*files: str) -> set[str]:
        call = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider", *files]
        done = subprocess.run(call, env=bare, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        return {line for line in done.stdout.splitlines() if "::" in line}

    assert found("tests") == found(*script.test_files()) != set()


def test_a_part_that_fails_is_a_line_and_the_next_one_runs(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(world: object) -> list:
        yield script.Row("first", "way", 2.0, "ms", 1.0)
        raise ValueError("a | typing error")

    parts = {"one": script.Part(9, fails), "two": script.Part(9, lambda _: [script.Row("second", "way", 3.0, "ms")])}
    monkeypatch.setattr(script, "PARTS", parts)
    monkeypatch.setattr(script, "machine", lambda _: {"gpu": "a card"})
    script.measure_parts(["one", "two"], tmp_path / "lines", script.World(True))
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line.get("part") for line in lines] == [None, "one", "one", "two"]
    assert lines[2]["error"] == "ValueError: a | typing error"


def test_a_part_that_takes_too_long_is_stopped_and_what_it_measured_is_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time, pathlib\n"
        "lines = pathlib.Path(sys.argv[sys.argv.index('--lines') + 1])\n"
        'lines.write_text(\'{"part": "market", "row": ["a", "b", 1.0, "ms", 1.0, ""]}\\n\')\n'
        "time.sleep(60 if 'market' in sys.argv else 0)\n"
        "sys.exit(3)\n"
    )
    monkeypatch.setattr(script, "__file__", str(slow))
    first, error = script.start_parts(["market"], 1, tmp_path, script.World(False))
    assert first["row"][2] == 1.0
    assert error == {"part": "market", "error": "stopped after 1 s"}
    *_, error = script.start_parts(["million"], 60, tmp_path, script.World(False))
    assert error["error"].startswith("ended with 3")
    call = ["gpu.py", "--parts", "market,million", "--minutes", "0.03", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", call)
    assert script.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert found["market"]["rows"] == [["a", "b", 1.0, "ms", 1.0, ""]]
    assert "**failed** | | | stopped after" in (tmp_path / "gpu.md").read_text()
    assert "minutes were over" in found["million"]["error"]
