"""The drawn dataset: its tree, that it never changes by itself, and that it can be evaluated."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from reidlib.data.drawn.people import Dice, Sprite
from reidlib.data.drawn.scenes import SCENE, draw_obstacle, draw_scene
from reidlib.data.drawn.writer import MARKET, SETTINGS, SIZES, Shot, Size, Studio, market_name, write_synthetic

PIXELS = "c4b1e9bcf888b24634dc8dbf6bfbc9bff7ed0ffa2a94c98a82c7d29e5045b45d"
SCENES = "3836f636eb29c4c6a6441f77c2074bbcc849ed854ff87273d763d9a4549127c7"
NAME = re.compile(r"(-1|\d{4})_c([1-6])s1_\d{6}_\d{2}\.jpg")
TINY = {"bounding_box_train": 90, "query": 20, "bounding_box_test": 52}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data"), size="tiny")


@pytest.fixture(scope="module")
def studio():
    return Studio()


def names(folder):
    return {split: sorted(path.name for path in (folder / split).iterdir()) for split in MARKET.values()}


def read(name):
    pid, camid = NAME.fullmatch(name).groups()
    return int(pid), int(camid)


def digest(images):
    whole = hashlib.sha256()
    for picture in images:
        whole.update(np.asarray(picture).tobytes())
    return whole.hexdigest()


def test_tree_has_the_counts_and_names_of_market(tree):
    found = names(tree)
    assert {split: len(files) for split, files in found.items()} == TINY
    assert json.loads((tree / "synthetic.json").read_text())["images"] == TINY
    train, query, gallery = ([read(name) for name in found[split]] for split in MARKET.values())
    assert min(pid for pid, _ in train + query) > 0
    assert Counter(pid for pid, _ in gallery if pid < 1) == {0: SIZES["tiny"].distractors, -1: SIZES["tiny"].junk}
    assert len({pid for pid, _ in train}) == SIZES["tiny"].train
    assert not {pid for pid, _ in train} & {pid for pid, _ in query + gallery}
    for path in [*tree.rglob("*.jpg")][::10]:
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", SIZES)
def test_every_query_can_be_matched(name, size):
    shots = list(Studio(name).shots(SIZES[size]))
    assert len({(MARKET[shot.split], market_name(shot)) for shot in shots}) == len(shots)
    query = [(s.pid, s.camid) for s in shots if s.split == "query"]
    gallery_cameras = defaultdict(set)
    for shot in shots:
        if shot.split == "gallery" and shot.pid > 0:
            gallery_cameras[shot.pid].add(shot.camid)
    assert len(set(query)) == len(query)
    assert {pid for pid, _ in query} == set(gallery_cameras) == set(range(1, 2 * SIZES[size].test, 2))
    assert all((gallery_cameras[pid] - {camid}) for pid, camid in query)


def test_same_seed_same_bytes_other_seed_other_images(tree, tmp_path):
    again = write_synthetic(tmp_path, size="tiny")
    assert names(again) == names(tree)
    for path in tree.rglob("*.jpg"):
        assert path.read_bytes() == (again / path.relative_to(tree)).read_bytes()
    shot = Shot("train", 2, 0, 0)
    images = [Studio(name, seed).draw(shot).tobytes() for name in SETTINGS for seed in (0, 1)]
    assert len(set(images)) == 2 * len(SETTINGS)


def test_pixels_are_the_same_on_any_machine(studio, tree):
    """The arithmetic is in whole numbers, so the images are pinned. Whoever changes them counts FORMAT up."""
    shots = [shot for shot in studio.shots(SIZES["tiny"]) if shot.number == 0]
    assert digest(studio.draw(shot) for shot in shots) == PIXELS
    scenes = sorted({word.partition("*")[0] for s in SETTINGS.values() for c in s.cameras for word in c.scenes.split()})
    assert digest(draw_scene(kind, Dice(7)) for kind in scenes) == SCENES
    # JPEG is another library's: its pixels need only be near what was drawn.
    for shot in shots[::12]:
        with Image.open(tree / MARKET[shot.split] / market_name(shot)) as image:
            difference = np.abs(np.asarray(image).astype(int) - np.asarray(studio.draw(shot)))
        assert 0 < difference.mean() < 10


def test_a_picture_depends_on_nothing_but_its_shot(studio):
    """Neither on the size of the dataset, nor on what was drawn before."""
    tiny = {shot for shot in studio.shots(SIZES["tiny"]) if shot.pid > 0}
    many = set(studio.shots(SIZES["tiny"]._replace(train=40, test=30, distractors=90, shots=5)))
    assert tiny <= many
    assert studio.draw(Shot("train", 4, 1, 1)).tobytes() == Studio().draw(Shot("train", 4, 1, 1)).tobytes()


def test_people_last_and_poses_pass(studio):
    assert studio.person(3) == Studio().person(3) != studio.person(5)
    assert len({studio.person(pid) for pid in range(1, 3001)}) == 3000
    shots = [studio.draw(Shot("train", 2, 0, number)).tobytes() for number in range(3)]
    assert len(set(shots)) == 3


def test_sizes_show_the_same_picture(studio):
    for pid in (2, 6):
        small, large = (studio.draw(Shot("train", pid, 1, 0), size) for size in ((128, 64), (256, 128)))
        assert (small.size, large.size) == ((64, 128), (128, 256))
        reduced = np.asarray(large.reduce(2)).astype(int)
        assert np.abs(reduced - np.asarray(small)).mean() < 6


def test_a_complete_tree_is_reused_and_a_damaged_one_redrawn(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", Size(train=2, test=2, cameras=2, shots=2, distractors=1, junk=1))
    folder = write_synthetic(tmp_path, size="tiny")
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_synthetic(tmp_path, size="tiny") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    next((folder / "query").iterdir()).unlink()
    write_synthetic(tmp_path, size="tiny")
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {path.relative_to(folder) for path in stamps}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    taken = []

    def interrupted(studio, shot):
        taken.append(shot)
        if len(taken) == 20:
            raise KeyboardInterrupt
        return Image.new("RGB", (16, 32))

    monkeypatch.setattr(Studio, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, size="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_looks_complete(tmp_path):
    code = f"from reidlib.data.drawn.writer import write_synthetic; write_synthetic({str(tmp_path)!r}, size='medium')"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not any(tmp_path.glob(".*/bounding_box_train/*.jpg")):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_bad_input_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"unknown synthetic setting 'sintetic'.*'synthetic'"):
        write_synthetic(tmp_path, "sintetic")
    with pytest.raises(ValueError, match=r"unknown synthetic size 'smal'.*'small'"):
        write_synthetic(tmp_path, size="smal")
    with pytest.raises(ValueError, match="seed -1 is negative"):
        write_synthetic(tmp_path, seed=-1)
    in_the_way = tmp_path / "synthetic-tiny-0-128x64"
    in_the_way.mkdir()
    (in_the_way / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no synthetic\.json"):
        write_synthetic(tmp_path, size="tiny")
    assert (in_the_way / "thesis.txt").read_text() == "mine"


def test_dice():
    dice = Dice(1, 2)
    words = Counter(dice.pick("a*3 b") for _ in range(4000))
    assert set(words) == {"a", "b"}
    assert 2.5 < words["a"] / words["b"] < 3.6
    assert {dice.between(-1, 1) for _ in range(100)} == {-1, 0, 1}
    assert Dice(1, 2).bytes(3, 5).tolist() == Dice(1, 2).bytes(15).reshape(3, 5).tolist()


def test_a_hull_is_the_convex_hull_of_its_discs():
    """Against a plain loop: a pixel inside the hull's circumscribed polygon and nothing far outside is filled."""
    sprite = Sprite(120, 100)
    material = sprite.material((200, 100, 50))
    discs = [(30, 30, 12), (70, 90, 8)]
    sprite.hull(discs, material)
    (ax, ay, ar), (bx, by, br) = discs
    for y in range(120):
        for x in range(100):
            t = np.clip(np.arange(0, 1.001, 0.01), 0, 1)
            gap = (np.hypot(ax + t * (bx - ax) - x, ay + t * (by - ay) - y) - (ar + t * (br - ar))).min()
            if gap < -0.5:
                assert sprite.index[y, x] in (material, material + 2)
            if gap > 4:  # 15 directions a side: the polygon stands a little off the round hull
                assert sprite.index[y, x] == 0
    sprite.hull([(-50, -50, 9)], material)  # out of the image: nothing to draw
    sprite.hull([(300, 20, 9)], material)


def test_scenes_and_obstacles_fill_the_palette_only(studio):
    assert draw_scene("shop", Dice(3)).shape == (*SCENE, 3)
    for number in range(20):
        sprite = Sprite()
        draw_obstacle(sprite, Dice(number))
        assert np.count_nonzero(sprite.index) > 0
        assert sprite.index.max() < len(sprite.colours)
