"""Two processes do what one does with the batch of both, and one that dies does not leave the other waiting."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.multiprocessing as mp
from loop_cases import PLAIN, Picky, small, timeless, weights
from loop_cases import SIZE as CASES_SIZE
from safetensors.torch import load_file
from torch import nn

import reidlib
from reidlib.data.loaders import eval_loader, train_loader
from reidlib.training import Recipe, Setup, fit, record
from reidlib.training.distributed import _first_failure, run_processes
from reidlib.training.loop import batch_line
from reidlib.training.losses import LOSSES
from reidlib.workbook.runs import Run

SIZE = (64, 32)
CPU = Setup(cpu=True)
# What a pair of processes runs, each with half of the people of a batch, and one process with all of them.
CASES = {
    "plain": PLAIN,
    "triplets": replace(PLAIN, triplet_weight=1.0, optimizer="adam", lr=1e-3, ema=0.9, clip=1.0),
    "mixed": replace(PLAIN, pk=False, accumulate=3),
    # The classifier gets no gradient; the trunk only in the second epoch.
    "unused": replace(PLAIN, cross_entropy_weight=0, triplet_weight=1.0, accumulate=2, weight_decay=0.1),
    "frozen": replace(
        PLAIN, freeze=1, open_layers="classifiers", accumulate=2, circle_weight=0.01, center_weight=0.01, center_lr=0.1
    ),
    "learned": replace(PLAIN, losses=("prototypes=0.5",), optimizer="adam", lr=1e-3),
    "clusters": replace(
        PLAIN, cross_entropy_weight=0, contrast_weight=1.0, steps=4, k1=8, k2=3, min_samples=2, check_clusters=False
    ),
}


class Prototypes(nn.Module):
    """A loss that learns: the distance of embeddings to a point of each class."""

    def __init__(self, model) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.arange(model.num_classes * 16.0).reshape(-1, 16).cos())

    def forward(self, outputs, labels):
        return (outputs.embeddings[0] - self.points[labels]).square().mean()


def on_each_process(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    LOSSES["prototypes"] = Prototypes
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    data = reidlib.load_dataset("synthetic-tiny")
    for name, recipe in CASES.items():
        half, model = replace(recipe, people=recipe.people // 2), small(data)
        history = fit(model, data, Run.create(f"{name}-two", {}), half, CPU)
        torch.save((model.state_dict(), timeless(history)), Run.folder(f"{name}-two") / f"rank{rank}.pt")
    half = replace(PLAIN, people=PLAIN.people // 2)
    fit(small(data), data, Run(Run.folder("moved")), half, CPU)  # begun by one process
    # An image that only the second process sees, in its third batch, gives no number.
    loader = train_loader(data, CASES_SIZE, people=2, images=2, rank=1, world=2)
    loader.sampler.set_epoch(1)
    model = small(data)
    model.network.stem = Picky(model.network.stem, list(loader)[2].images)
    try:
        fit(model, data, Run.create("nan-two", {}), half, CPU)
    except FloatingPointError as error:
        (Run.folder("nan-two") / f"error{rank}.txt").write_text(str(error))


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_are_one_with_the_batch_of_both(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerance: 1e-5 of each loss, gradient norm and weight; sums of other parts are rounded otherwise."""
    monkeypatch.setitem(LOSSES, "prototypes", Prototypes)
    with pytest.raises(ZeroDivisionError):
        fit(small(tiny), tiny, Run.create("moved", {}), PLAIN, CPU, on_epoch=lambda history: 1 / 0)
    mp.spawn(on_each_process, args=(free_port(),), nprocs=2)
    for name, recipe in CASES.items():
        model = small(tiny)
        one = timeless(fit(model, tiny, Run.create(name, {}), recipe, CPU))
        run = Run(Run.folder(f"{name}-two"))
        two = timeless(run.metrics)
        assert len(one) == len(two) == 3
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
        ranks, histories = zip(*(torch.load(run.path / f"rank{rank}.pt") for rank in (0, 1)), strict=True)
        assert histories[0] == histories[1] == two
        assert all(torch.equal(v, ranks[1][k]) for k, v in ranks[0].items())  # each ends with the best weights
        for key, value in model.state_dict().items():
            assert torch.allclose(value, ranks[0][key], rtol=1e-5, atol=1e-6), (name, key)
        learned = [torch.load(Run.folder(n) / "last.pt")["criterion"] for n in (name, f"{name}-two")]
        for key, value in learned[0].items():
            assert torch.allclose(value, learned[1][key], rtol=1e-5, atol=1e-6), (name, key)
        assert (weights(model) - weights(small(tiny))).abs().max() > 1e-3  # and it did train
    one, moved = (Run(Run.folder(name)).metrics for name in ("plain", "moved"))
    assert moved[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=1e-5)

    run = Run(Run.folder("nan-two"))
    said = [(run.path / f"error{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("batch 3 of epoch 1: the loss is nan, first in the output of layer network.stem; lower")
    assert record.bad_batch(run)[1]["drawn_from"] == {"seed": 0, "epoch": 1, "step": 2, "rank": 1}


QUICK = Recipe(height=64, width=32, epochs=2, people=3, images=2, eval_every=1, lr=1e-3)


def to_train(name: str, recipe: Recipe, **setup) -> tuple[torch.nn.Module, Run, Setup]:
    """A model of the zoo, and a run whose parameters say all of it."""
    setup = Setup(cpu=True, **setup)
    params = asdict(recipe) | asdict(setup) | {"model": "osnet_x0_25", "dataset": "synthetic-tiny", "run": name}
    data = reidlib.load_dataset("synthetic-tiny")
    model = reidlib.create_model("osnet_x0_25", num_classes=data.num_classes, input_size=SIZE)
    return model, Run.create(name, params), setup


@pytest.mark.slow
def test_a_notebook_and_torchrun_train_alike(tiny, tmp_path) -> None:
    model, run, setup = to_train("launched", QUICK, num_processes=2)
    heard: list[int] = []
    history = fit(model, tiny, run, QUICK, setup, on_epoch=lambda h: heard.append(len(h)))
    assert heard == [2, 3]
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert run.metrics == history
    weights = load_file(run.path / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())

    params = tmp_path / "mine.json"
    cpu = torch.accelerator.is_available()  # without any GPU nobody has to say so
    params.write_text(json.dumps(run.params | {"run": "by-torchrun", "num_processes": 1, "cpu": cpu}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "reidlib.training", str(params)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("a step sees 3 × 2 images × 2 processes = 12, at a learning rate")
    other = load_file(Run.folder("by-torchrun") / "model.safetensors")
    assert all(torch.equal(value, other[key]) for key, value in weights.items())
    assert timeless(Run(Run.folder("by-torchrun")).metrics) == timeless(history)


def test_a_process_that_dies_ends_the_run_with_its_message_and_the_run_goes_on(tiny) -> None:
    model, run, setup = to_train("dies", replace(QUICK, epochs=300), num_processes=2)
    died: list[float] = []

    def kill_the_second(history) -> None:
        if not died:
            died.append(time.monotonic())
            os.kill(processes_of(psutil.Process())["1"].pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"process 1 of 2 was killed by signal 9 .*resumes from its last epoch"):
        fit(model, tiny, run, replace(QUICK, epochs=300), setup, on_epoch=kill_the_second)
    assert time.monotonic() - died[0] < 60
    assert not processes_of(psutil.Process())
    whole = torch.load(run.path / "last.pt", weights_only=True)
    assert len(whole["history"]) >= 2
    assert run.state["state"] == "failed"
    assert run.state["error"].startswith("RuntimeError: process 1 of 2 was killed by signal 9")
    with run.lock():  # nobody holds it any longer
        pass


NOTEBOOK = """
import sys
sys.path.insert(0, {tests!r})
from test_parallel import QUICK, replace, reidlib, fit, to_train
recipe = replace(QUICK, epochs=300)
model, run, setup = to_train("orphan", recipe, num_processes=2)
fit(model, reidlib.load_dataset("synthetic-tiny"), run, recipe, setup, on_epoch=lambda _: print("epoch", flush=True))
"""


@pytest.mark.slow
def test_processes_end_with_the_notebook_that_started_them(tiny) -> None:
    code = NOTEBOOK.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as notebook:
        assert notebook.stdout.readline() == b"epoch\n", notebook.communicate()[1].decode()
        family = psutil.Process(notebook.pid).children(recursive=True)
        assert {*processes_of(psutil.Process(notebook.pid))} == {"0", "1"}
        notebook.kill()
        _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    run = Run(Run.folder("orphan"))
    assert run.state["state"] == "training"
    with run.lock():
        pass


def processes_of(parent: psutil.Process) -> dict[str, psutil.Process]:
    """The training processes below `parent`, by rank."""
    found = {}
    for child in parent.children(recursive=True):
        try:
            if "RANK" in child.environ() and "reidlib.training" in child.cmdline():
                found[child.environ()["RANK"]] = child
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.mark.slow
def test_a_run_is_resumed_in_other_processes_with_what_is_asked_for_now() -> None:
    """One process becomes two, with the same people in a step; params.json says what the run was resumed with."""
    recipe, data = replace(QUICK, people=4, epochs=2), reidlib.load_dataset("synthetic-tiny")
    model, run, setup = to_train("grows", recipe)
    with pytest.raises(ZeroDivisionError):
        fit(model, data, run, recipe, setup, on_epoch=lambda history: 1 / 0)
    assert len(torch.load(run.path / "last.pt", weights_only=True)["history"]) == 2
    asked = run.params | {"people": 2, "num_processes": 2, "eval_every": 2}
    assert [row["epoch"] for row in run_processes(asked, model, run, 2)] == [0, 1, 2]
    assert {name: run.params[name] for name in ("people", "num_processes", "eval_every")} == {
        "people": 2,
        "num_processes": 2,
        "eval_every": 2,
    }
    assert run.state["state"] == "ended"


@pytest.mark.slow
def test_an_error_of_a_process_is_the_error_of_the_run(tiny) -> None:
    recipe = replace(QUICK, people=9)
    model, run, setup = to_train("too-many", recipe, num_processes=2)
    with pytest.raises(ValueError, match=r"^a batch of 9 people on 2 process\(es\) needs 18 different people[^\n]*$"):
        fit(model, tiny, run, recipe, setup)
    assert run.state["state"] == "failed"
    assert run.state["error"].startswith("ValueError: a batch of 9 people on 2 process(es)")


def test_the_first_failure_is_told() -> None:
    lost = 1, "RuntimeError: Connection closed by peer"
    assert "process 1 of 2 was killed by signal 9" in str(_first_failure({"0": lost, "1": (-9, "Signal 9")}, 2))
    for kind, name in ((OSError, "OSError"), (OSError, "FileNotFoundError"), (ValueError, "UnicodeDecodeError")):
        error = _first_failure({"0": lost, "1": (1, f"{name}: cannot read image a.jpg: it is empty")}, 2)
        assert (type(error), str(error)) == (kind, "cannot read image a.jpg: it is empty")
    ended = -15, "Signal 15 (SIGTERM) received by PID 2"  # by the launcher
    assert "process 0 of 2 failed: RuntimeError: Connection" in str(_first_failure({"0": lost, "1": ended}, 2))


def test_effective_batch_and_learning_rate_are_said() -> None:
    recipe = Recipe(people=8, images=4, accumulate=2, lr=0.01)
    one, four = batch_line(recipe, Setup()), batch_line(recipe, Setup(num_processes=4, scale_lr=True))
    assert one == "a step sees 8 × 4 images × 2 batches = 64, at a learning rate of up to 0.01"
    assert " × 4 processes × 2 batches = 256, at a learning rate of up to 0.04 (0.01 × 4 processes)" in four


def test_a_setup_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        Setup(workers=-1)
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"):
        Setup(num_processes=0)


def test_each_picture_is_extracted_by_one_process(tiny) -> None:
    loaders = [eval_loader(tiny.gallery, CASES_SIZE, rank=rank, world=3) for rank in range(3)]
    shown = [sample for loader in loaders for sample in loader.dataset.samples]
    assert shown == list(tiny.gallery)  # in their order, so that ties are decided as in one process
    assert [len(loader.dataset) for loader in loaders] == [17, 17, 18]
    read = torch.cat([batch.pids for loader in loaders for batch in loader])
    assert read.tolist() == [sample.pid for sample in tiny.gallery]
