"""The five notebooks from end to end, as a person starts them from a shell."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_table import Tags, requests

from reidlib.models.zoo import MODELS

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["-p", "dataset", "synthetic-tiny", "-p", "epochs", "1", "-p", "people", "4"]


def shell(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=os.environ.copy(), capture_output=True, text=True, timeout=1000
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_batch_leaves_everything_in_one_run_folder(tiny, tmp_path: Path) -> None:
    books = ["train", "test", "ranklist", "gradcam", "tsne"]
    call = ["reidlib.batch", *books, *QUICK, "-p", "datasets", "synthetic-tiny,synthetic_b-tiny", "-p", "run", "r"]
    call += ["-p", "formats", "png,pdf"]
    done = shell(*call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "r"
    assert str(run) in done.stdout
    data = {"train": "", "test": "-synthetic-tiny+synthetic_b-tiny"}
    for book in books:
        stem = book + data.get(book, "-synthetic-tiny")
        page = (run / "notebooks" / f"{stem}.html").read_text()
        assert f"<title>r · {stem.replace('-', ' · ', 1)}</title>" in page
        assert requests(page) == []
        shown = [about for tag, about in Tags(page).tags if tag == "img"]
        assert all(len(about["alt"]) > 10 for about in shown)
        figures = [about for about in shown if "width" in about]  # the others are single images of people
        assert len(figures) == {"train": 2, "test": 8, "ranklist": 1, "gradcam": 2, "tsne": 3}[book]
        assert (len(shown) > len(figures)) == (book == "ranklist")
        executed = json.loads((run / "notebooks" / f"{stem}.ipynb").read_text())
        code = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in code)
    figures = {p.name for p in (run / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}"
        for kind in ("png", "pdf")
        for name in (
            "people_x_cameras", "training_curves",
            *(f"{name}_synthetic-tiny+synthetic_b-tiny" for name in ("cmc", "cross_domain_mAP")),
            *(f"{name}_synthetic-tiny" for name in ("ap_histogram", "camera_pairs", "pairs")),
            *(f"{name}_synthetic_b-tiny" for name in ("ap_histogram", "camera_pairs", "pairs")),
            "ranklist_synthetic-tiny_worst", "gradcam_synthetic-tiny_random_hirescam",
            "gradcam_sanity_synthetic-tiny_random_hirescam",
            *(f"tsne_synthetic-tiny_{kind}" for kind in ("person", "camera", "images")),
        )
    } | {f"ranklist_synthetic-tiny_worst.{kind}" for kind in ("csv", "tex", "md")}  # fmt: skip
    assert (run / "figures" / "training_curves.pdf").read_bytes().startswith(b"%PDF")
    assert (run / "results.md").read_text().splitlines()[0] == "| dataset | Rank-1 | Rank-5 | Rank-10 | mAP | mINP |"
    results = json.loads((run / "result.json").read_text())["results"]
    assert set(results) == {"synthetic-tiny", "synthetic_b-tiny"}
    assert {"rank1", "mAP", "mINP", "untrained"} <= set(results["synthetic-tiny"])
    assert results["synthetic-tiny"]["num_valid"] == len(tiny.query)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert results["synthetic-tiny"]["mAP"] == pytest.approx(last["mAP"], abs=1e-9)
    with (run / "figures" / "ranklist_synthetic-tiny_worst.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["rank"] for r in rows} >= {"1", "2", "10"}
    by_name = {str(s.path.relative_to(tiny.root)): s for s in (*tiny.query, *tiny.gallery)}
    for row in rows:
        query, match = by_name[row["query_path"]], by_name[row["path"]]
        assert (row["right"] == "True") == (query.pid == match.pid)
        assert (query.pid, query.camid) != (match.pid, match.camid)
    assert "synthetic_b-tiny" in (run.parent / "index.html").read_text()
    # The same again: nothing is trained twice, and the numbers stand.
    assert shell("reidlib.batch", "train", *QUICK, "-p", "run", "r", cwd=tmp_path).returncode == 0
    again = json.loads((run / "result.json").read_text())["results"]
    assert again["synthetic_b-tiny"] == results["synthetic_b-tiny"]


@pytest.mark.slow
def test_plain_papermill_works_from_anywhere(tiny, tmp_path: Path) -> None:
    call = ["papermill", str(ROOT / "notebooks" / "train.ipynb"), "out.ipynb", *QUICK, "--no-progress-bar"]
    done = shell(*call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.ipynb").is_file()
    assert (tmp_path / "runs" / "osnet_x0_25-synthetic-tiny" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ({"model": "osnet_x025"}, 2, "error: unknown model 'osnet_x025': did you mean 'osnet_x0_25'"),
        pytest.param(
            {"dataset": "market1501"},
            1,
            "line 3) for bounding_box_train, query, bounding_box_test",
            marks=pytest.mark.slow,
        ),
        pytest.param({"people": "400"}, 1, "lower `people`", marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tiny, tmp_path: Path, wrong: dict, code: int, words: str) -> None:
    given = dict(zip(QUICK[1::3], QUICK[2::3], strict=True)) | wrong | {"run": "bad"}
    call = [text for name, value in given.items() for text in ("-p", name, value)]
    done = shell("reidlib.batch", "train", *call, cwd=tmp_path)
    assert done.returncode == code
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert code == 2 or sentence.startswith("error: train.ipynb failed in the section 'T")
    assert words in sentence
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


LATER = ("CLIP-ReID", "SOLIDER", "TransReID-SSL", "PersonViT", "PASS", "LightMBN")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", [name for name, spec in MODELS.items() if spec.family in LATER])
def test_the_notebooks_take_every_later_model(model: str, tiny, tmp_path: Path) -> None:
    quick = ["-p", "dataset", "synthetic-tiny", "-p", "epochs", "1", "-p", "people", "2", "-p", "images", "2"]
    size = ["-p", "height", "64", "-p", "width", "32", "-p", "model", model, "-p", "run", "r"]
    done = shell("reidlib.batch", "train", "test", "ranklist", "gradcam", "tsne", *quick, *size, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())["results"]
    assert 0 < results["synthetic-tiny"]["mAP"] <= 1
    figures = {path.stem.split("_")[0] for path in (tmp_path / "runs" / "r" / "figures").glob("*.png")}
    assert {"gradcam", "ranklist", "tsne", "cmc"} <= figures
