"""The demo's scores: README.md and docs quote the table of benchmarks/demo.md, and a training ends within its range."""

import importlib.util
import re
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/data.md")
SPREAD = r"\d+\.\d ± \d+\.\d"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_benchmark", ROOT / "benchmarks/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation by dataset and score, as benchmarks/demo.md has them."""
    text = (ROOT / "benchmarks/demo.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| ([\w -]+) \| ({SPREAD}) \| ({SPREAD}) \| ({SPREAD}) \|$", text, re.MULTILINE)
    return {
        name: {
            score: tuple(map(float, cell.split(" ± ")))
            for score, cell in zip(("rank1", "mAP", "mINP"), cells, strict=True)
        }
        for name, *cells in rows
    }


def quoted(page: str) -> str:
    """What a page says about the demo."""
    return "".join(re.findall(r"<!-- demo -->(.*?)<!-- /demo -->", (ROOT / page).read_text("utf-8"), re.DOTALL))


def test_the_table_has_every_run_and_says_what_the_demo_promises(script: ModuleType) -> None:
    text, found = (ROOT / "benchmarks/demo.md").read_text("utf-8"), table()
    assert list(found) == ["synthetic-small", script.UNTRAINED, "synthetic_b-small"]
    runs = re.findall(r"^\| (\w+) \| (\d) \| ([\d.]+) / ([\d.]+) \|", text, re.MULTILINE)
    assert sorted(run[:2] for run in runs) == sorted((isa, str(s)) for isa in script.INSTRUCTIONS for s in script.SEEDS)
    for at, score in ((2, "rank1"), (3, "mAP")):  # to the rounding of single runs
        values = [float(run[at]) for run in runs]
        assert (mean(values), stdev(values)) == pytest.approx(found["synthetic-small"][score], abs=0.11)
    assert found["synthetic-small"]["rank1"][0] >= 75
    assert found["synthetic-small"]["mAP"][0] >= 60
    assert found["synthetic-small"]["mAP"][1] <= 2
    assert found[script.UNTRAINED]["mAP"][0] < 5


@pytest.mark.parametrize("page", PAGES)
def test_pages_quote_the_table(page: str) -> None:
    text, found = quoted(page), table()
    measured = {"{:.1f} ± {:.1f}".format(*score) for row in found.values() for score in row.values()}
    assert set(re.findall(SPREAD, text)) <= measured
    for dataset in ("synthetic-small", "synthetic_b-small"):
        for score in ("rank1", "mAP"):
            assert "{:.1f} ± {:.1f}".format(*found[dataset][score]) in text


@pytest.mark.slow
def test_the_demo_ends_within_its_range(script: ModuleType) -> None:
    """One training as `make demo` does it, on whatever processor this is, within four standard deviations."""
    script.train("all-0", 0)
    got, found = script.read_scores("all-0"), table()
    for dataset in ("synthetic-small", "synthetic_b-small"):
        for score in ("rank1", "mAP"):
            centre, std = found[dataset][score]
            assert 100 * got[dataset][score] == pytest.approx(centre, abs=4 * std), (dataset, score)
    assert got[script.UNTRAINED]["mAP"] < 0.05
