"""Searches: every combination once, whatever happens on the way, and honest means."""

import csv
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_batch import write

from reidlib import plots
from reidlib.workbook import batch, search_points
from reidlib.workbook.runs import Run
from reidlib.workbook.search import figures, search, spread, table
from reidlib.workbook.search_points import combinations, read_axes, sampled

PARAMETERS = (
    'run: str = ""  # run folder\nlr: float = 0.1  # rate\nseed: int = 0  # of everything\n'
    'augment: list = ["flip"]  # some\nepochs: int = 3  # passes\n'
)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Notebooks `train` and `test`, and a list of what was executed. mAP is 10 × lr + seed / 100; a rate of 9 fails."""
    folder = tmp_path / "books"
    folder.mkdir()
    monkeypatch.setattr(batch, "NOTEBOOKS", folder)
    write(folder, "train", parameters=PARAMETERS)
    write(folder, "test", parameters='run: str = ""  # run folder\nrank: int = 20  # how far\n')
    log: list[tuple[str, str]] = []

    def run_notebook(name: str, values: dict, *, progress: bool = False) -> Path:
        run = Run(Run.folder(values["run"]))
        log.append((name, run.name))
        if values.get("lr") == 9:
            raise batch.NotebookFailed(
                f"{name}.ipynb failed in cell 3 (`fit()`): FloatingPointError: no number\n  see x"
            )
        if name == "train":
            Run.create(values["run"], values).begin()
            score = 10 * values.get("lr", 0.1) + values.get("seed", 0) / 100
            run.write_json("model.json", {"name": "toy", "init": "random"})
            run.add_result("toy", {"mAP": score, "rank1": score / 2, "metric": "cosine", "untrained": {"mAP": 0.01}})
        else:
            run.add_result("other", {"mAP": 0.25, "num_valid": 7})
        done = run.path / "notebooks" / f"{name}.ipynb"
        done.parent.mkdir(exist_ok=True)
        done.touch()
        return done

    monkeypatch.setattr(batch, "run_notebook", run_notebook)
    return log


def test_every_combination_is_a_run_folder(ran: list) -> None:
    folder = search(["train", "test"], {"run": "s", "epochs": 2}, {"lr": ["1e-2", 0.02], "seed": [0, 1]})
    assert ran == [
        (book, f"s/lr={lr},seed={seed}") for lr in (0.01, 0.02) for seed in (0, 1) for book in ("train", "test")
    ]
    assert Run(folder.path / "lr=0.02,seed=1").params["lr"] == 0.02
    assert Run(folder.path / "lr=0.02,seed=1").params["epochs"] == 2
    assert {p.name for p in folder.path.iterdir() if p.is_file()} == {
        "search.json", "table.csv", "result.json", "results.tex", "results.md", ".lock",
    }  # fmt: skip
    assert {p.name for p in (folder.path / "figures").iterdir()} == {"toy.png", "other.png"}


def test_mean_and_spread_are_over_the_seeds(ran: list) -> None:
    folder = search(["train", "test"], {"run": "s"}, {"seed": [0, 1, 5], "lr": [0.01, 0.02]})
    settings = folder.read_json("result.json")["settings"]
    assert [(entry["setting"], entry["seeds"]) for entry in settings] == [({"lr": 0.01}, 3), ({"lr": 0.02}, 3)]
    got = settings[1]["results"]["toy"]["mAP"]
    assert got["values"] == pytest.approx([0.2, 0.21, 0.25])
    assert got["mean"] == pytest.approx(statistics.mean(got["values"]))
    assert got["std"] == pytest.approx(statistics.stdev(got["values"]))
    assert set(settings[0]["results"]["toy"]) == {"mAP", "rank1"}  # no words, and not what the untrained network scores
    rows = table(folder).to_dict("records")
    assert rows[0] == {
        "lr": 0.01,
        "dataset": "toy",
        "weights before": "random",
        "seeds": 3,
        "Rank-1": "6.0 ± 1.3",
        "mAP": "12.0 ± 2.6",
    }
    assert rows[1]["mAP"] == "25.0 ± 0.0"
    with (folder.path / "table.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 12
    assert points[0] == {
        "run": "seed=0,lr=0.01",
        "seed": "0",
        "lr": "0.01",
        "init": "random",
        "dataset": "toy",
        "mAP": "0.1",
        "rank1": "0.05",
    }


def test_one_run_has_no_spread(ran: list) -> None:
    folder = search(["train"], {"run": "s"}, {"lr": [0.01]})
    (entry,) = spread(folder)
    assert entry["results"]["toy"]["mAP"] == {"mean": 0.1, "std": None, "values": [0.1]}
    assert table(folder).loc[0, "mAP"] == "10.0"


def test_what_ended_well_is_not_run_again(ran: list) -> None:
    search(["train"], {"run": "s"}, {"seed": [0, 1]})
    search(["train"], {"run": "s"}, {"seed": [0, 1]})
    assert len(ran) == 2
    search(["train"], {"run": "s"}, {"seed": [1, 2]})  # one more point
    assert ran[2:] == [("train", "s/seed=2")]
    folder = search(["train", "test"], {"run": "s"}, {"seed": [0, 1, 2]})  # one more notebook
    assert ran[3:] == [("test", f"s/seed={seed}") for seed in range(3)]
    assert spread(folder)[0]["seeds"] == 3
    (folder.path / "seed=1" / "notebooks" / "train.ipynb").unlink()  # as if it had been interrupted
    search(["train", "test"], {"run": "s"}, {"seed": [0, 1, 2]})
    assert ran[6:] == [("train", "s/seed=1"), ("test", "s/seed=1")]


def test_a_search_that_was_killed_in_its_first_point_goes_on(ran: list, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batch.run_notebook

    def killed(name: str, values: dict, *, progress: bool = False) -> Path:
        Run.create(values["run"], values).begin()
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "run_notebook", killed)
    with pytest.raises(KeyboardInterrupt):
        search(["train"], {"run": "s"}, {"seed": [0, 1]})
    monkeypatch.setattr(batch, "run_notebook", whole)
    assert spread(search(["train"], {"run": "s"}, {"seed": [0, 1]}))[0]["seeds"] == 2
    assert len(ran) == 2


def test_a_point_that_fails_is_noted_and_the_others_go_on(ran: list, capsys) -> None:
    arguments = ["train", "-p", "run", "s", "--grid", "lr", "9", "0.01", "--grid", "seed", "0", "1"]
    assert batch.main(arguments) == 1
    said = capsys.readouterr()
    assert "train.ipynb failed in cell 3 (`fit()`): FloatingPointError: no number" in said.out
    assert "10.5 ± 0.7" in said.out
    assert "error: 2 points failed: lr=9.0,seed=0; lr=9.0,seed=1" in said.err
    folder = Run(Run.folder("s"))
    assert set(folder.read_json("search.json")["failed"]) == {"lr=9.0,seed=0", "lr=9.0,seed=1"}
    assert len(ran) == 4
    assert [entry["setting"] for entry in spread(folder)] == [{"lr": 0.01}]
    assert len(table(folder)) == 1
    assert "lr=9.0,seed=1" in (folder.path / "table.csv").read_text()
    assert batch.main(arguments) == 1  # tried again, and only they
    assert [point for _, point in ran[4:]] == ["s/lr=9.0,seed=0", "s/lr=9.0,seed=1"]
    assert (
        batch.main(["train", "-p", "run", "s", "--grid", "lr", "0.01", "--grid", "seed", "0"]) == 1
    )  # still on record


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "lrr", "1"], "unknown parameter of train 'lrr': did you mean 'lr'"),
        (["--grid", "lr", "fast"], "parameter 'lr' is float, got 'fast'"),
        (["--grid", "lr"], "the grid needs a list of values for 'lr'"),
        (["--grid", "lr", "1", "-p", "lr", "2"], "'lr' cannot be searched: it is given"),
        (["--grid", "run", "a", "b"], "'run' cannot be searched"),
        (["--grid", "seed", "0", "-p", "epochs", "4"], r"holds another search (train: epochs 2 → 4): choose another"),
        (["--grid", "lr", "1", "-p", "epochs", "2"], "holds another search (over seed): choose another `run`"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_runs(ran: list, capsys, arguments: list[str], said: str) -> None:
    search(["train"], {"run": "s", "epochs": 2}, {"seed": [0]})
    given = [] if "run" in arguments else ["-p", "run", "s"]
    assert batch.main(["train", *arguments, *given]) == 2
    assert said in capsys.readouterr().err
    assert len(ran) == 1


def test_a_folder_that_is_no_search_is_left_alone(ran: list) -> None:
    Run.create("s", {}).begin()
    with pytest.raises(ValueError, match="is not the folder of a search"):
        search(["train"], {"run": "s"}, {"seed": [0]})


def test_a_search_that_another_process_is_at_is_left_to_it(ran: list) -> None:
    code = "from reidlib.workbook.runs import Run\nwith Run(Run.folder('s')).lock(): print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(OSError, match=r"by process .*: wait, or choose another `run`"):
        search(["train"], {"run": "s"}, {"seed": [0]})
    other.communicate(b"\n")
    search(["train"], {"run": "s"}, {"seed": [0]})
    assert len(ran) == 1


def test_values_of_a_list_are_one_value_each(ran: list) -> None:
    folder = search(["train"], {"run": "s"}, {"augment": ["flip", "flip,crop", ["crop", "erase"]]})
    names = ["augment=flip", "augment=flip+crop", "augment=crop+erase"]
    assert [point for _, point in ran] == [f"s/{name}" for name in names]
    assert Run(folder.path / names[1]).params["augment"] == ["flip", "crop"]
    assert list(table(folder)["augment"]) == ["flip", "flip+crop", "crop+erase"]


def test_points_are_runs_like_any_other(ran: list, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = search(["train"], {"run": "s"}, {"seed": [0, 1]})
    for name in ("seed=0", "seed=1"):
        (folder.path / name / "model.json").write_text("{}")
        os.utime(folder.path / name / "model.json", (int(name[-1]), int(name[-1])))
    assert [run.name for run in Run.all()] == ["s/seed=1", "s/seed=0"]
    assert Run.open().path == Run.open("s/seed=1").path == folder.path / "seed=1"
    whole = Run.create("older", {}).begin()
    (whole.path / "model.json").write_text("{}")
    os.utime(whole.path / "model.json", (0, 0))
    assert Run.open().name == "older"  # a point is one of many, and nobody named it
    with pytest.raises(FileNotFoundError, match=r"no trained run at .*s; runs in .*: s/seed=1, s/seed=0"):
        Run.open("s")


def test_the_figure_shows_every_run(ran: list) -> None:
    folder = search(["train"], {"run": "s"}, {"lr": [0.01, 0.02], "seed": [0, 1, 5]})
    figure = figures(folder)["toy"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["mAP (%)", "Rank-1 (%)"]
    dots = figure.axes[0].collections[0].get_offsets()
    assert [sorted(dots[dots[:, 1] == row, 0]) for row in (0, 1)] == [
        pytest.approx([10, 11, 15]),
        pytest.approx([20, 21, 25]),
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["lr 0.01", "lr 0.02"]
    with pytest.raises(ValueError, match="no setting has a score"):
        plots.score_spread({"mAP": {}})


QUICK = ["-p", "dataset", "synthetic-tiny", "-p", "epochs", "2", "-p", "people", "4", "-p", "run", "s"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_that_is_killed_goes_on_where_it_was(tiny, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "reidlib.batch", "train", *QUICK, "--grid", "seed", "0", "1"]
    first = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    folder = Run(Run.folder("s"))
    done, begun = folder.path / "seed=0" / "notebooks" / "train.html", folder.path / "seed=1" / "last.pt"
    end = time.monotonic() + 200
    while not begun.is_file() and time.monotonic() < end:
        assert first.poll() is None, first.stderr.read().decode()
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    written = done.stat().st_mtime_ns
    rest = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert rest.returncode == 0, rest.stderr
    assert done.stat().st_mtime_ns == written
    (entry,) = folder.read_json("result.json")["settings"]
    scores = entry["results"]["synthetic-tiny"]["mAP"]["values"]
    lasts = [Run(folder.path / f"seed={seed}").metrics for seed in (0, 1)]
    assert [len(rows) for rows in lasts] == [3, 3]
    assert scores == [rows[-1]["mAP"] for rows in lasts]
    assert scores[0] != scores[1]
    assert json.loads((folder.path / "seed=1" / "params.json").read_text())["seed"] == 1


def test_two_points_never_share_a_folder(ran: list) -> None:
    folder = search(["train"], {"run": "s"}, {"augment": [["a b"], ["a-b"], ["a/b"]]})
    points = folder.read_json("search.json")["points"]
    assert [axes["augment"] for axes in points.values()] == [["a b"], ["a-b"], ["a/b"]]
    assert "augment=a-b" in points
    assert len({point for _, point in ran}) == 3


# ---- ranges, and points side by side ---------------------------------------------------------------------------------


def test_ranges_and_draws() -> None:
    axes = read_axes({"lr": ["1e-4..1e-2:log:3", "0.5"], "people": ["4..16:3"], "init": ["../a..b"]})
    points = list(combinations(axes))
    assert [point["lr"] for point in points[::3]] == ["0.0001", "0.001", "0.01", "0.5"]
    assert [point["people"] for point in points[:3]] == ["4", "10", "16"]
    assert {point["init"] for point in points} == {"../a..b"}  # a text like any other
    axes = read_axes({"seed": ["0", "1"], "lr": ["1e-4..1e-2:log"], "margin": ["0..1"], "people": ["4..16"]})
    drawn = list(sampled(axes, 50))
    assert drawn[:10] == list(sampled(axes, 5))  # the same again, and more of them
    assert len(drawn) == 100
    assert [point["seed"] for point in drawn[:2]] == ["0", "1"]
    assert drawn[0] | {"seed": "1"} == drawn[1]
    rates = sorted(float(point["lr"]) for point in drawn)
    assert 1e-4 <= rates[0] < 5e-4 < 1e-3 * 0.7 < rates[50] < 1.5e-3 < 5e-3 < rates[-1] <= 1e-2
    assert {point["people"] for point in drawn} <= {str(n) for n in range(4, 17)}
    assert len(list(sampled(read_axes({"lr": ["1", "2"]}), 9))) == 2  # there are no more
    for wrong, words in (("1..1:2", "must rise"), ("0..1:log:2", "from above 0"), ("1..2", "needs a count")):
        with pytest.raises(ValueError, match=words):
            list(combinations(read_axes({"lr": [wrong]})))


def in_a_job(path: str, notebooks: dict, environment: dict) -> str:
    """What a job of `beside` does; it runs in another process."""
    import json
    import os
    import time
    from pathlib import Path

    from reidlib.workbook.runs import Run

    os.environ.update({key: value for key, value in environment.items() if value is not None})
    values = notebooks["train"]
    with (Path(path).parent / "log").open("a") as file:
        file.write(json.dumps({"begin": Path(path).name, "at": time.time(), "threads": environment["OMP_NUM_THREADS"]}))
        file.write("\n")
    if values["lr"] == 9:
        return "train.ipynb failed: no number"
    if values["lr"] == 8:
        os.kill(os.getpid(), 9)
    run, score = Run.create(path, values), max(0.0, 1 - abs(values["lr"] - 0.3))
    run.begin()
    rows = [{"epoch": 0, "mAP": 0.0}]
    for epoch in range(1, values["epochs"] + 1):
        rows.append({"epoch": epoch, "mAP": score * epoch / values["epochs"]})
        run.write_metrics(rows)
        time.sleep(values.get("seed", 0))
    run.write_json("model.json", {"name": "toy", "init": "random"})
    run.add_result("toy", {"mAP": score, "rank1": score})
    return ""


@pytest.fixture
def beside(ran: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points side by side run `in_a_job`."""
    import cloudpickle

    module = importlib.import_module("reidlib.workbook.search")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "_run_job", in_a_job)
    monkeypatch.setattr(module, "POLL", 0.1)


def begun(folder: Run) -> list[dict]:
    return [json.loads(line) for line in (folder.path / "log").read_text().splitlines()]


@pytest.mark.slow
def test_points_run_side_by_side_and_a_failed_or_killed_one_is_run_again(beside: None, capsys) -> None:
    grid = {"lr": [0.1, 9, 8], "seed": [0]}
    folder = search(["train"], {"run": "s", "epochs": 1}, grid, jobs=3, progress=True)
    assert {row["begin"] for row in begun(folder)} == {f"lr={lr},seed=0" for lr in ("0.1", "9.0", "8.0")}
    assert {row["threads"] for row in begun(folder)} == {os.environ.get("OMP_NUM_THREADS", "1")}
    state = folder.read_json("search.json")
    assert set(state["failed"]) == {"lr=9.0,seed=0", "lr=8.0,seed=0"}
    assert state["failed"]["lr=9.0,seed=0"] == "train.ipynb failed: no number"
    assert state["jobs"] == {}
    assert [entry["setting"] for entry in spread(folder)] == [{"lr": 0.1}]
    assert "3/3 s/lr=8.0,seed=0" in capsys.readouterr().out


def test_arguments_of_a_search_that_contradict_each_other_are_refused(ran: list, monkeypatch, tmp_path: Path, capsys):
    for arguments, words in (
        (["--grid", "lr", "1..2"], "needs a count"),
        (["--grid", "lr", "1", "--slurm", "partition=gpu"], "needs the time"),
        (["--grid", "lr", "1", "--slurm", "partition=gpu,time=1:00:00"], "srun"),
        (["--grid", "lr", "1", "--sample", "2", "--optuna", "2"], "either draw"),
        (["--grid", "seed", "1", "--optuna", "2"], "a seed is not learned"),
        (["--jobs", "2"], "are for a search"),
        (["--grid", "lr", "1", "--jobs", "0"], "jobs must be at least 1"),
    ):
        assert batch.main(["train", *arguments]) == 2
        assert words in capsys.readouterr().err
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    module = importlib.import_module("reidlib.workbook.search")
    executor = module._executor(Run(tmp_path), "partition=gpu,gpus=1,cpus=8,time=1-02:30:00")
    text = executor._make_submission_file_text("command", "id")
    for line in ("partition=gpu", "gpus-per-node=1", "cpus-per-task=8", "time=1590"):
        assert f"#SBATCH --{line}\n" in text
    with pytest.raises(ValueError, match="partitoin"):
        module._executor(Run(tmp_path), "partitoin=gpu,time=5")


@pytest.mark.slow
def test_at_most_so_many_points_at_a_time(beside: None) -> None:
    folder = search(["train"], {"run": "s", "epochs": 1, "seed": 2}, {"lr": [0.1, 0.2, 0.3, 0.4]}, jobs=2)
    at = sorted(row["at"] for row in begun(folder))
    assert at[2] - at[0] > 2 > at[1] - at[0]
    assert len(spread(folder)) == 4


@pytest.mark.slow
def test_a_search_of_optuna_that_is_killed_goes_on(beside: None, monkeypatch) -> None:
    grid = {"lr": ["0.1..1.5"]}
    folder = search(["train"], {"run": "s", "epochs": 4}, grid, optuna=2)
    assert len(spread(folder)) == 2
    trials = search_points.Trials
    ends, end = [], trials.end

    def killed(self, name, metrics, state) -> None:
        if len(ends) == 1:
            raise KeyboardInterrupt
        ends.append((name, state))
        end(self, name, metrics, state)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "end", killed)
        with pytest.raises(KeyboardInterrupt):
            search(["train"], {"run": "s", "epochs": 4}, grid, optuna=5)
    search(["train"], {"run": "s", "epochs": 4}, grid, optuna=5)
    points = folder.read_json("search.json")["points"]
    assert len(points) == 5
    counts = [row["begin"] for row in begun(folder)]
    assert max(counts.count(name) for name in points) == 2  # the one that was interrupted came again
    assert len(spread(folder)) + len(folder.read_json("search.json")["stopped"]) == 5


def test_optuna_finds_a_training_hopeless_that_is_worse_than_the_median_of_the_others() -> None:
    trials = search_points.Trials(Run.create("s", {}), read_axes({"lr": ["0.1..1"]}), 6, "mAP")

    def rows(score: float) -> list[dict]:
        return [{"epoch": 0, "mAP": 0.9}, {"epoch": 1, "loss": 1.0, "mAP": score}, {"epoch": 2, "loss": 1.0}]

    for number, texts in enumerate(trials):
        assert 0.1 <= float(texts["lr"]) <= 1
        trials.begin(str(number))
        assert not trials.hopeless(str(number), rows(0.5)[:1])  # it has not trained yet
        if number == 5:
            break
        assert not trials.hopeless(str(number), rows(0.5 + number / 100))
        trials.end(str(number), rows(0.5 + number / 100), "COMPLETE")
    assert trials.hopeless("5", rows(0.1))
    assert trials.study.best_value == 0.54


@pytest.mark.slow
def test_what_optuna_stops_is_no_failure(beside: None, monkeypatch) -> None:
    hopeless = search_points.Trials.hopeless
    monkeypatch.setattr(
        search_points.Trials,
        "hopeless",
        lambda self, name, metrics: hopeless(self, name, metrics) or (name == "lr=0.9" and len(metrics) > 2),
    )
    folder = search(["train"], {"run": "s", "epochs": 40, "seed": 1}, {"lr": ["0.9"]}, optuna=1)
    state = folder.read_json("search.json")
    assert state["stopped"] == {"lr=0.9": "stopped by optuna after epoch 2"}
    assert (state["failed"], spread(folder)) == ({}, [])
    assert "stopped by optuna" in (folder.path / "table.csv").read_text()
