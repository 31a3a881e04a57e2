"""A run that is killed, or meets NaN, a full disk, a broken image or another run: nothing is lost."""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loop_cases import PLAIN, SIZE, Picky, small, timeless, weights
from torch import nn

from reidlib.data.loaders import loader_errors, train_loader
from reidlib.training import Setup, diagnose, fit, loop, record
from reidlib.workbook.batch import _keep
from reidlib.workbook.runs import Run

nbformat = pytest.importorskip("nbformat")
room = importlib.import_module("reidlib.training.tasks")  # the package's own name `fit` is the function

LONG = replace(PLAIN, epochs=40, eval_every=2, ema=0.9, accumulate=2, optimizer="adam", lr=1e-3)
KEEP = Setup(cpu=True, keep_every=10)

# Imports once, then trains in children of its own, which it kills at random moments.
SCRIPT = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import reidlib
from loop_cases import small
from test_survive import KEEP, LONG
from reidlib.training import fit
data = reidlib.load_dataset("synthetic-tiny")


def written(run):
    file = reidlib.Run.folder(run) / "metrics.jsonl"
    return file.stat().st_mtime_ns if file.exists() else 0


def begin(run):
    child = os.fork()
    if not child:
        fit(small(data, dropout=0.5), data, reidlib.Run.create(run, {{"seed": 0}}), LONG, KEEP)
        os._exit(0)
    return child


def until_it_writes(run):
    before, start = written(run), time.monotonic()
    while written(run) == before:
        time.sleep(0.002)
    return time.monotonic() - start


child, start = begin("whole"), time.monotonic()
beginning = until_it_writes("whole")
assert os.waitpid(child, 0)[1] == 0
epoch = (time.monotonic() - start - beginning) / LONG.epochs
draw = random.Random()
waits = draw.sample(range(5), 5)  # epochs written before the kill; 0: perhaps before it has read its checkpoint
for kill in range({kills}):
    child = begin("killed")
    lines = waits[kill % 5]
    for _ in range(lines):
        until_it_writes("killed")
    time.sleep(draw.uniform(0, epoch if lines else beginning))
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], len(reidlib.Run(reidlib.Run.folder("killed")).metrics), flush=True)
assert os.waitpid(begin("killed"), 0)[1] == 0
"""


@pytest.mark.parametrize("kills", [5, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_killed_many_times_ends_with_the_same_weights(tiny, kills: int) -> None:
    code = SCRIPT.format(tests=str(Path(__file__).parent), kills=kills)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    ends = [line.split() for line in done.stdout.splitlines()]
    assert [died for died, _ in ends] == [str(int(signal.SIGKILL))] * kills, ends
    assert len({rows for _, rows in ends}) > 2, ends  # and it got on in between
    one, two = Run(Run.folder("whole")), Run(Run.folder("killed"))
    assert timeless(one.metrics) == timeless(two.metrics)
    assert (one.path / "model.safetensors").read_bytes() == (two.path / "model.safetensors").read_bytes()
    assert {p.name for p in one.path.iterdir()} == {p.name for p in two.path.iterdir()}  # nothing half-written
    for name in ("last.pt", *(f"epoch-{epoch:04}.pt" for epoch in (10, 20, 30, 40))):
        a, b = (torch.load(run.path / name, weights_only=True) for run in (one, two))
        assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
        assert all(torch.equal(v, b["average"][k]) for k, v in a["average"].items())


def batch_of(data, epoch: int, step: int):
    loader = train_loader(data, SIZE, people=PLAIN.people, images=PLAIN.images)
    loader.sampler.set_epoch(epoch)
    return list(loader)[step]


def test_a_loss_that_is_no_number_names_the_layer_and_keeps_the_batch(tiny) -> None:
    run, batch = Run.create("nan", {}), batch_of(tiny, epoch=2, step=5)
    model = small(tiny, dropout=0.5)
    model.network.stem = Picky(model.network.stem, batch.images)
    before: list[torch.Tensor] = []
    with pytest.raises(FloatingPointError) as caught:
        fit(model, tiny, run, PLAIN, on_epoch=lambda h: before.append(weights(model).clone()))
    sentence = "batch 6 of epoch 2: the loss is nan, first in the output of layer network.stem; lower the learning rate"
    assert str(caught.value).startswith(f"{sentence} (lr=0.05)")
    assert "\n" not in str(caught.value)
    images, about = record.bad_batch(run)
    assert torch.equal(images, batch.images)
    assert about["paths"] == [str(tiny.train[i].path) for i in batch.indices]
    assert about["labels"] == batch.pids.tolist()
    assert about["layer"] == "network.stem"
    assert about["drawn_from"] == {"seed": 0, "epoch": 2, "step": 5, "rank": 0}
    state = torch.load(run.path / "last.pt", weights_only=True)
    assert len(state["history"]) == 2
    assert torch.equal(torch.cat([v.flatten() for v in state["model"].values()]), before[0])
    assert weights(model).isfinite().all()  # the step was never taken


class Kink(nn.Module):
    """Its output is a number and the slope there is not."""

    def forward(self, x):
        return x + (x - x.detach()).abs().sqrt()


def test_a_gradient_that_is_no_number_is_told_from_a_loss(tiny) -> None:
    model, run = small(tiny), Run.create("kink", {})
    model.network.scale = nn.Sequential(model.network.scale, Kink())
    with pytest.raises(FloatingPointError, match=r"starting at network\.scale\.0\.bias; lower") as caught:
        fit(model, tiny, run, PLAIN)
    sentence = "batch 1 of epoch 1: the loss is finite, but 4 gradients are NaN or infinite, starting at"
    assert str(caught.value).startswith(sentence)
    assert torch.equal(record.bad_batch(run)[0], batch_of(tiny, 1, 0).images)
    assert not (run.path / "last.pt").exists()


def test_weights_that_are_no_numbers_are_said(tiny) -> None:
    model = small(tiny)
    with torch.no_grad():
        model.network.stem.weight[0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite"):  # by the evaluation of the untrained network
        fit(model, tiny, Run.create("broken", {}), PLAIN)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(tiny, small_disk: Path) -> None:
    recipe = replace(PLAIN, epochs=3)

    def big():
        return small(tiny, feature_dim=128)

    run, filler = Run.create(str(small_disk / "run"), {}), small_disk / "filler"

    def fill(history) -> None:
        if history[-1]["epoch"] == 1:
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))

    with pytest.raises(
        OSError, match=r"the disk is full: .* was not written, what was there before is untouched"
    ) as full:
        fit(big(), tiny, run, recipe, on_epoch=fill)
    assert "\n" not in str(full.value)
    assert len(torch.load(run.path / "last.pt", weights_only=True)["history"]) == 2
    filler.unlink()
    model, whole = big(), big()
    fit(model, tiny, run, recipe)
    fit(whole, tiny, Run.create("whole", {}), recipe)
    assert torch.equal(weights(model), weights(whole))


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are read picture by picture, as those that do not fit into memory."""
    for name in ("train_loader", "eval_loader"):
        original = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *a, original=original, **k: original(*a, **(k | {"cache_gib": 0})))


def copied(data, folder: Path):
    """The same dataset, whose training images may be broken."""
    folder.mkdir()
    train = [s._replace(path=Path(shutil.copy(s.path, folder))) for s in data.train]
    return replace(data, train=tuple(train))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_in_the_middle_of_a_run(tiny, tmp_path: Path, uncached, workers: int) -> None:
    data, run = copied(tiny, tmp_path / "copy"), Run.create("breaks", {})

    def break_all(history) -> None:
        for sample in data.train:
            os.truncate(sample.path, 300)

    with pytest.raises(OSError, match=r"^cannot read image .*\.jpg: [^\n]*$") as caught:
        fit(small(data), data, run, PLAIN, Setup(workers=workers), on_epoch=break_all)
    assert "\n" not in str(caught.value)
    assert len(torch.load(run.path / "last.pt", weights_only=True)["history"]) == 2


def test_a_loader_process_that_is_killed(tiny, uncached, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop.Trainer.update

    def kill(self):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return update(self)

    run = Run.create("workers", {})
    fit(small(tiny), tiny, run, replace(PLAIN, epochs=1))
    before = (run.path / "last.pt").read_bytes()
    monkeypatch.setattr(loop.Trainer, "update", kill)
    run = Run.create("killed-worker", {})
    with pytest.raises(RuntimeError, match=r"^a loader process was killed \(is the memory full\?\): lower `workers`$"):
        fit(small(tiny), tiny, run, PLAIN, Setup(workers=2))
    assert before == (Run.folder("workers") / "last.pt").read_bytes()


def test_a_death_that_is_reported_after_its_connection_closed() -> None:
    def report(*_) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # as torch's handler does

    def receive() -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        raise ConnectionResetError(104, "Connection reset by peer")

    signal.signal(signal.SIGUSR1, report)
    with pytest.raises(RuntimeError, match=r"^a loader process was killed"), loader_errors():
        receive()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with pytest.raises(ConnectionResetError), loader_errors():  # of a tracker's server, say
        receive()


def test_the_result_is_the_same_with_any_number_of_workers(tiny, request) -> None:
    recipe, results = replace(PLAIN, augment=("random_flip", "pad_crop")), []
    for workers in (None, 0, 1, 3):
        if workers == 0:
            request.getfixturevalue("uncached")  # the first reads from memory
        model = small(tiny, dropout=0.5)
        history = fit(model, tiny, Run.create(f"with-{workers}", {}), recipe, Setup(workers=workers or 0))
        results.append((weights(model), timeless(history)))
    assert all(torch.equal(found, results[0][0]) for found, _ in results)
    assert all(history == results[0][1] for _, history in results)


def hold(path: Path, held) -> None:
    with Run(path).lock():
        held.set()
        time.sleep(300)


def test_two_runs_never_write_into_one_folder(tiny) -> None:
    run, context = Run.create("one", {}), multiprocessing.get_context("spawn")
    fit(small(tiny), tiny, run, replace(PLAIN, epochs=1))
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    held = context.Event()
    other = context.Process(target=hold, args=(run.path, held))
    other.start()
    assert held.wait(60)
    for resume in ("auto", "restart"):
        with pytest.raises(
            OSError, match=rf"one is being trained by process {other.pid} on .*: wait, or choose another"
        ):
            fit(small(tiny), tiny, Run.create("one", {}, resume=resume), replace(PLAIN, epochs=1))
    assert _keep(Path(__file__), run, "train.failed", "words") == ""
    after = {p.name: p.read_bytes() for p in run.path.iterdir()}
    assert {**before, ".lock": b""} == {**after, ".lock": b""}
    other.kill()  # what it leaves keeps nobody out
    other.join()
    (run.path / "executed.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    assert "see" in _keep(run.path / "executed.ipynb", run, "train.failed", "words")
    fit(small(tiny), tiny, Run.create("one", {}, resume="restart"), PLAIN)
    assert len(run.metrics) == 3


def test_kept_checkpoints_are_whole_runs_of_their_own(tiny) -> None:
    run, whole = Run.create("kept", {}), small(tiny)
    fit(whole, tiny, run, replace(PLAIN, epochs=5), Setup(keep_every=2))
    assert sorted(p.name for p in run.path.glob("*.pt")) == ["epoch-0002.pt", "epoch-0004.pt", "last.pt"]
    assert len(torch.load(run.path / "epoch-0002.pt", weights_only=True)["history"]) == 3
    weights_before = (run.path / "model.safetensors").read_bytes()
    shutil.copy(run.path / "epoch-0002.pt", run.path / "last.pt")  # go back to it
    again = small(tiny)
    fit(again, tiny, run, replace(PLAIN, epochs=5), Setup(keep_every=2))
    assert torch.equal(weights(whole), weights(again))
    assert (run.path / "model.safetensors").read_bytes() == weights_before


def test_nothing_grows_with_epochs(tiny) -> None:
    import gc

    import psutil

    seen: list[tuple[int, int]] = []

    def look(history) -> None:
        if history[-1]["epoch"] % 6 == 0:
            gc.collect()
            seen.append((psutil.Process().memory_info().rss, len(gc.get_objects())))

    recipe = replace(PLAIN, epochs=30, ema=0.9, accumulate=2, augment=("random_flip",))
    fit(small(tiny), tiny, Run.create("long", {}), recipe, on_epoch=look)
    grown, added = np.diff(seen, axis=0).T  # in each six epochs: bytes, objects
    # The allocator takes a few MiB now and then, by what ran before in this process; a leak takes some each time.
    assert min(grown) < 2**20, grown
    assert min(added) < 6 * 4, added  # objects: a row of metrics an epoch


def test_tensorboard_shows_what_the_metrics_say(tiny) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, setup = Run.create("board", {}), Setup(trackers="tensorboard")
    fit(small(tiny), tiny, run, replace(PLAIN, epochs=1), setup)
    run = Run.create("board", {}, resume="restart")
    with pytest.raises(ZeroDivisionError):
        fit(small(tiny), tiny, run, PLAIN, setup, on_epoch=lambda history: 1 / 0)
    history = fit(small(tiny), tiny, run, PLAIN, setup)
    board = EventAccumulator(str(run.path / "trackers" / record.PROJECT))
    board.Reload()
    for name in ("loss", "mAP", "lr", "gradient_norm"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in history if name in row]


def test_a_tracker_gets_each_epoch_once(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    calls: list[tuple] = []

    class Double(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "double", True, None

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()
            calls.append(("init", run_name, logging_dir))

        def store_init_configuration(self, values: dict) -> None:
            calls.append(("settings", values["lr"], values["augment"]))

        def log(self, values: dict, step: int | None = None) -> None:
            if step == 2 and not lost:
                lost.append(step)
                raise ConnectionError("the tracker is gone")
            calls.append(("log", step, values))

        def finish(self) -> None:
            calls.append(("finish",))

    lost: list[int] = []
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "double", Double)
    run, recipe, setup = Run.create("tracked", {}), replace(PLAIN, epochs=3), Setup(trackers=" double,")
    with pytest.raises(ZeroDivisionError):
        fit(small(tiny), tiny, run, recipe, setup, on_epoch=lambda history: 1 / 0)
    with pytest.raises(ConnectionError):  # after the checkpoint of epoch 2
        fit(small(tiny), tiny, run, recipe, setup)
    history = fit(small(tiny), tiny, run, recipe, setup)
    fit(small(tiny), tiny, run, recipe, setup)  # nothing is left to do
    logged = [call[1:] for call in calls if call[0] == "log"]
    assert [step for step, _ in logged] == [0, 1, 2, 3]
    assert [values for _, values in logged] == [{k: v for k, v in row.items() if k != "epoch"} for row in history]
    begun = ("init", record.PROJECT, str(run.path / "trackers"))
    assert [call for call in calls if call[0] != "log"] == [
        begun, ("settings", 0.05, "[]"), ("finish",), begun, ("finish",), begun, ("finish",), begun, ("finish",),
    ]  # fmt: skip


def test_a_tracker_that_is_not_there_is_one_sentence(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    run = Run.create("untracked", {})
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        fit(small(tiny), tiny, run, PLAIN, Setup(trackers="tensorbord"))
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match="tracker wandb is not installed: install the package wandb, or change `track"):
        fit(small(tiny), tiny, run, PLAIN, Setup(trackers="wandb"))
    assert not run.path.exists()


def test_the_training_writes_its_state(tiny) -> None:
    run, seen = Run.create("states", {}), []
    fit(small(tiny), tiny, run, PLAIN, on_epoch=lambda history: seen.append(run.state["state"]))
    assert seen == ["training"] * 2
    ended = run.state
    assert (ended["state"], ended["epoch"]) == ("ended", 2)
    assert "stopped" not in ended
    fit(small(tiny), tiny, run, PLAIN)
    with pytest.raises(ValueError, match="other settings"):
        fit(small(tiny), tiny, run, replace(PLAIN, lr=1))
    assert run.state == ended  # neither loading a finished run nor a refusal changes it

    def interrupt(history) -> None:
        raise KeyboardInterrupt

    run = Run.create("interrupted", {})
    with pytest.raises(KeyboardInterrupt):
        fit(small(tiny), tiny, run, PLAIN, on_epoch=interrupt)
    assert (run.state["state"], run.state["error"]) == ("failed", "interrupted")
    model = small(tiny)
    model.network.scale = nn.Sequential(model.network.scale, Kink())
    run = Run.create("failed", {})
    with pytest.raises(FloatingPointError) as caught:
        fit(model, tiny, run, PLAIN)
    assert run.state["state"] == "failed"
    assert run.state["error"] == f"FloatingPointError: {caught.value}"
    run = Run.create("patient", {})
    fit(small(tiny), tiny, run, replace(PLAIN, epochs=40, patience=1))
    assert run.state["stopped"] == run.metrics[-1]["stopped"]
    assert run.state["epoch"] < 40


def edit_stamp(run: Run, **changes) -> None:
    path = run.path / "last.pt"
    state = torch.load(path, weights_only=True)
    state["stamp"] |= changes
    state["stamp"] = {key: value for key, value in state["stamp"].items() if value is not None}
    torch.save(state, path)


def stopped_after_one(tiny, name: str, recipe=PLAIN) -> Run:
    run = Run.create(name, {})
    with pytest.raises(ZeroDivisionError):
        fit(small(tiny), tiny, run, recipe, on_epoch=lambda history: 1 / 0)
    return run


def test_a_checkpoint_from_before_a_setting_existed_is_resumed(tiny) -> None:
    whole, rest = small(tiny), small(tiny)
    fit(whole, tiny, Run.create("whole", {}), PLAIN)
    run = stopped_after_one(tiny, "older")
    edit_stamp(run, clip=None, losses=None, sync_bn=None)
    with pytest.raises(ValueError, match=r"other settings \(clip 0\.0 → 0\.5\): choose another `run`"):
        fit(rest, tiny, run, replace(PLAIN, clip=0.5))
    fit(rest, tiny, run, PLAIN)
    assert torch.equal(weights(whole), weights(rest))

    run = stopped_after_one(tiny, "newer")
    edit_stamp(run, gravity=9.81)
    with pytest.raises(
        ValueError, match=r"settings that this version does not know \(gravity=9\.81\): use the version"
    ):
        fit(rest, tiny, run, PLAIN)


def test_what_a_resumed_run_may_change(tiny) -> None:
    recipe, whole, rest = replace(PLAIN, epochs=4), small(tiny), small(tiny)
    fit(whole, tiny, Run.create("whole", {}), recipe)
    run = stopped_after_one(tiny, "changed", recipe)
    changed, setup = replace(recipe, eval_every=2, patience=9), Setup(workers=1, keep_every=2, trackers="tensorboard")
    history = fit(rest, tiny, run, changed, setup)
    assert [row["epoch"] for row in history if "mAP" in row] == [0, 1, 2, 4]
    assert (run.path / "epoch-0004.pt").exists()
    last = [torch.load(Run.folder(name) / "last.pt", weights_only=True)["model"] for name in ("whole", "changed")]
    assert all(torch.equal(value, last[1][key]) for key, value in last[0].items())
    with pytest.raises(ValueError, match=r"other settings \(epochs 4 → 5; lr 0\.05 → 0\.1\): choose another `run`"):
        fit(rest, tiny, run, replace(recipe, epochs=5, lr=0.1))


def test_more_patience_resumes_a_run_that_stopped(tiny) -> None:
    recipe, run = replace(PLAIN, epochs=40, patience=1), Run.create("stopped", {})
    stopped = fit(small(tiny), tiny, run, recipe)
    assert "stopped" in stopped[-1]
    resumed = fit(small(tiny), tiny, run, replace(recipe, patience=3))
    assert len(resumed) > len(stopped)
    assert "stopped" not in resumed[len(stopped) - 1]


def test_averaged_weights_of_an_older_checkpoint_are_resumed(tiny) -> None:
    recipe, whole, rest = replace(PLAIN, ema=0.9), small(tiny), small(tiny)
    fit(whole, tiny, Run.create("whole", {}), recipe)
    run = stopped_after_one(tiny, "older", recipe)
    state = torch.load(run.path / "last.pt", weights_only=True)
    average = state["average"]
    state["average"] = {"steps": int(average.pop("n_averaged"))}
    state["average"]["model"] = {name.removeprefix("module."): value for name, value in average.items()}
    torch.save(state, run.path / "last.pt")
    fit(rest, tiny, run, recipe)
    assert torch.equal(weights(whole), weights(rest))


def test_checkpoints_are_kept_on_a_disk_without_links(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    run = Run.create("kept", {})
    fit(small(tiny), tiny, run, replace(PLAIN, epochs=3), Setup(keep_every=2))
    assert len(torch.load(run.path / "epoch-0002.pt", weights_only=True)["history"]) == 3
    assert len(torch.load(run.path / "last.pt", weights_only=True)["history"]) == 4
    assert not list(run.path.glob(".*part*"))


@pytest.mark.slow
def test_a_missing_compiler_is_one_sentence(tiny, tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import reidlib
from test_survive import PLAIN, Setup, fit, small
data = reidlib.load_dataset("synthetic-tiny")
try:
    fit(small(data), data, reidlib.Run.create("no-compiler", {{}}), PLAIN, Setup(cpu=True, compile=True))
except ValueError as error:
    print(error)
"""
    alone = os.environ | {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=alone)
    (line,) = done.stdout.splitlines()
    assert line.startswith("compile=True needs a C++ compiler (g++ or clang++): install it, or set compile=False (")


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(tiny) -> None:
    plain, compiled = small(tiny), small(tiny)
    one = fit(plain, tiny, Run.create("plain", {}), PLAIN)
    two = fit(compiled, tiny, Run.create("compiled", {}), PLAIN, Setup(compile=True))
    assert torch.allclose(weights(plain), weights(compiled), atol=1e-4)
    assert [row["loss"] for row in one[1:]] == pytest.approx([row["loss"] for row in two[1:]], rel=1e-4)


def test_what_may_differ_from_run_to_run_is_written_down(tiny) -> None:
    run = Run.create("named", {"seed": 0})
    fit(small(tiny), tiny, run, replace(PLAIN, epochs=1))
    assert run.read_json("environment.json")["not_deterministic"] == []  # on a CPU
    with diagnose.note_nondeterministic(run):
        torch.zeros(4).put_(torch.tensor([1]), torch.tensor([1.0]))
    assert run.read_json("environment.json")["not_deterministic"] == ["put_"]
    assert json.loads((run.path / "environment.json").read_text())["seed"] == 0
    assert not torch.are_deterministic_algorithms_enabled()
