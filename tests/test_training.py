"""Losses against plain loops, recipes, and a training run that survives being killed."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reidlib
from reidlib.runs import Run
from reidlib.seeds import seeded
from reidlib.training import Recipe, fit
from reidlib.training.losses import Criterion, batch_hard_triplet, cross_entropy

# Losses


def test_cross_entropy_equals_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64).float()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    total = 0.0
    for row, label in zip(logits.double(), labels, strict=True):
        log_p = row - torch.logsumexp(row, 0)
        total -= sum((0.9 * (c == label) + 0.1 / 5) * log_p[c] for c in range(5))
    assert cross_entropy(logits, labels, 0.1).item() == pytest.approx((total / 6).item(), abs=1e-6)


@pytest.mark.parametrize("margin", [0.3, None])
def test_batch_hard_triplet_equals_a_plain_loop(margin: float | None) -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 0])  # 3 is alone: no triplet
    losses = []
    for i in range(9):
        far = [(x[i] - x[j]).norm().item() for j in range(9) if j != i and labels[j] == labels[i]]
        near = [(x[i] - x[j]).norm().item() for j in range(9) if labels[j] != labels[i]]
        if far:
            gap = max(far) - min(near)
            losses.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    assert len(losses) == 8
    assert batch_hard_triplet(x, labels, margin).item() == pytest.approx(sum(losses) / 8, abs=1e-5)


def test_triplet_has_finite_gradients_where_it_is_hardest() -> None:
    for labels in (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 3])):
        x = torch.ones(4, 3, requires_grad=True)  # all the same point
        batch_hard_triplet(x, labels).backward()
        assert torch.isfinite(x.grad).all()
    assert batch_hard_triplet(torch.randn(4, 3), torch.arange(4)).item() == 0


def test_losses_are_computed_in_float32_under_autocast() -> None:
    x = torch.randn(8, 16, dtype=torch.bfloat16)
    labels = torch.arange(8) // 2
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = Criterion(Recipe(triplet_weight=1.0), torch.nn.Identity())(([x], [x]), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(parts["cross_entropy"].item() + parts["triplet"].item())
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy(x.float(), labels).item(), rel=1e-6)


def test_branches_are_averaged() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 0, 1, 1])
    criterion = Criterion(Recipe(triplet_weight=1.0), torch.nn.Identity())
    both, one, other = (criterion((x, x), labels)[0].item() for x in ([a, b], [a], [b]))
    assert both == pytest.approx((one + other) / 2, rel=1e-5)
    assert "triplet" not in Criterion(Recipe(), torch.nn.Identity())(([a], [a]), labels)[1]


# Recipes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"schedule": "step"}, "did you mean 'steps'"),
        ({"schedule": "steps"}, "needs milestones"),
        ({"schedule": "steps", "milestones": [3, 8]}, "before the last of 8 epochs"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"margin": -1}, "margin must not be negative"),
        ({"smoothing": 1.0}, "smoothing must lie in"),
        ({"pk": False, "triplet_weight": 1.0}, "triplets need PK batches"),
        ({"images": 1, "triplet_weight": 1.0}, "at least 2 people × 2 images"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(**settings)


def test_learning_rates() -> None:
    cosine = Recipe(epochs=10, warmup=2)
    assert cosine.rate(0) == pytest.approx(0.1)
    assert cosine.rate(1) == pytest.approx(0.55 * 0.5 * (1 + math.cos(math.pi / 10)))
    assert cosine.rate(5) == pytest.approx(0.5)
    assert cosine.rate(10) == pytest.approx(0)
    steps = Recipe(epochs=10, schedule="steps", milestones=[4, 8], warmup=0)
    assert [steps.rate(p) for p in (0, 3.9, 4, 8.5)] == pytest.approx([1, 1, 0.1, 0.01])
    assert Recipe.of({"epochs": 3, "lr": 0.1, "model": "no setting"}) == Recipe(epochs=3, lr=0.1)


# The run

QUICK = Recipe(epochs=3, people=4, images=2, eval_every=2, lr=1e-3, triplet_weight=1.0)
SIZE = (64, 32)


def build(data: reidlib.ReIDDataset, name: str = "osnet_x0_25") -> torch.nn.Module:
    with seeded(0, "weights"):
        return reidlib.create_model(name, num_classes=data.num_classes, input_size=SIZE)


def test_fit_leaves_a_whole_run_folder(tiny) -> None:
    run = Run.create("whole", {"seed": 0})
    model = build(tiny)
    heard: list[int] = []
    history = fit(model, tiny, run, QUICK, on_epoch=lambda h: heard.append(len(h)))
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
    assert heard == [2, 3, 4]
    assert [("mAP" in row) for row in history] == [True, False, True, True]
    assert run.metrics == history
    assert history[3]["loss"] < history[1]["loss"]
    about = run.read_json("model.json")
    best = max(history[1:], key=lambda row: row.get("mAP", -1))
    assert about["name"] == "osnet_x0_25"
    assert (about["trained_on"], about["epoch"]) == (tiny.name, best["epoch"])
    weights = load_file(run.path / "model.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert {p.name for p in run.path.iterdir()} == {
        "params.json", "environment.json", "metrics.jsonl", "last.pt", "model.safetensors", "model.json",
    }  # fmt: skip
    environment = run.read_json("environment.json")
    assert environment["seed"] == 0
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or environment["packages"]["torch"]
    # The same folder again: nothing is left to train.
    again = build(tiny)
    assert fit(again, tiny, run, QUICK) == history
    assert all(torch.equal(weights[k], v) for k, v in again.state_dict().items())
    # The model itself is as it was: accelerate leaves nothing behind.
    assert type(model).forward is type(model)(model.network, **_parts(model)).forward.__func__
    assert "forward" not in vars(model)


def _parts(model: torch.nn.Module) -> dict:
    from reidlib.models.architectures import Sizes

    sizes = Sizes(model.num_classes, model.num_cameras, model.input_size)
    return {"name": model.name, "family": model.family, "sizes": sizes, "mean": model.mean, "std": model.std}


SCRIPT = """
import sys, reidlib, torch
sys.path.insert(0, {tests!r})
from test_training import QUICK, build
from reidlib.training import fit
torch.set_num_threads(1)
data = reidlib.load_dataset("synthetic-tiny")
run = reidlib.Run.create(sys.argv[1], {{"seed": 0}})
fit(build(data), data, run, QUICK, on_epoch=lambda h: print(h[-1]["epoch"], flush=True))
"""


def _start(name: str) -> subprocess.Popen:
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )


@pytest.mark.parametrize("pause", [0.0, 0.35])
def test_a_killed_run_ends_with_the_same_weights(tiny, pause: float) -> None:
    whole = _start("uninterrupted")
    killed = _start("killed")
    assert killed.stdout.readline().strip() == "1"
    time.sleep(pause)  # 0: between two epochs; later: somewhere within the second
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (Run.folder("killed") / ".last.pt.part-killed.pt").touch()  # as if it had been killed while it wrote
    rest = _start("killed")
    assert "3" in rest.communicate(timeout=300)[0].split()
    assert rest.returncode == 0
    assert whole.wait(timeout=300) == 0
    one, two = Run(Run.folder("uninterrupted")), Run(Run.folder("killed"))
    a, b = (torch.load(run.path / "last.pt", weights_only=True) for run in (one, two))
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert a["optimizer"]["state"].keys() == b["optimizer"]["state"].keys()
    best = [load_file(run.path / "model.safetensors") for run in (one, two)]
    assert all(torch.equal(v, best[1][k]) for k, v in best[0].items())
    timeless = [[{k: v for k, v in row.items() if "second" not in k} for row in run.metrics] for run in (one, two)]
    assert timeless[0] == timeless[1]
    assert {p.name for p in one.path.iterdir()} == {p.name for p in two.path.iterdir()}  # no half-written leftovers


def test_workers_and_cache_do_not_change_the_result(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module("reidlib.training.fit")  # the package's own name `fit` is the function

    short = replace(QUICK, epochs=1)
    one, two = build(tiny), build(tiny)
    fit(one, tiny, Run.create("cached", {}), short)
    for name in ("train_loader", "eval_loader"):
        original = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *a, original=original, **k: original(*a, **(k | {"cache_gib": 0})))
    fit(two, tiny, Run.create("streamed", {}), short, workers=2)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


def test_other_settings_or_another_model_are_refused_and_nothing_is_lost(tiny) -> None:
    run = Run.create("first", {"seed": 0})
    fit(build(tiny), tiny, run, replace(QUICK, epochs=1, eval_every=1))
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    with pytest.raises(ValueError, match=r"other settings \(epochs 1 → 3; eval_every 1 → 2\): choose another `run`"):
        fit(build(tiny), tiny, Run.create("first", {"seed": 1}), QUICK)
    with pytest.raises(ValueError, match="model osnet_x0_25 → osnet_x0_5"):
        fit(build(tiny, "osnet_x0_5"), tiny, run, replace(QUICK, epochs=1, eval_every=1))
    with pytest.raises(ValueError, match="holds a osnet_x0_25, not a resnet50"):
        run.load_weights(reidlib.create_model("resnet50"))
    assert before == {p.name: p.read_bytes() for p in run.path.iterdir()}


def test_a_loss_that_is_no_number_stops_the_run(tiny) -> None:
    run = Run.create("diverges", {"seed": 0})
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(build(tiny), tiny, run, replace(QUICK, lr=1e30, warmup=0, optimizer="sgd"))
    assert len(run.metrics) >= 1
    assert all(math.isfinite(v) for row in run.metrics for v in row.values())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(tiny, content: bytes) -> None:
    run = Run.create("damaged", {"seed": 0}).begin()
    (run.path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint"):
        fit(build(tiny), tiny, run, QUICK)


def test_unreadable_training_pictures_stop_before_anything_is_written(tiny, tmp_path: Path) -> None:
    bad = tmp_path / "0001_c1s1_000001_00.jpg"
    bad.touch()
    data = replace(tiny, train=(*tiny.train, tiny.train[0]._replace(path=bad)))
    run = Run.create("bad", {"seed": 0})
    with pytest.raises(OSError, match=r"0001_c1s1_000001_00\.jpg: the file is empty"):
        fit(build(data), data, run, QUICK)
    assert not run.path.exists()


def test_metrics_are_json_lines(tiny) -> None:
    run = Run.create("lines", {"seed": 0})
    fit(build(tiny), tiny, run, replace(QUICK, epochs=1))
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
