"""Pretraining: a folder a class, crops, top-1 and top-5, and a run that training starts from."""

import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

import reidlib
from reidlib.data.folders import ClassDataset, load_classes
from reidlib.data.images import read_image
from reidlib.data.loaders import class_loaders
from reidlib.data.transforms import random_resized_crop
from reidlib.seeds import seeded, torch_generator_for
from reidlib.training import CLASS_RECIPES, Recipe, Setup
from reidlib.training.job import PRETRAIN
from reidlib.training.tasks import classify, pretrain, rank_of
from reidlib.workbook.runs import Run

# The folder


def lay_out(root: Path, *places: str) -> Path:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / place, "JPEG")
    return root


def test_folders_become_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path / "INet", "train/n02/b.JPEG", "train/n02/a.jpg", "train/n01/x.jpeg", "train/.cache/x.jpg",
        "val/n01/v1.JPEG", "val/n02/v2.JPEG", "val/n02/notes.txt",
    )  # fmt: skip
    data = load_classes(str(root))
    assert (data.name, data.classes, data.notes) == ("INet", ("n01", "n02"), ())
    assert [(s.path.relative_to(root).as_posix(), s.pid) for s in data.train] == [
        ("train/n01/x.jpeg", 0), ("train/n02/a.jpg", 1), ("train/n02/b.JPEG", 1),
    ]  # fmt: skip
    assert [(s.path.name, s.pid) for s in data.val] == [("v1.JPEG", 0), ("v2.JPEG", 1)]
    assert data.counts()[0] == {"split": "train", "images": 3, "classes": 2, "fewest": 1, "most": 2}
    moved = root.rename(tmp_path / "elsewhere")
    assert load_classes(str(moved)).fingerprint() == data.fingerprint()
    lay_out(moved, "train/n01/y.jpg")
    assert load_classes(str(moved)).fingerprint() != data.fingerprint()


def test_a_line_of_data_paths_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_paths.yaml").write_text("imagenet: here/ILSVRC\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    lay_out(tmp_path / "here/ILSVRC/CLS-LOC", "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg")
    data = load_classes("imagenet")  # one level below what is named
    assert data.notes == ("found in CLS-LOC/, one level below the folder that data_paths.yaml names",)
    with pytest.raises(ValueError, match=r"unknown dataset of classes .* 'imagnet': did you mean 'imagenet'"):
        load_classes("imagnet")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["train/a/1.jpg"], "for train, val, and one level up and down; found train"),
        (
            ["train/a/1.jpg", "val/1.JPEG", "val/2.JPEG"],
            "val holds 2 images and no folder: sort them into one folder a",
        ),
        (["train/train/a/1.jpg", "val/a/1.jpg"], r"lies directly in .*/train/: train \(but the folder a\)"),
        (["train/a/1.jpg", "train/b/1.gif", "val/a/1.jpg"], r"lies directly in .*/train/: b$"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"], "differ: b in train only and c in val only"),
        (["train/a/1.jpg", "val/a/1.jpg"], "holds one class, a: two are needed"),
    ],
)
def test_folders_laid_out_in_another_way_are_told_apart(tmp_path: Path, places: list[str], said: str) -> None:
    lay_out(tmp_path / "set", *places)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_classes(str(tmp_path / "set"))


@pytest.fixture
def people(tiny) -> ClassDataset:
    """The 12 training people of the smallest drawn set, as classes."""
    return load_classes("synthetic-tiny")


def test_drawn_people_are_classes(people: ClassDataset, tiny) -> None:
    assert len(people.classes) == 12
    assert len(people.train) + len(people.val) == len(tiny.train)
    assert not {s.path.name for s in people.train} & {s.path.name for s in people.val}
    by_name = {s.path.name: s for s in tiny.train}
    assert all(int(people.classes[s.pid]) == by_name[s.path.name].pid for s in (*people.train, *people.val))
    assert load_classes("synthetic-tiny") == people  # made once
    with pytest.raises(ValueError, match="did you mean 'synthetic-tiny'"):
        load_classes("synthetic-tinny")


# Images


@pytest.mark.parametrize(("whole", "size"), [((500, 375), (224, 224)), ((128, 320), (56, 56)), ((300, 300), (96, 48))])
def test_the_centre_is_what_resizing_and_cutting_gives(tmp_path: Path, whole: tuple, size: tuple) -> None:
    y, x = np.mgrid[: whole[1], : whole[0]]
    smooth = np.stack([127 + 120 * np.sin(x / 23), 127 + 120 * np.sin(y / 17), 127 + 120 * np.sin((x + y) / 31)], -1)
    path = tmp_path / "p.png"
    Image.fromarray(smooth.astype(np.uint8)).save(path)
    scale = max(size[0] / whole[1], size[1] / whole[0]) / 0.875
    larger = transforms.Resize((round(whole[1] * scale), round(whole[0] * scale)))(Image.open(path))
    expected = np.asarray(transforms.CenterCrop(size)(larger), np.float32)
    got = read_image(path, size, centre=0.875).permute(1, 2, 0).numpy()
    assert np.abs(got - expected).mean() < 2
    assert got.shape == (*size, 3)


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:900, :1600]
    picture = Image.fromarray(np.stack([127 + 120 * np.sin(x / 90), y / 4, 200 - x / 9], -1).astype(np.uint8))
    picture.save(tmp_path / "p.jpg", quality=95)
    picture.save(tmp_path / "p.png")
    jpg, png = (read_image(tmp_path / f"p.{kind}", (64, 64), centre=0.875).float() for kind in ("jpg", "png"))
    assert (jpg - png).abs().mean() < 2


def test_batches_are_enlarged_for_training_and_whole_for_validation(people: ClassDataset) -> None:
    train, val = class_loaders(people, (64, 32), batch=16)
    shapes = [(batch.images.shape, batch.images.dtype) for batch in train]
    assert shapes == [((16, 3, 90, 45), torch.uint8)] * (len(people.train) // 16)
    seen = list(val)
    assert torch.cat([b.pids for b in seen]).tolist() == [s.pid for s in people.val]
    streamed = class_loaders(people, (64, 32), batch=16, workers=2, cache_gib=0)
    train.sampler.set_epoch(3)
    streamed[0].sampler.set_epoch(3)
    for a, b in zip([*train, *val], [*streamed[0], *streamed[1]], strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.pids, b.pids)
    with pytest.raises(ValueError, match="lower the batch size"):
        class_loaders(people, (64, 32), batch=100)


def test_a_crop_is_a_window_resized(people: ClassDataset) -> None:
    """Bilinear resizing keeps a plane a plane: on two ramps every pixel says from where it was taken."""
    h, w, size = 40, 80, (12, 20)
    ramps = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))  # row and column
    images = torch.cat([ramps, ramps[:1]])[None].repeat(50, 1, 1, 1).to(torch.uint8)
    out = random_resized_crop(images, torch_generator_for(0, "crop"), size)
    assert (out.shape, out.dtype) == ((50, 3, *size), torch.uint8)
    assert torch.equal(out, random_resized_crop(images, torch_generator_for(0, "crop"), size))
    u = torch.rand(4, 50, generator=torch_generator_for(0, "crop")).double()
    shares, aspects = [], []
    for i in range(50):
        share, aspect = 0.08 + 0.92 * u[0, i], 0.75 * (16 / 9) ** u[1, i]
        sides = [min(1.0, math.sqrt(share * aspect)), min(1.0, math.sqrt(share / aspect))]  # of width, of height
        for axis, (whole, count) in enumerate(((w, size[1]), (h, size[0]))):
            start = (1 - sides[axis]) * u[2 + axis, i]
            steps = [whole * (start + sides[axis] * (k + 0.5) / count) - 0.5 for k in range(count)]
            expected = torch.tensor([min(max(float(s), 0.0), whole - 1.0) for s in steps])
            got = out[i, 1, 0] if axis == 0 else out[i, 0, :, 0]
            assert (got - expected).abs().max() <= 0.51
        shares.append(sides[0] * sides[1])
        aspects.append(sides[0] / sides[1])
    assert 0.08 <= min(shares) < 0.2 < 0.8 < max(shares) <= 1
    assert 0.75 <= min(aspects) < 0.8 < 1.2 < max(aspects) <= 1.34


# Scores


@pytest.mark.parametrize(
    "name", ["osnet_x0_25", "mgn_R50_fastreid", "v2018_SqueezeNet", "vit_transreid", "resnet50_abd"]
)
def test_class_scores_are_those_of_eval_mode(name: str) -> None:
    size = (64, 64)
    model = reidlib.create_model(name, num_classes=7, num_cameras=2, input_size=size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    camids = torch.tensor([0, 1])
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            scores = model.scores(images, camids)
            assert torch.equal(scores, model.scores(images, camids))  # no dropout
            alone = model.scores(images[:1], camids[:1])  # no statistics of the batch
        assert scores.shape == (2, 7)
        torch.testing.assert_close(scores[:1], alone, rtol=1e-4, atol=1e-4)
        assert all(module.training == mode for module in model.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_class_scores_of_a_plain_head_are_its_classifier_on_the_feature() -> None:
    model = reidlib.create_model("bagtricks_R50_fastreid", num_classes=7, input_size=(64, 32)).eval()
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.scores(images), model.network.head.classifier(model(images)))
    with pytest.raises(ValueError, match="was built without a classifier: give num_classes"):
        reidlib.create_model("osnet_x0_25", input_size=(64, 32)).scores(images)


def test_top_1_and_top_5_equal_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (400, 12), generator=generator).float()  # many are equal
    scores[3, 4] = float("nan")
    labels = torch.randint(0, 12, (400,), generator=generator)
    labels[3], labels[5] = 4, 0
    scores[5] = float("nan")
    got = rank_of(scores, labels)
    for row, label, rank in zip(scores.tolist(), labels.tolist(), got.tolist(), strict=True):
        order = sorted(range(12), key=lambda c, row=row: (-row[c], c))
        assert rank >= 11 if math.isnan(row[label]) else rank == order.index(label)


# The run

QUICK = Recipe(epochs=3, people=8, images=2, pk=False, eval_every=2, lr=3e-3, augment=("random_flip",))


def build(data: ClassDataset, name: str = "osnet_x0_25") -> torch.nn.Module:
    with seeded(0, "weights"):
        return reidlib.create_model(name, num_classes=len(data.classes), input_size=(64, 32))


def test_pretraining_leaves_a_run_that_training_starts_from(people: ClassDataset, tiny) -> None:
    run = Run.create("pre", {"seed": 0})
    model = build(people)
    history = pretrain(model, people, run, QUICK)
    assert [("top1" in row, "loss" in row) for row in history] == [
        (True, False), (False, True), (True, True), (True, True),
    ]  # fmt: skip
    assert all(0 <= row["top1"] <= row["top5"] <= 1 for row in history if "top1" in row)
    assert run.metrics == history
    assert history[-1]["loss"] < history[1]["loss"]
    about = run.read_json("model.json")
    assert (about["trained_on"], about["classes"]) == (people.name, list(people.classes))
    best = max(history[1:], key=lambda row: row.get("top1", -1))
    _, val = class_loaders(people, model.input_size, batch=5)
    again = classify(run.load_model("cpu"), val)
    assert again == pytest.approx({key: best[key] for key in ("top1", "top5")})
    # The trunk goes on, the classifier of other classes does not.
    net = reidlib.create_model("osnet_x0_25", weights="runs/pre", num_classes=5)
    weights, new = load_file(run.path / "model.safetensors"), net.state_dict()
    same = {key for key, value in weights.items() if torch.equal(value, new[key])}
    assert {key for key in weights if "backbone" in key} <= same
    assert net.num_classes == 5


def test_an_interrupted_pretraining_ends_with_the_same_weights(people: ClassDataset) -> None:
    whole, rest = build(people), build(people)
    pretrain(whole, people, Run.create("whole", {}), QUICK)

    def stop(history: list) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(build(people), people, Run.create("rest", {}), QUICK, on_epoch=stop)
    history = pretrain(rest, people, Run.create("rest", {}), QUICK, Setup(workers=2))
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
    assert all(torch.equal(value, rest.state_dict()[key]) for key, value in whole.state_dict().items())


def test_what_cannot_be_pretrained_is_said_before_anything_is_written(people: ClassDataset) -> None:
    for model, recipe, said in (
        (reidlib.create_model("osnet_x0_25", num_classes=3), QUICK, "has 12 classes, osnet_x0_25 was built for 3"),
        (build(people), replace(QUICK, pk=True), "set pk=False"),
        (build(people), replace(QUICK, people=80), "lower the batch size"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrain(model, people, Run.create("bad", {}), recipe)
    assert not Run.folder("bad").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_share_batches_and_validation(people: ClassDataset) -> None:
    recipe = replace(CLASS_RECIPES["toy"], epochs=1, people=8, height=64, width=32, warmup=0)
    params = asdict(recipe) | {"task": PRETRAIN, "recipe": "toy", "model": "osnet_x0_25", "init": ""}
    params |= {"dataset": "synthetic-tiny", "input_size": [64, 32], "num_processes": 2, "cpu": True}
    model = reidlib.create_model("osnet_x0_25", num_classes=12, input_size=(64, 32))
    run = Run.create("two", params)
    history = pretrain(model, people, run, recipe, Setup(num_processes=2, cpu=True))
    assert [row["epoch"] for row in history] == [0, 1]
    _, val = class_loaders(people, model.input_size, batch=8)
    assert classify(model.eval(), val) == pytest.approx({key: history[1][key] for key in ("top1", "top5")})


# The notebook


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_leaves_its_table_and_is_no_run_to_test(tiny, tmp_path: Path) -> None:
    quick = ["-p", "run", "pre", "-p", "dataset", "synthetic-tiny", "-p", "epochs", "1", "-p", "batch", "16"]
    call = [sys.executable, "-m", "reidlib.batch", "pretrain", *quick]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
    assert "mAP" not in done.stdout
    run = Run(Run.folder("pre"))
    assert run.params["people"] == 16
    result = run.read_json("result.json")
    assert result["init"] == "random"
    assert result["results"]["synthetic-tiny"]["top1"] == run.metrics[-1]["top1"]
    assert not Run.all()  # not what the test notebook is to open by itself
    assert (run.path / "figures" / "classes.png").is_file()
