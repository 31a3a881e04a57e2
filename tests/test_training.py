"""A training run that survives being killed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reidlib
from reidlib.data import samples
from reidlib.data.readers import read_market1501
from reidlib.seeds import seeded
from reidlib.training import Recipe, fit, record
from reidlib.workbook.runs import Run

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
        "params.json", "environment.json", "metrics.jsonl", "last.pt", "model.safetensors", "model.json", ".lock",
        "run.json",
    }  # fmt: skip
    environment = run.read_json("environment.json")
    assert environment["seed"] == 0
    assert environment["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    # The same folder again: nothing is left to train.
    again = build(tiny)
    assert fit(again, tiny, run, QUICK) == history
    assert all(torch.equal(weights[k], v) for k, v in again.state_dict().items())
    # The model itself is as it was: accelerate leaves nothing behind.
    assert type(model).forward is type(model)(model.network, **_parts(model)).forward.__func__
    assert "forward" not in vars(model)


def test_a_run_is_resumed_with_a_copy_of_the_dataset(tiny, tmp_path, monkeypatch) -> None:
    """On the local disk of another computer: other inodes and times."""
    monkeypatch.setattr(samples, "_HASHED", 0)
    run, recipe = Run.create("first", {"seed": 0}), replace(QUICK, epochs=1, eval_every=1)
    history = fit(build(tiny), tiny, run, recipe)
    shutil.copytree(tiny.root, tmp_path / "local", copy_function=shutil.copyfile)
    copy = read_market1501(tiny.name, tmp_path / "local", "here")
    assert copy.fingerprint() != tiny.fingerprint()
    assert fit(build(copy), copy, run, recipe) == history


def _parts(model: torch.nn.Module) -> dict:
    from reidlib.models.wirings import Sizes

    sizes = Sizes(model.num_classes, model.num_cameras, model.input_size)
    return {"name": model.name, "family": model.family, "sizes": sizes, "mean": model.mean, "std": model.std}


def test_other_settings_or_another_model_are_refused_and_nothing_is_lost(tiny) -> None:
    run = Run.create("first", {"seed": 0})
    fit(build(tiny), tiny, run, replace(QUICK, epochs=1, eval_every=1))
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    with pytest.raises(ValueError, match=r"other settings \(epochs 1 → 3\): choose another `run`"):
        fit(build(tiny), tiny, Run.create("first", {"seed": 1}), QUICK)
    with pytest.raises(ValueError, match="model osnet_x0_25 → osnet_x0_5"):
        fit(build(tiny, "osnet_x0_5"), tiny, run, replace(QUICK, epochs=1, eval_every=1))
    with pytest.raises(ValueError, match="holds a osnet_x0_25, not a resnet50"):
        record.load_weights(run, reidlib.create_model("resnet50"))
    assert before == {p.name: p.read_bytes() for p in run.path.iterdir()}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(tiny, content: bytes) -> None:
    run = Run.create("damaged", {"seed": 0}).begin()
    (run.path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint"):
        fit(build(tiny), tiny, run, QUICK)


def test_unreadable_training_images_stop_before_anything_is_written(tiny, tmp_path: Path) -> None:
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
