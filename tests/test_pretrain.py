"""Pretraining: a folder a class, crops, top-1 and top-5, and a run that training starts from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from reidlib.data.folders import ClassDataset, load_classes
from reidlib.data.images import read_image
from reidlib.data.loaders import class_loaders

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
    assert data.counts()[0] == {"split": "train", "pictures": 3, "classes": 2, "fewest": 1, "most": 2}
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
    with pytest.raises(ValueError, match=r"unknown set of classes .* 'imagnet': did you mean 'imagenet'"):
        load_classes("imagnet")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["train/a/1.jpg"], "for train, val, and one level up and down; found train"),
        (
            ["train/a/1.jpg", "val/1.JPEG", "val/2.JPEG"],
            "val holds 2 pictures and no folder: sort them into one folder a",
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
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        load_classes("synthetic-tinny")


# Pictures


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
