"""The weights "drawn", which lie in the package: they load, fit their card, and find people whom they never saw."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reidlib
from reidlib.data.drawn.writer import Shot, Studio
from reidlib.data.transforms import random_camera
from reidlib.models import weights
from reidlib.models.weight_files import CheckpointError
from reidlib.training import Job

ROOT = Path(__file__).resolve().parents[1]
KEPT = sorted(path.parent.name for path in weights.DRAWN.glob("*/model.json"))


def card(name: str) -> dict:
    return json.loads((weights.DRAWN / name / "model.json").read_text("utf-8"))


def test_the_package_has_them_and_they_are_small() -> None:
    assert "osnet_x0_25" in KEPT
    assert sum(path.stat().st_size for path in weights.DRAWN.rglob("*")) < 3e6


@pytest.mark.parametrize("name", KEPT)
def test_they_load_whole(name: str) -> None:
    state = load_file(weights.DRAWN / name / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16, torch.int64}
    model = reidlib.create_model(name, weights="drawn")
    assert (model.init, model.input_size, model.report.matched) == ("drawn", (128, 64), len(state))
    assert not model.report.dropped
    assert all("classifier" in key for key in model.report.missing)
    for key, tensor in model.state_dict().items():
        if "classifier" not in key:
            assert torch.equal(tensor, state[key].to(tensor.dtype))


@pytest.mark.parametrize("name", KEPT)
def test_the_card_says_what_they_are(name: str) -> None:
    found = card(name)
    assert found["trained_on"].startswith("synthetic")
    assert "not for a result" in found["note"]
    for dataset, scores in found["scores"].items():
        assert scores["mAP"] > found["untrained"][dataset]["mAP"]
    text = (ROOT / "benchmarks/drawn_weights.md").read_text("utf-8")
    assert all(f"{100 * s['rank1']:.1f} / {100 * s['mAP']:.1f}" in text for s in found["scores"].values())


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "osnet_x0_25"
    folder.mkdir()
    for path in (weights.DRAWN / "osnet_x0_25").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(weights, "DRAWN", tmp_path)
    reidlib.create_model("osnet_x0_25", weights="drawn")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the file of its model\.json"):
        reidlib.create_model("osnet_x0_25", weights="drawn")


def test_other_models_say_how_to_make_them() -> None:
    with pytest.raises(FileNotFoundError, match=r"there are: osnet_x0_25.*make drawn-weights MODELS=osnet_x0_75"):
        reidlib.create_model("osnet_x0_75", weights="drawn")
    with pytest.raises(ValueError, match=r"published are .*drawn"):
        weights.find_weights("osnet_x0_25", "drwn")


def test_a_training_begins_with_them() -> None:
    job = Job.from_params({"model": "osnet_x0_25", "init": "drawn", "dataset": "synthetic-tiny", "recipe": "toy"})
    state = load_file(weights.DRAWN / "osnet_x0_25" / "model.safetensors")
    own = job.model.state_dict()
    assert all(torch.equal(own[key], tensor.to(own[key].dtype)) for key, tensor in state.items())
    assert any("classifier" in key for key in own)


def test_a_run_holds_a_copy_of_them() -> None:
    from reidlib.workbook.runs import Run

    run = Run.open(model="osnet_x0_25", weights="drawn")
    assert run.path.name == "osnet_x0_25-drawn"
    assert run.read_json("model.json")["weights"]["sha256"] == card("osnet_x0_25")["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_they_find_people_whom_they_never_saw(name: str) -> None:
    spec = importlib.util.spec_from_file_location("drawn_weights", ROOT / "benchmarks/drawn_weights.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = reidlib.create_model(name, weights="drawn")
    for dataset in script.UNSEEN:
        assert script.evaluate(model, dataset) == pytest.approx(card(name)["scores"][dataset], abs=0.02)


def test_wild_images_share_nothing_but_the_person() -> None:
    studio = Studio("synthetic_wild", seed=0)
    shots = [Shot("train", 2, camid, number) for camid in (0, 1) for number in (0, 1)]
    images = [studio.draw(shot) for shot in shots]
    assert {image.size for image in images} == {(64, 128)}
    assert len({image.tobytes() for image in images}) == 4
    assert studio.draw(shots[0]).tobytes() == images[0].tobytes()
    assert len({studio.quality(shot) for shot in shots}) > 1
    assert studio.draw(Shot("gallery", 0, 0, 5), (256, 128)).size == (128, 256)


def test_random_camera_changes_every_image_its_own_way() -> None:
    images = torch.randint(60, 200, (1, 3, 32, 16), dtype=torch.uint8).repeat(8, 1, 1, 1)
    changed = random_camera(images, torch.Generator().manual_seed(0))
    again = random_camera(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, again)
    assert len({image.numpy().tobytes() for image in changed}) == 8
    drift = changed.float().mean((2, 3)) - images.float().mean((2, 3))  # (8, 3): exposure and cast
    assert 2 < drift.abs().mean() < 60
