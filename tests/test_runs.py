"""The run folder, and files that appear whole or not at all."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import reidlib
from reidlib.files import whole_file, whole_folder
from reidlib.run_folder import environment
from reidlib.training import Job, record
from reidlib.workbook.runs import Run


def test_whole_file_leaves_the_old_one_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as part:
        part.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_file(path) as part:
        part.write_text(f"half {1 / 0}")
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o044  # others may read it, as the umask says


def _torch(path: Path, values: torch.Tensor) -> None:
    with path.open("wb") as file:
        torch.save({"w": values}, file)


def _safetensors(path: Path, values: torch.Tensor) -> None:
    save_file({"w": values}, path)


def _text(path: Path, values: torch.Tensor) -> None:
    path.write_bytes(bytes(len(values)))


@pytest.mark.parametrize("write", [_torch, _safetensors, _text])
def test_full_disk_is_one_sentence_and_loses_nothing(small_disk: Path, write: Callable) -> None:
    path = small_disk / "last.pt"
    path.write_text("the last checkpoint")
    full = pytest.raises(OSError, match=r"the disk is full: .*last\.pt was not written, what was there before")
    with full as caught, whole_file(path) as part:
        write(part, torch.zeros(3_000_000))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "the last checkpoint"
    assert list(small_disk.iterdir()) == [path]


def test_whole_folder_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(ZeroDivisionError), whole_folder(path) as part:
        (part / "x").write_text(f"half {1 / 0}")
    assert not list(tmp_path.iterdir())
    with whole_folder(path) as part:
        (part / "x").write_text("whole")
    with whole_folder(path) as part:  # somebody else was first: theirs is kept
        (part / "x").write_text("late")
    assert (path / "x").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_names_and_paths_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "elsewhere"
    monkeypatch.setenv("REID_RUNS", str(root))
    assert Run.folder("a") == Run.folder("runs/a") == root / "a"
    assert Run.folder(str(tmp_path / "b")) == tmp_path / "b"


def test_create_resume_restart_never() -> None:
    run = Run.create("r", {"epochs": 3, "seed": 7})
    assert not run.path.exists()  # nothing is written before it begins
    run.begin()
    assert run.params == {"epochs": 3, "seed": 7}
    assert run.read_json("environment.json")["seed"] == 7
    (run.path / "last.pt").write_text("state")
    assert Run.create("r", {"epochs": 4}).begin().params["epochs"] == 3  # the first run's parameters stand
    with pytest.raises(FileExistsError, match="exists already"):
        Run.create("r", {}, resume="never")
    with pytest.raises(ValueError, match="did you mean 'restart'"):
        Run.create("r", {}, resume="re-start")
    new = Run.create("r", {"epochs": 5}, resume="restart")
    assert (run.path / "last.pt").exists()  # the old run stands until the new one begins
    assert new.begin().params == {"epochs": 5}
    assert not (run.path / "last.pt").exists()


THESIS = "years of work"


@pytest.mark.parametrize("foreign", ["thesis.tex", "params.json", "run.json", "metrics.jsonl"])
@pytest.mark.parametrize("resume", ["restart", "auto", "never"])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, foreign: str, resume: str) -> None:
    (tmp_path / foreign).write_text(json.dumps({"thesis": THESIS, "state": "chapter 3"}))
    with pytest.raises(FileExistsError, match="not a run folder"):
        Run.create(str(tmp_path), {}, resume=resume)
    assert json.loads((tmp_path / foreign).read_text())["thesis"] == THESIS
    assert [path.name for path in tmp_path.iterdir()] == [foreign]


def trained(name: str = "r") -> Run:
    """A run that has been trained, with files that no run writes beside it."""
    run = Run.create(name, {"epochs": 3, "model": "m"}).begin()
    for file in ("last.pt", "model.safetensors", "features/a.safetensors", "epoch-0010.pt"):
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).write_text("old")
    run.write_json("model.json", {"name": "m"})
    (run.path / "thesis.tex").write_text(THESIS)
    (run.path / "notes").mkdir()
    (run.path / "notes" / "a.md").write_text(THESIS)
    return run


def test_a_restart_removes_only_what_a_run_writes(tmp_path: Path) -> None:
    run = trained()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_text("figure")
    (run.path / "figures").symlink_to(tmp_path / "elsewhere")
    Run.create("r", {"epochs": 5}, resume="restart").begin()
    names = {path.name for path in run.path.iterdir()}
    assert names == {"run.json", "params.json", "environment.json", "thesis.tex", "notes"}
    assert run.params == {"epochs": 5}
    assert (run.path / "thesis.tex").read_text() == (run.path / "notes" / "a.md").read_text() == THESIS
    assert (tmp_path / "elsewhere" / "a.png").read_text() == "figure"  # the link went, not what it points to


@pytest.mark.parametrize("calls", range(12))
@pytest.mark.parametrize("kind", ["error", "kill"])
def test_a_restart_that_is_interrupted_leaves_a_usable_run(
    monkeypatch: pytest.MonkeyPatch, calls: int, kind: str
) -> None:
    """At every rename in turn: an error, which is undone at once, or a kill, which the next opening undoes."""
    run, rename, left = trained(), Path.rename, [calls]
    old = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}

    def interrupted(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == -1:
            raise OSError("interrupted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    if kind == "kill":
        monkeypatch.setattr(Run, "_restore", lambda self, **_: None)
    new = Run.create("r", {"epochs": 5}, resume="restart")
    try:
        new.begin()
    except OSError:
        monkeypatch.undo()
        monkeypatch.setenv("REID_RUNS", str(run.path.parent))
        again = Run.open("r")
        assert {p.name: p.read_bytes() for p in again.path.iterdir() if p.is_file() and p.name != ".lock"} == old
        assert again.params["epochs"] == 3
    else:
        assert calls >= 7  # there are so many things to move
        assert Run(run.path).params == {"epochs": 5}


def test_a_folder_that_holds_only_a_lock_is_free() -> None:
    run = Run(Run.folder("r"))
    with run.lock():
        pass
    assert [path.name for path in run.path.iterdir()] == [".lock"]
    assert Run.create("r", {"epochs": 1}).begin().params == {"epochs": 1}


def test_one_process_holds_a_lock_once(tmp_path: Path) -> None:
    run = Run(Run.folder("r"))
    (tmp_path / "link").symlink_to(run.path)
    with run.lock():
        for same in (run, Run(run.path), Run(tmp_path / "link")):
            with pytest.raises(OSError, match="is being trained by this kernel"), same.lock():
                pass
    with run.lock():
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"name": ', "\xff\xfe"])
def test_one_broken_run_does_not_stop_the_others(content: str) -> None:
    for name in ("good", "bad"):
        run = Run.create(name, {"model": "m"}).begin()
        run.write_json("model.json", {"name": "osnet_x0_25", "trained_on": "x"})
        run.write_metrics([{"epoch": 0}, {"epoch": 1}])
    bad = Run(Run.folder("bad"))
    (bad.path / "model.json").write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"left out of the list of runs: .*bad.model\.json"):
        found = [*Run.all(), Run.open(), Run.open(model="osnet_x0_25")]
    assert [run.name for run in found] == ["good"] * 3
    with (bad.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')  # a line that is being written
    assert bad.metrics == [{"epoch": 0}, {"epoch": 1}]


def test_open_says_which_runs_there_are() -> None:
    model = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32))
    record.save_model(Run.create("good", {}), model, trained_on="x", epoch=1)
    with pytest.raises(FileNotFoundError, match=r"no trained run at .*goood; runs in .*: good"):
        Run.open("goood")
    assert Run.open("").name == Run.open("good").name == "good"


def test_a_model_comes_back_from_its_folder() -> None:
    model = reidlib.create_model("osnet_x0_25", num_classes=12, input_size=(64, 32)).eval()
    run = Run.create("m", {})
    record.save_model(run, model, trained_on="x", epoch=4)
    back = run.load_model("cpu")
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), back(images))
    assert (back.num_classes, back.input_size, back.training) == (12, (64, 32), False)
    state = torch.random.get_rng_state()
    one, other = (run.load_model("cpu", random=seed) for seed in (1, 2))
    params = {"model": "osnet_x0_25", "dataset": "synthetic-tiny", "height": 64, "width": 32, "seed": 1}
    same = Job.from_params(params).model.eval()
    with torch.inference_mode():
        assert torch.equal(one(images), same(images)), "what a training from this seed begins with"
        assert not any(torch.allclose(one(images), net(images)) for net in (other, back))
    assert torch.equal(torch.random.get_rng_state(), state)
    about = run.read_json("model.json")
    assert about["mean"] == [0.485, 0.456, 0.406]
    state = load_file(run.path / "model.safetensors")
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[0] = torch.nan
    save_file(state, run.path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: {re.escape(name)} holds NaN or infinite values"):
        run.load_model("cpu")
    (run.path / "model.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights"):
        run.load_model("cpu")
    (run.path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is not valid JSON"):
        run.read_json("model.json")


def test_features_are_cached_by_weights_and_data(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32)).eval()
    run = Run.create("f", {})
    record.save_model(run, model, trained_on="x", epoch=1)
    query, gallery = run.features(model, tiny)
    assert (len(query), len(gallery)) == (len(tiny.query), len(tiny.gallery))
    assert query.pids.tolist() == [s.pid for s in tiny.query]
    path = run.path / "features" / f"{tiny.name}.safetensors"
    written = path.stat().st_mtime_ns
    again, _ = run.features(model, tiny)
    assert torch.equal(again.feats, query.feats)
    assert path.stat().st_mtime_ns == written
    flipped, _ = run.features(model, tiny, flip=True)  # kept apart
    assert not torch.equal(flipped.feats, query.feats)
    assert torch.equal(run.features(model, tiny, flip=True)[0].feats, flipped.feats)
    assert path.stat().st_mtime_ns == written
    other = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32)).eval()
    record.save_model(run, other, trained_on="x", epoch=2)
    assert not torch.equal(run.features(other, tiny)[0].feats, query.feats)
    path.write_bytes(b"cut off")
    assert len(run.features(other, tiny)[0]) == len(tiny.query)


def test_results_of_several_data_sets_stand_side_by_side() -> None:
    run = Run.create("res", {})
    run.add_result("a", {"mAP": 0.5, "untrained": {"mAP": 0.1}})
    run.add_result("b", {"mAP": 0.3})
    run.add_result("a", {"mAP": 0.6})
    assert run.read_json("result.json")["results"] == {
        "a": {"mAP": 0.6, "untrained": {"mAP": 0.1}},
        "b": {"mAP": 0.3},
    }


def test_environment_is_json_and_names_no_folder() -> None:
    text = json.dumps(environment())
    assert str(Path.home()) not in text
    assert json.loads(text)["packages"]["torch"]


def test_results_of_a_read_only_run_go_where_the_user_says(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32))
    run = Run.create("theirs", {"model": "osnet_x0_25"}).begin()
    record.save_model(run, model, trained_on="x", epoch=1)
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run.path and writable(path, mode))
    with pytest.raises(PermissionError, match=r"theirs is read-only: set `output` to a folder of yours"):
        Run.open("theirs").add_result("x", {"mAP": 0.5})
    mine = Run.open("theirs", output=str(tmp_path / "mine"))
    mine.features(mine.load_model("cpu"), tiny)
    mine.add_result("x", {"mAP": 0.5})
    mine.add_result("y", {"mAP": 0.25})
    assert mine.read_json("result.json")["results"] == {"x": {"mAP": 0.5}, "y": {"mAP": 0.25}}
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {"features", "result.json", "results.tex", "results.md"}
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_features_are_kept_apart_by_the_size_and_the_interpolation(tiny) -> None:
    model = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32))
    file = Run.folder("weights.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    found = {}
    for size, interpolation in ((None, ""), ((64, 32), ""), ((64, 32), "bicubic")):
        run = Run.open(model="osnet_x0_25", weights=str(file), size=size, interpolation=interpolation)
        found[run.input_line] = run.features(run.load_model("cpu"), tiny)[0].feats
        assert Run.open(run.name).input_line == run.input_line
    assert list(found) == ["256 × 128 pixels (bilinear)", "64 × 32 pixels (bilinear)", "64 × 32 pixels (bicubic)"]
    one, two, three = found.values()
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    with pytest.raises(ValueError, match="height and width go together"):
        Run.open(model="osnet_x0_25", weights=str(file), size=(64, None))
    with pytest.raises(ValueError, match="unknown interpolation 'bicubik'"):
        Run.open(model="osnet_x0_25", weights=str(file), interpolation="bicubik")
    # The parameters of a training go to the notebooks after it too: the run's own size is no error, another one is.
    assert Run.open(run.name, size=(64, 32), interpolation="bicubic").path == run.path
    for other in ({"size": (128, 64)}, {"interpolation": "bilinear"}):
        with pytest.raises(ValueError, match=r"go with `weights`: the run .* takes 64 × 32 pixels \(bicubic\)"):
            Run.open(run.name, **other)


def test_results_are_also_tables_for_papers() -> None:
    run = Run.create("res", {})
    run.add_result("market1501", {"rank1": 0.7188, "mAP": 0.56, "metric": "cosine", "untrained": {"mAP": 0.1}})
    run.add_result("my_own|data", {"mAP": 1.0})
    assert (run.path / "results.md").read_text().splitlines() == [
        "| dataset | Rank-1 | mAP |",
        "| --- | --- | --- |",
        "| market1501 | 71.9 | 56.0 |",
        r"| my_own\|data |  | 100.0 |",
    ]
    latex = (run.path / "results.tex").read_text()
    assert r"market1501 & 71.9 & 56.0 \\" in latex
    assert r"my\_own|data &  & 100.0 \\" in latex


def test_figures_are_saved_in_the_formats_that_are_asked_for() -> None:
    from reidlib import plots

    model = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32))
    record.save_model(Run.create("f", {}), model, trained_on="x", epoch=1)
    run = Run.open("f", formats=["pdf", "svg"])
    assert run.save_figure(plots.cmc_curves({"a": [0.5, 1]}), "cmc").name == "cmc.pdf"
    assert {path.name for path in (run.path / "figures").iterdir()} == {"cmc.pdf", "cmc.svg"}
    with pytest.raises(ValueError, match="unknown format of figures 'pgn': did you mean 'png'"):
        Run.open("f", formats=["pgn"])
    with pytest.raises(ValueError, match="formats is empty"):
        Run.open("f", formats=[])
    with pytest.raises(ValueError, match="unknown format of figures 'pgn'"):
        reidlib.training.Job.from_params({"settings": {"formats": ["pgn"]}})
