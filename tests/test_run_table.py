"""The table of all runs: from their folders alone, whatever state these are in, and as a page that stands by itself."""

import json
import os
import re
import shutil
import time
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from reidlib.paths import runs_root
from reidlib.workbook import batch
from reidlib.workbook.run_table import as_table, read_runs, select, show, write_index
from reidlib.workbook.runs import Run

HISTORY = [{"epoch": 0, "mAP": 0.01, "rank1": 0.02, "eval_seconds": 6.0}]
HISTORY += [{"epoch": 1, "loss": 2.0, "seconds": 54.0}]
HISTORY += [{"epoch": 2, "loss": 1.0, "seconds": 54.0, "eval_seconds": 6.0, "mAP": 0.5, "rank1": 0.6}]


def a_run(name: str, state: str = "ended", pages: tuple[str, ...] = (), **params: object) -> Run:
    params = {"model": "osnet_x0_25", "dataset": "market1501", "recipe": "bot", "epochs": 2} | params
    run = Run.create(name, params).begin()
    run.write_metrics(HISTORY)
    if state == "ended":
        run.write_json("model.json", {"name": params["model"], "trained_on": params["dataset"]})
        run.add_result(params["dataset"], {"mAP": 0.5, "rank1": 0.6, "metric": "cosine", "untrained": {"mAP": 0.01}})
    run.write_state(state, **({"error": "FloatingPointError: the loss is NaN"} if state == "failed" else {}))
    for page in pages:
        (run.path / "notebooks").mkdir(exist_ok=True)
        (run.path / "notebooks" / f"{page}.html").write_text(f"<title>{page}</title>")
    return run


def rows() -> dict:
    return {row.run: row for row in read_runs()}


def test_a_row_says_what_the_folder_holds() -> None:
    run = a_run(
        "first", pages=("train", "test-market1501"), overridden=["lr", "milestones"], lr=0.01, milestones=[1, 2]
    )
    run.add_result("msmt17", {"mAP": 0.25, "rank1": 0.5})
    (row,) = read_runs()
    assert (row.run, row.state, row.model, row.data, row.recipe) == (
        "first",
        "done",
        "osnet_x0_25",
        "market1501",
        "bot",
    )
    assert row.changed == {"lr": 0.01, "milestones": [1, 2]}
    assert (row.epoch, row.epochs, row.minutes) == (2, 2, 2.0)
    assert row.curve == [(0, 0.01), (2, 0.5)]
    assert row.scores == {"mAP": 0.5, "rank1": 0.6}
    assert row.elsewhere == {"msmt17": {"mAP": 0.25, "rank1": 0.5}}
    assert [page.title for page in row.pages] == ["train", "test · market1501"]
    (line,) = as_table([row]).to_dict("records")
    del line["date"]
    assert line == {
        "run": "first", "state": "done", "model": "osnet_x0_25", "data": "market1501", "recipe": "bot",
        "changed": "lr=0.01, milestones=1+2", "epoch": "2/2", "mAP": "50.0", "Rank-1": "60.0", "minutes": "2.0",
    }  # fmt: skip


def test_states() -> None:
    a_run("done")
    a_run("failed", "failed")
    a_run("running", "training", epochs=9)
    quiet = a_run("quiet", "training", epochs=9)
    hours_ago = time.time() - 7200
    os.utime(quiet.path / "metrics.jsonl", (hours_ago, hours_ago))
    Run.create("begun", {"model": "m"}).begin()
    (old := Run.create("silent", {"model": "m"}).begin()).write_state("training")
    for path in old.path.iterdir():
        os.utime(path, (hours_ago, hours_ago))
    weights = Run.create("weights", {"model": "m"}).begin()
    weights.write_json("model.json", {"name": "m", "weights": {"name": "market1501"}})
    weights.write_state("ended")
    a_run("page", pages=("train", "test.failed"))
    found = rows()
    assert {name: row.state for name, row in found.items()} == {
        "done": "done", "failed": "failed", "running": "running", "quiet": "quiet", "begun": "running",
        "silent": "quiet", "weights": "done", "page": "failed",
    }  # fmt: skip
    assert "FloatingPointError: the loss is NaN" in found["failed"].words
    assert found["page"].words == "test failed"
    assert found["weights"].recipe == "published weights"
    assert found["running"].scores == {"mAP": 0.5, "rank1": 0.6}  # of its best epoch so far


def test_searches_groups_and_pages_without_a_run_are_rows() -> None:
    a_run("rates/lr=0.001,seed=0")
    a_run("rates/lr=0.001,seed=1", "failed")
    search = Run(Run.folder("rates"))
    search.write_json("search.json", {"grid": ["lr", "seed"], "points": {"a": {}, "b": {}}, "failed": {"b": "no"}})
    a_run("your-idea/baseline")
    (runs_root() / "dataset-1" / "notebooks").mkdir(parents=True)
    (runs_root() / "dataset-1" / "notebooks" / "dataset.html").touch()
    (runs_root() / ".hidden").mkdir()
    (runs_root() / "thesis").mkdir()
    (runs_root() / "thesis" / "thesis.tex").touch()
    found = rows()
    assert set(found) == {
        "rates", "rates/lr=0.001,seed=0", "rates/lr=0.001,seed=1", "your-idea/baseline", "dataset-1",
    }  # fmt: skip
    assert found["rates"].words == "a search over lr, seed: 2 points, 1 failed"
    assert {name: found[name].state for name in ("rates", "dataset-1")} == {"rates": "failed", "dataset-1": "done"}


@pytest.mark.parametrize(
    "file", ["run.json", "params.json", "metrics.jsonl", "result.json", "model.json", "search.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"results": 3, "overridden": 7, "epoch": "x"}\n']
)
def test_a_broken_folder_is_a_row_and_never_a_failure(file: str, content: bytes) -> None:
    a_run("good")
    (a_run("bad").path / file).write_bytes(content)
    found = rows()
    assert found.keys() == {"good", "bad"}
    assert found["good"].state == "done"
    assert found["bad"].state in ("broken", "done", "quiet", "running", "failed")
    if file in ("params.json", "result.json") and content in (b"{", b"[1]"):
        assert found["bad"].state == "broken"
        assert f"bad/{file}" in found["bad"].words
    assert write_index().read_text().count('<td class="run">') == 2


def test_a_folder_with_nothing_but_a_lock_is_a_row() -> None:
    with Run(Run.folder("r")).lock():
        pass
    assert (rows()["r"].state, rows()["r"].words) == ("quiet", "nothing has been written yet")
    assert batch.main(["--runs"]) == 0


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text of the page without scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.words, self._inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data.strip())


def requests(page: str) -> list[str]:
    """What a browser would fetch to show a page: not links, which somebody must click, nor data in the page."""
    own = ("src", "srcset", "data", "poster", "background", "action")
    tags = Tags(page).tags
    found = [about[key] for tag, about in tags for key in own if about.get(key)]
    found += [about["href"] for tag, about in tags if tag in ("link", "base", "image", "use") and about.get("href")]
    found += re.findall(r"url\(\s*['\"]?([^)'\"]+)", page)
    found += re.findall(r"@import\s+['\"]([^'\"]+)|(?:fetch|import|require)\(\s*['\"]([^'\"]+)", page)
    return [str(url) for url in found if not str(url).startswith("data:")]


NASTY = ['it\'s "quoted"', "<script>alert(1)</script>", "a & b", "50%25 #1?x=y", "naïve 人物"]


def test_names_are_escaped_and_links_lead_to_the_pages() -> None:
    for name in NASTY:
        a_run(name.replace("/", "-"), pages=("train", "test-a&b.failed"), overridden=["init"], init="<b>bold</b>")
    page = write_index().read_text(encoding="utf-8")
    read = Tags(page)
    assert not [about for tag, about in read.tags if tag == "b"]
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert {name.replace("/", "-") for name in NASTY} <= set(read.words)
    links = [about["href"] for tag, about in read.tags if tag == "a"]
    assert len(links) == 2 * len(NASTY)
    for link in links:
        assert (runs_root() / unquote(link.removesuffix("#error"))).is_file(), link
        assert link.endswith("#error") == ("failed" in link)
    assert requests(page) == []
    assert "<script" not in show(read_runs()).data


def test_the_index_is_renewed_whole_and_the_shell_prints_it(capsys) -> None:
    assert write_index() is None  # no runs yet, and no folder made for them
    assert batch.main(["--runs"]) == 0
    assert "no runs in" in capsys.readouterr().out
    a_run("first", overridden=["lr"], lr=0.01)
    assert batch.main(["--runs"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"first +done +osnet_x0_25 +market1501 +bot +lr=0.01 +2/2 +50.0 +60.0 +2.0", out)
    assert str(runs_root() / "index.html") in out
    assert {path.name for path in runs_root().iterdir()} == {"first", "index.html"}


def test_runs_are_chosen_and_sorted() -> None:
    for name, mAP in (("a", 0.1), ("b", 0.3), ("c", 0.2)):
        run = a_run(name, model="osnet_x1_0" if name == "a" else "osnet_x0_25")
        run.add_result("market1501", {"mAP": mAP})
    a_run("none", "begun").write_metrics([])
    assert [row.run for row in select(read_runs(), sort="mAP")] == ["b", "c", "a", "none"]
    assert [row.run for row in select(read_runs(), "OSNET_x0 done", sort="run")] == ["b", "c"]
    with pytest.raises(ValueError, match="unknown value of sort 'map': did you mean 'mAP'"):
        select(read_runs(), sort="map")


@pytest.mark.slow
def test_a_thousand_runs_are_read_in_two_seconds() -> None:
    """With 60 epochs each, in CPU time of the fastest of three: what else the computer does is not the table's."""
    history = [{"epoch": e, **dict.fromkeys("abcdefgh", 0.12345), "seconds": 12.3} for e in range(61)]
    text = "".join(
        json.dumps(row | ({"mAP": 0.1, "rank1": 0.2} if not row["epoch"] % 4 else {})) + "\n" for row in history
    )
    first = a_run("run-0", pages=("train", "test-market1501"))
    (first.path / "metrics.jsonl").write_text(text)
    (first.path / "model.safetensors").touch()
    for i in range(1, 1000):
        shutil.copytree(first.path, runs_root() / (f"search-{i % 7}/seed={i}" if i % 2 else f"run-{i}"))
    taken = []
    for _ in range(3):
        start = time.process_time()
        assert len(read_runs()) == 1000
        taken.append(time.process_time() - start)
    assert min(taken) < 2
    assert len(read_runs()[0].curve) == 16
