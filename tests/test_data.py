"""Paths, readers, samplers, augmentations and loaders."""

import gc
import os
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from reidlib import paths
from reidlib.data import memory, samples, transforms
from reidlib.data.datasets import READERS, list_datasets, load_dataset
from reidlib.data.layouts import LAYOUTS
from reidlib.data.loaders import ImageSet, eval_loader, read_image, train_loader, unreadable_images
from reidlib.data.readers import read_market1501
from reidlib.data.samplers import PKSampler, ShuffledSampler
from reidlib.data.samples import ReIDDataset, Sample
from reidlib.seeds import seeded, torch_generator_for

# Paths


def test_nearest_data_paths_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REID_DATA_PATHS")
    monkeypatch.delenv("REID_RUNS")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert paths.data_paths_file() == paths.REPOSITORY / "data_paths.yaml"
    (tmp_path / "data_paths.yaml").write_text("# none\nmarket1501: ../elsewhere\nduke: ~/duke\n")
    assert paths.data_paths_file() == tmp_path / "data_paths.yaml"
    assert paths.runs_root() == tmp_path / "runs"
    folder, where = paths.data_path("market1501")
    assert folder == tmp_path.parent / "elsewhere"
    assert where.endswith("data_paths.yaml, line 2")
    assert paths.data_path("duke")[0] == Path("~/duke").expanduser()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("market: x\n", "did you mean 'market'"),
        ("market1501: [1]\n", "line 1: expected a line of the form `name: folder`"),
        ("- a\n- b\n", "name: folder"),
        ("just words\n", "name: folder"),
        ("market1501: 'x\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("market1501: x\nduke: y\nmarket1501: z\n", "'market1501' is written twice, in lines 1 and 3: keep one"),
        ("market1501: x\nmy/shop: y\n", "line 2: 'my/shop' cannot be a name: use letters, digits, _ and -"),
        ("a+b: x\n", "line 1: 'a\\+b' cannot be a name"),
        ("..: x\n", "cannot be a name"),
        ("market1501: ~nobody_here/x\n", "line 1: there is no home folder for the ~nobody_here in '~nobody_here/x'"),
        ("market1501: $REID_NOT_SET/x\n", r"line 1: the environment variable in '\$REID_NOT_SET/x' is not set"),
        ("market1501:\n", "line 1: '' is not a path"),
        ('market1501: "a\\0b"\n', "is not a path"),
        ('market1501: "a\\nb"\n', "is not a path"),
        ('{"market1501": "\\ud800"}', "is not a path"),
        ('"market1501\\n": x\n', "cannot be a name"),
        (b"market1501: /d\xe9p\xf4t\n", "is not UTF-8 text: save it as UTF-8"),
    ],
)
def test_bad_data_paths_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, sentence: str
) -> None:
    file = tmp_path / "data_paths.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("REID_DATA_PATHS", str(file))
    with pytest.raises(ValueError, match=sentence) as caught:
        paths.data_path("market1501")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_of_data_paths_are_text_and_their_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data_paths.yaml"
    file.write_text(
        "\ufeff1501: $REID_SCRATCH/a\nyes: ${REID_SCRATCH}/b\n# no: /c\nweights: $REID_SCRATCH/w\n\n'on': 010\n"
    )
    monkeypatch.setenv("REID_DATA_PATHS", str(file))
    monkeypatch.setenv("REID_SCRATCH", str(tmp_path / "scratch"))
    assert list(paths.data_names()) == ["1501", "yes", "on"]
    assert paths.data_path("1501")[0] == tmp_path / "scratch" / "a"
    assert paths.data_path("yes") == (tmp_path / "scratch" / "b", f"{file}, line 2")
    assert paths.data_path("on") == (tmp_path / "010", f"{file}, line 6")
    assert paths.weights_root() == tmp_path / "scratch" / "w"
    monkeypatch.setenv("REID_RUNS", "$REID_SCRATCH/runs")
    assert paths.runs_root() == tmp_path / "scratch" / "runs"
    file.write_text("")
    assert paths.data_names() == {}
    assert paths.weights_root() == tmp_path / "data" / "weights"


def test_named_data_paths_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REID_DATA_PATHS", "/nowhere/data_paths.yaml")
    with pytest.raises(FileNotFoundError, match="REID_DATA_PATHS names /nowhere"):
        paths.data_paths_file()


# Market-1501

NAMES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0007_c3s3_077419_03.jpg", "0002_c2s1_000801_01.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c6s4_002427_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c2s1_000151_01.jpg",
        "0001_c2s1_001976_01.jpg",
        "0003_c5s3_065187_01.jpg",
    ],
}


@pytest.fixture
def market(tmp_path: Path) -> Path:
    root = tmp_path / "Market-1501-v15.09.15"
    for folder, names in NAMES.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "Thumbs.db").write_bytes(b"not an image")
        for name in names:
            Image.new("RGB", (64, 128), (9, 99, 199)).save(root / folder / name)
    return root


def test_market_reader_reads_names_junk_and_distractors(market: Path) -> None:
    data = read_market1501("market1501", market, "here")
    assert [(s.pid, s.camid) for s in data.train] == [(2, 1), (2, 2), (7, 3)]
    assert [(s.pid, s.camid) for s in data.query] == [(1, 1), (3, 6)]
    assert [(s.pid, s.camid) for s in data.gallery] == [(-1, 1), (0, 2), (1, 2), (3, 5)]
    assert data.labels == {2: 0, 7: 1}
    assert (data.num_classes, data.num_cameras) == (2, 5)
    assert data.counts()[2] == {
        "split": "gallery", "images": 4, "people": 2, "cameras": 3, "distractors": 1, "junk": 1,
    }  # fmt: skip


@pytest.mark.parametrize("nesting", [".", "..", "query"])
def test_market_is_found_one_level_up_or_down(market: Path, nesting: str) -> None:
    data = read_market1501("market1501", (market / nesting).resolve(), "here")
    assert data.root == market
    assert len(data.query) == 2


def test_missing_market_says_line_and_folders_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_paths\.yaml, line 3.*bounding_box_train.*does not exist"):
        load_dataset("market1501")
    (tmp_path / "x" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"\(here\) for bounding_box_train, query, .*; found train"):
        read_market1501("market1501", tmp_path / "x", "here")


def test_market_names_that_do_not_parse_are_named(market: Path) -> None:
    shutil.copy(market / "query" / NAMES["query"][0], market / "query" / "person7.jpg")
    with pytest.raises(ValueError, match=r"0002_c1s1_000451_03\.jpg: person7\.jpg"):
        read_market1501("market1501", market, "here")
    for path in (market / "query").glob("*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"query holds no \.jpg or \.png image"):
        read_market1501("market1501", market, "here")


def test_unknown_data_sets_offer_near_names() -> None:
    assert "synthetic_b-tiny" in list_datasets()
    with pytest.raises(ValueError, match="did you mean 'market1501'"):
        load_dataset("market-1501")
    with pytest.raises(ValueError, match="unknown dataset 'synthetic-tyni': did you mean 'synthetic-tiny'"):
        load_dataset("synthetic-tyni")


def test_an_unknown_dataset_lists_what_there_is_and_how_to_use_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data_paths.yaml"
    file.write_text(f"mine: list.CSV\nfolder: {tmp_path}\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(file))
    with pytest.raises(ValueError, match="unknown dataset 'nothing_like_it'") as caught:
        load_dataset("nothing_like_it")
    sentence = str(caught.value)
    names = "market1501-500k", "cuhk03-labelled", "cuhk03-detected-split1 to 20", "mine", "synthetic_b-tiny"
    for name in (*names, "synthetic-clothes-tiny"):
        assert f" {name}," in sentence
    assert f"write `nothing_like_it: list.csv` into {file}, a table of path,pid,camid,split" in sentence
    assert f"and {len(LAYOUTS)} that `python -m reidlib.data` lists" in sentence
    assert len(sentence) < 1100
    with pytest.raises(ValueError, match=r"unknown dataset 'a\\n':.* write `mine: list\.csv` into") as caught:
        load_dataset("a\n")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=rf"folder: {tmp_path} \({file}, line 2\) is no table .*no layout has that name"
    ):
        load_dataset("folder")


def test_the_fingerprint_follows_the_files(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprints() -> list[str]:
        data = read_market1501("m", market, "")
        return [data.fingerprint(), data.fingerprint(files=False)]

    before = fingerprints()
    assert before == fingerprints()
    path = market / "query" / NAMES["query"][0]
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[::-1])  # of equal size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    replaced = fingerprints()
    assert replaced[0] != before[0]
    assert replaced[1] == before[1]
    path.write_bytes(content)
    assert fingerprints() == before
    copy = market.with_name("copy") / "M"  # on another computer
    shutil.copytree(market, copy)
    assert read_market1501("m", copy, "").fingerprint() == before[0]
    monkeypatch.setattr(samples, "_HASHED", 100)  # a dataset that is too large to be read for this
    large = fingerprints()
    assert large[0] != before[0]
    assert large == fingerprints()
    other = path.with_suffix(".new")
    other.write_bytes(content)  # another inode, and nothing else
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert fingerprints()[0] != large[0]
    assert fingerprints()[1] == before[1]
    path.rename(market / "query" / "0001_c2s1_001051_00.jpg")
    assert fingerprints()[1] != before[1]


def test_a_drawn_dataset_is_one_dataset(tiny) -> None:
    """Whatever size it is read at: the same files, with the same fingerprint."""
    again = load_dataset("synthetic-tiny")
    assert again == tiny
    assert again.fingerprint() == tiny.fingerprint()
    with Image.open(tiny.train[0].path) as image:
        assert image.size == (64, 128)
    images = [next(iter(eval_loader(tiny.query, size))).images for size in ((256, 128), (160, 64))]
    assert [i.shape[2:] for i in images] == [(256, 128), (160, 64)]


def test_a_reader_of_ones_own_is_an_entry(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_mine(name: str, path: Path, where: str) -> ReIDDataset:
        return replace(tiny, name=name, notes=(str(path), where))

    monkeypatch.setitem(READERS, "mine", read_mine)
    monkeypatch.setitem(READERS, "mine-odd", read_mine)
    file = tmp_path / "data_paths.yaml"
    file.write_text("mine: here\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(file))
    for name in ("mine", "mine-odd"):
        assert name in list_datasets()
        assert load_dataset(name).notes == (str(tmp_path / "here"), f"{file}, line 1")
    monkeypatch.delitem(READERS, "mine")
    with pytest.raises(ValueError, match=r"mine: .* no layout has that name"):
        load_dataset("mine")


def test_what_macos_leaves_is_not_an_image(market: Path) -> None:
    before = read_market1501("m", market, "here")
    for folder in NAMES:
        (market / folder / f"._{NAMES[folder][0]}").write_bytes(b"\0\5\x16\7")
        (market / folder / ".DS_Store").touch()
    assert read_market1501("m", market, "here") == before
    shutil.copytree(market, market.parent / "unpacked" / "inner")
    shutil.copytree(market, market.parent / "unpacked" / "__MACOSX")
    assert read_market1501("m", market.parent / "unpacked", "here").root.name == "inner"


def test_file_names_of_any_bytes_are_names(market: Path) -> None:
    """Old archives hold names that are not UTF-8, and some a line break."""
    (market / "query" / os.fsdecode(b"0003_c1s1_000001_00_caf\xe9\n.jpg")).write_bytes(b"")
    data = read_market1501("m", market, "here")
    assert len(data.query) == 3
    assert data.fingerprint() != data.fingerprint(files=False)
    (sentence,) = unreadable_images(data.query)
    assert sentence.encode()
    assert "caf\\udce9\\n.jpg': the file is empty" in sentence
    (market / "query" / os.fsdecode(b"\xe9\n.jpg")).touch()
    with pytest.raises(ValueError, match=r"not of the form 0002_c1s1_000451_03.jpg: '\\udce9\\n.jpg'$"):
        read_market1501("m", market, "here")


@pytest.mark.parametrize("pid", ["-2", "9" * 10, "1" * 30, "9" * 5000])
def test_numbers_that_no_tensor_holds_are_named(market: Path, pid: str) -> None:
    name = f"{pid[:200]}_c1s1_000451_03.jpg"
    Image.new("RGB", (8, 16)).save(market / "query" / name)
    with pytest.raises(ValueError, match=rf"query holds names not of the form 0002_c1s1_000451_03\.jpg: {name}"):
        read_market1501("m", market, "here")


@pytest.mark.parametrize(("name", "advice"), [("Market.zip", "unpack it and name the folder"), ("a.jpg", "lies in")])
def test_a_line_that_names_a_file_says_so(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=rf"{name} \(here\) is a file, not a folder: .*{advice}"):
        read_market1501("market1501", tmp_path / name, "here")


# Samplers

LABELS = [0] * 5 + [1] * 2 + [2] * 9 + [3] * 4 + [4] * 1 + [5] * 7


def test_pk_batches_hold_p_people_with_k_images() -> None:
    sampler = PKSampler(LABELS, 3, 4)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(LABELS) // 12
        for batch in batches:
            counts = Counter(LABELS[i] for i in batch)
            assert len(counts) == 3
            assert set(counts.values()) == {4}


def test_pk_shows_every_person_alike_and_does_not_repeat_images_needlessly() -> None:
    labels = [p for p in range(10) for _ in range(8)]
    sampler = PKSampler(labels, 5, 4)  # 4 batches: each person twice, each of its 8 images once
    seen = Counter(i for batch in sampler for i in batch)
    assert set(seen) == set(range(80))
    assert set(seen.values()) == {1}


def test_pk_is_a_function_of_seed_and_epoch() -> None:
    one, two = PKSampler(LABELS, 2, 2, seed=3), PKSampler(LABELS, 2, 2, seed=3)
    two.set_epoch(5)
    assert list(one) != list(two)
    one.set_epoch(5)
    assert list(one) == list(two)
    assert list(PKSampler(LABELS, 2, 2, seed=4)) != list(PKSampler(LABELS, 2, 2, seed=3))


def test_processes_share_people_without_repeating_any() -> None:
    shares = [list(PKSampler(LABELS, 2, 3, rank=rank, world=3)) for rank in range(3)]
    for batches in zip(*shares, strict=True):
        people = [{LABELS[i] for i in batch} for batch in batches]
        assert all(len(p) == 2 for p in people)
        assert len(set.union(*people)) == 6


@pytest.mark.parametrize("people", [7, 100])
def test_pk_needs_enough_people(people: int) -> None:
    with pytest.raises(ValueError, match=f"needs {people} different people, the training set has 6"):
        PKSampler(LABELS, people, 2)


def test_shuffled_batches_cover_the_set_once() -> None:
    shares = [list(ShuffledSampler(25, 4, rank=rank, world=3)) for rank in range(3)]
    seen = [i for share in shares for batch in share for i in batch]
    assert len(seen) == len(set(seen)) == 24
    with pytest.raises(ValueError, match="lower the batch size"):
        ShuffledSampler(5, 4, world=2)


# Augmentations


def draws(name: str, images: torch.Tensor, **kwargs: float) -> torch.Tensor:
    return transforms.AUGMENTATIONS[name](images, torch_generator_for(1, name), **kwargs)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (40, 3, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", transforms.AUGMENTATIONS)
def test_augmentations_keep_shape_and_dtype_and_repeat(name: str, images: torch.Tensor) -> None:
    before = images.clone()
    out = draws(name, images)
    assert (out.shape, out.dtype) == (images.shape, images.dtype)
    assert torch.equal(out, draws(name, images))
    assert not torch.equal(out, images)
    assert torch.equal(images, before)
    # An image's fate does not hang on what shares its batch's memory layout.
    assert torch.equal(out, draws(name, images.to(memory_format=torch.channels_last)))


def test_flip_mirrors_about_half(images: torch.Tensor) -> None:
    out = draws("random_flip", images)
    flipped = [torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True)]
    kept = [torch.equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(f or k for f, k in zip(flipped, kept, strict=True))
    assert 10 <= sum(flipped) <= 30


def test_crop_is_a_window_of_the_padded_image(images: torch.Tensor) -> None:
    out = draws("pad_crop", images, padding=0.2)
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    places = []
    for i, o in enumerate(out):
        places.append(
            [(y, x) for y in range(7) for x in range(7) if torch.equal(padded[i, :, y : y + 32, x : x + 16], o)]
        )
    assert all(len(p) == 1 for p in places)
    assert {p[0][0] for p in places} >= {0, 6}  # both ends are drawn


def test_crop_of_the_enlarged_image(images: torch.Tensor) -> None:
    out = draws("random_crop", images, p=1.0)
    larger = torch.nn.functional.interpolate(images.float(), (36, 18), mode="bilinear").round().to(torch.uint8)
    places = [
        [(y, x) for y in range(5) for x in range(3) if torch.equal(larger[i, :, y : y + 32, x : x + 16], o)]
        for i, o in enumerate(out)
    ]
    assert all(len(p) == 1 for p in places)
    assert {p[0][0] for p in places} == set(range(5))
    assert {p[0][1] for p in places} == set(range(3))


@pytest.mark.parametrize("name", transforms.AUGMENTATIONS)
def test_a_probability_is_kept_and_torch_left_alone(name: str, images: torch.Tensor) -> None:
    state = torch.random.get_rng_state()
    for p, low, high in ((0.0, 0, 0), (0.3, 3, 21), (1.0, 25, 40)):
        augment = transforms.build_augmentation([f"{name}={p}"])
        changed = (augment(images, torch_generator_for(1, name)) != images).flatten(1).any(1).sum()
        assert low <= changed <= high
    assert torch.equal(state, torch.random.get_rng_state())


def test_noise_covers_what_is_erased_by_pixels() -> None:
    grey = torch.full((30, 3, 32, 16), 100, dtype=torch.uint8)
    out = draws("pixel_erasing", grey, p=1.0)
    covered = (out != 100).any(1)
    assert 0.01 <= covered.float().mean() <= 0.34
    noise = out.permute(0, 2, 3, 1)[covered].float()
    assert noise.mean() == pytest.approx(127.5, abs=5)
    assert 80 < noise.std() < 110  # a normal of deviation 127.5, clamped to what an image can hold


def test_erasing_covers_a_rectangle_of_the_asked_area(images: torch.Tensor) -> None:
    out = draws("random_erasing", images, p=1.0)
    mean = torch.tensor(transforms._IMAGENET_MEAN, dtype=torch.uint8).view(3, 1, 1)
    for o, i in zip(out, images, strict=True):
        covered = (o == mean).all(0) & ~(i == mean).all(0)
        rows, cols = covered.any(1).nonzero(), covered.any(0).nonzero()
        box = (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1)
        assert covered.sum() >= 0.95 * box
        assert 0.01 <= box / (32 * 16) <= 0.42
        assert torch.equal(o[:, ~covered], i[:, ~covered])


def test_jitter_changes_brightness_within_bounds() -> None:
    grey = torch.full((50, 3, 8, 4), 100, dtype=torch.uint8)
    out = draws("color_jitter", grey, brightness=0.2, contrast=0.5, saturation=0.5).float()
    assert out.std((1, 2, 3)).max() == 0  # contrast and saturation leave a plain grey as it is
    assert out.min() >= 80
    assert out.max() <= 120
    assert out.mean((1, 2, 3)).std() > 5


def test_jitter_is_what_torchreid_does_to_a_pil_image(images: torch.Tensor) -> None:
    """Clamped after each step; a step rounds by itself, hence the 2."""
    strengths = {"brightness": 0.5, "contrast": 0.4, "saturation": 0.3}
    out = draws("color_jitter", images, **strengths)
    factors = 2 * torch.rand(3, len(images), generator=torch_generator_for(1, "color_jitter")) - 1
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i, image in enumerate(images):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        for enhance, strength, factor in zip(enhancers, strengths.values(), factors[:, i].tolist(), strict=True):
            pil = enhance(pil).enhance(1 + strength * factor)
        wanted = torch.from_numpy(np.array(pil)).permute(2, 0, 1)
        assert (out[i].int() - wanted.int()).abs().max() <= 2


def test_windows_and_rectangles_equal_plain_indexing(images: torch.Tensor) -> None:
    """The draws, and one slice after the other."""
    out = draws("pad_crop", images, padding=0.2)
    rng = torch_generator_for(1, "pad_crop")
    tops, lefts = (torch.randint(0, 7, (40, 1), generator=rng).flatten().tolist() for _ in range(2))
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    plain = [padded[i, :, y : y + 32, x : x + 16] for i, (y, x) in enumerate(zip(tops, lefts, strict=True))]
    assert torch.equal(out, torch.stack(plain))
    out, plain = draws("random_erasing", images, p=0.7), images.clone()
    u = torch.rand(5, 40, generator=torch_generator_for(1, "random_erasing"))
    for i in range(40):
        size, aspect = 32 * 16 * (0.02 + 0.38 * u[1, i]), 0.3 * (1 / 0.09) ** u[2, i]
        h = min(max(round(float((size * aspect).sqrt())), 1), 32)
        w = min(max(round(float((size / aspect).sqrt())), 1), 16)
        y, x = int(u[3, i] * (32 - h + 1)), int(u[4, i] * (16 - w + 1))
        if u[0, i] < 0.7:
            plain[i, :, y : y + h, x : x + w] = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    assert torch.equal(out, plain)


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'random_flip'"):
        transforms.build_augmentation(["randomflip"])
    for text in ("random_flip=2", "random_flip=often"):
        with pytest.raises(ValueError, match=f"'{text}': after the = stands a probability"):
            transforms.build_augmentation([text])


# Loaders


def test_read_image_resizes_and_names_what_it_cannot_read(market: Path, tmp_path: Path) -> None:
    path = market / "query" / NAMES["query"][0]
    image = read_image(path, (256, 128))
    assert (image.shape, image.dtype) == ((3, 256, 128), torch.uint8)
    assert (image.float().mean((1, 2)) - torch.tensor([9.0, 99, 199])).abs().max() < 4
    grey = tmp_path / "grey.png"
    Image.new("L", (64, 128), 77).save(grey)
    assert read_image(grey, (128, 64)).unique().tolist() == [77]
    empty, cut, text = tmp_path / "empty.jpg", tmp_path / "cut.jpg", tmp_path / "text.jpg"
    empty.touch()
    cut.write_bytes(path.read_bytes()[:300])
    text.write_text("<html>404</html>")
    gone = tmp_path / "gone.jpg"
    for bad, why in ((empty, "is empty"), (cut, "(?i)truncated"), (text, "cannot identify"), (gone, "not exist")):
        with pytest.raises(OSError, match=why) as caught:
            read_image(bad, (128, 64))
        assert str(bad) in str(caught.value)
    bad = unreadable_images([Sample(p, 1, 1) for p in (path, empty, text, grey)])
    assert [str(p) in sentence for p, sentence in zip((empty, text), bad, strict=True)] == [True, True]


def test_unreadable_images_are_counted_and_named(tmp_path: Path) -> None:
    listed = []
    for i in range(8):
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(b"" if i % 2 else b"x")
        listed.append(Sample(path, 1, 1))
    with pytest.raises(OSError, match=r"8 of 8 images cannot be read: .*0\.jpg: .*; and 5 more"):
        ImageSet(listed, (8, 4)).preload()
    with pytest.raises(OSError, match=r"1\.jpg: the file is empty \(1 of 1 images\)"):
        ImageSet(listed[1:2], (8, 4)).preload()


def test_a_set_too_large_for_memory_is_checked_before_training(tiny, tmp_path: Path) -> None:
    bad = tmp_path / "0001_c1s1_000001_00.jpg"
    bad.touch()
    data = replace(tiny, train=(*tiny.train, tiny.train[0]._replace(path=bad)))
    with pytest.raises(OSError, match=rf"_00\.jpg: the file is empty \(1 of {len(data.train)} images\)"):
        train_loader(data, (64, 32), people=4, images=2, cache_gib=0)


def test_loaders_give_the_same_with_and_without_cache_and_workers(tiny) -> None:
    size = (64, 32)
    cached = list(eval_loader(tiny.gallery, size, batch_size=7))
    streamed = list(eval_loader(tiny.gallery, size, batch_size=7, cache_gib=0, workers=2))
    assert sum(len(b.pids) for b in cached) == len(tiny.gallery)
    for one, two in zip(cached, streamed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.cat([b.pids for b in cached]).tolist() == [s.pid for s in tiny.gallery]
    assert torch.cat([b.camids for b in cached]).tolist() == [s.camid for s in tiny.gallery]
    assert torch.equal(cached[0].images[3], read_image(tiny.gallery[3].path, size))


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch):
    """Says how many bytes are free."""
    gc.collect()  # what earlier tests cached
    return lambda nbytes: monkeypatch.setattr(memory, "available_memory", lambda: nbytes)


def test_splits_and_processes_share_one_budget(tiny, free_memory) -> None:
    size, image = (64, 32), 3 * 64 * 32
    free_memory(2**40)
    splits = (tiny.train, tiny.query, tiny.gallery)
    gib = (90 + 20) * image / 2**30
    kept = [ImageSet(split, size, cache_gib=gib).preload() for split in splits[:2]]
    assert [images.in_memory for images in kept] == [True, True]
    with pytest.warns(UserWarning, match=r"52 images of 64 × 32 are decoded anew each time: .* in each of 1 processes"):
        assert not ImageSet(tiny.gallery, size, cache_gib=gib).preload().in_memory
    del kept  # what nobody uses any more makes room
    assert ImageSet(tiny.gallery, size, cache_gib=gib).preload().in_memory
    with pytest.warns(UserWarning, match="in each of 2 processes"):
        assert not ImageSet(tiny.train, size, cache_gib=gib, world=2).preload().in_memory
    loader = train_loader(tiny, size, people=2, images=2, cache_gib=2 * gib, world=2)
    assert loader.dataset.in_memory


def test_half_of_the_free_memory_is_left(tiny, free_memory, monkeypatch: pytest.MonkeyPatch) -> None:
    size, nbytes = (64, 32), 90 * 3 * 64 * 32
    for free, world, local, fits in (
        (2 * nbytes, 1, None, True),
        (2 * nbytes - 2, 1, None, False),
        (2 * nbytes, 2, None, False),
        (4 * nbytes, 2, None, True),
        (2 * nbytes, 16, "1", True),  # sixteen computers
    ):
        free_memory(free)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if local:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert ImageSet(tiny.train, size, world=world).preload().in_memory is fits


@pytest.mark.parametrize(
    ("groups", "names"),
    [("0::/slurm/job/step\n", ("memory.max", "memory.current")),
     ("4:memory:/job/step\n0::/\n", ("memory.limit_in_bytes", "memory.usage_in_bytes"))],
)  # fmt: skip
def test_the_memory_of_a_container_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups, names) -> None:
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **k: groups if str(self) == "/proc/self/cgroup" else read(self, *a, **k)
    )
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    free = memory.available_memory()
    assert free > 2**20
    level = tmp_path / ("memory/job" if "memory" in groups else "slurm/job")  # the job has a limit, its step none
    (level / "step").mkdir(parents=True)
    (level / "step" / names[0]).write_text("max\n")
    for name, text in zip(
        (*names, "memory.stat"), ("900000\n", "500000\n", "anon 5\ninactive_file 200000\n"), strict=True
    ):
        (level / name).write_text(text)
    assert memory.available_memory() == 600_000


def test_train_loader_gives_labels_and_follows_the_epoch(tiny) -> None:
    loader = train_loader(tiny, (64, 32), people=4, images=2)
    first = next(iter(loader))
    assert first.images.shape == (8, 3, 64, 32)
    assert [tiny.labels[tiny.train[i].pid] for i in first.indices] == first.pids.tolist()
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader)).indices, first.indices)
    with pytest.raises(ValueError, match="lower `people`"):
        train_loader(tiny, (64, 32), people=1000, images=2)


def test_seeded_leaves_torch_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1, "weights"):
        one = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1, "weights"):
        assert torch.equal(torch.rand(3), one)
    with seeded(1, "dropout"):
        assert not torch.equal(torch.rand(3), one)


def test_arrays_are_not_shared_with_the_cache(tiny) -> None:
    images = ImageSet(tiny.query, (64, 32)).preload()
    batch = images[[0, 1]]
    batch.images.zero_()
    assert images[[0]].images.float().mean() > np.float32(1)
