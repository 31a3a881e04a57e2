"""Packed datasets: the same pixels, whatever happened on the way, and never somebody else's."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reidlib.data import packing
from reidlib.data.loaders import ImageSet, eval_loader, read_image, train_loader
from reidlib.data.readers import read_market1501

SIZE = (64, 32)


@pytest.fixture
def data(tiny, tmp_path, monkeypatch):
    """A drawn dataset of this test's own, and an empty place for packs."""
    root = tmp_path / "Market"
    shutil.copytree(tiny.root, root)
    (tmp_path / "data_paths.yaml").write_text(f"market1501: {root}\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    return read_market1501("market1501", root, "here")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ("images.u8", "crc.u64", "index.json")}


def test_a_pack_gives_the_same_batches_and_is_used_by_itself(data):
    plain = list(eval_loader(data.gallery, SIZE, batch_size=7, cache_gib=0))
    assert ImageSet(data.gallery, SIZE).pack is None
    folder = packing.pack(data, SIZE)
    assert folder.parent == packing.packs_root()
    assert (folder / "images.u8").stat().st_size == 162 * 3 * 64 * 32
    for kwargs in ({"cache_gib": 0}, {"cache_gib": 0, "workers": 2}, {}):
        packed = eval_loader(data.gallery, SIZE, batch_size=7, **kwargs)
        assert packed.dataset.pack
        for one, two in zip(plain, packed, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    batch = next(iter(train_loader(data, SIZE, people=4, images=2, cache_gib=0)))
    assert torch.equal(batch.images[3], read_image(data.train[batch.indices[3]].path, SIZE))
    assert ImageSet(data.gallery, (32, 16)).pack is None
    before = contents(folder)
    assert packing.pack(data, SIZE) == folder
    assert contents(folder) == before


def test_a_killed_packing_goes_on_to_the_same_bytes(data, tmp_path):
    whole = contents(packing.pack(data, SIZE))
    shutil.rmtree(packing.packs_root())
    code = f"""
import os, signal
from pathlib import Path
from reidlib.data import packing
from reidlib.data.readers import read_market1501
read, count = packing.read_image, [0]
def dying(*args, **kwargs):
    count[0] += 1
    if count[0] == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args, **kwargs)
packing.read_image = dying
packing.pack(read_market1501("market1501", Path({str(data.root)!r}), "here"), {SIZE})
"""
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL
    (folder,) = packing.packs_root().iterdir()
    assert not (folder / "index.json").exists()
    assert ImageSet(data.query, SIZE).pack is None  # not used before it is whole
    assert np.count_nonzero(np.fromfile(folder / "crc.u64", np.uint64)) == 64
    with (folder / "images.u8").open("rb+") as file:  # a half-written image that was marked all the same
        file.seek(10)
        file.write(b"damage")
    assert contents(packing.pack(data, SIZE)) == whole


def test_damage_is_noticed_when_it_is_read(data):
    folder = packing.pack(data, SIZE)
    with (folder / "images.u8").open("rb+") as file:
        file.seek(5 * 3 * 64 * 32 + 17)
        file.write(b"\x00\xff\x00")
    images = ImageSet(data.train, SIZE, cache_gib=0)
    assert images[[0, 1]].images.shape == (2, 3, 64, 32)
    with pytest.raises(OSError, match="is damaged at image 5: remove that folder and pack again"):
        images[[4, 5]]


def test_a_changed_or_missing_file_is_not_served_from_the_pack(data):
    old = packing.pack(data, SIZE)
    path = data.query[0].path
    stat = path.stat()
    assert ImageSet(data.query, SIZE).pack
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))  # the same size, written again
    assert ImageSet(data.query, SIZE).pack is None
    assert ImageSet(data.gallery, SIZE).pack
    assert packing.pack(data, SIZE) != old
    assert ImageSet(data.query, SIZE).pack
    path.unlink()
    with pytest.raises(OSError, match="does not exist"):
        ImageSet(data.query, SIZE).preload()


def test_too_small_a_disk_and_a_bad_picture_are_one_sentence(data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=900_000))
        with pytest.raises(OSError, match=r"packing needs 0\.0 GiB in .*packed, 0\.0 GiB are free"):
            packing.pack(data, SIZE)
    data.train[3].path.write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify") as caught:
        packing.pack(data, SIZE)
    assert str(data.train[3].path) in str(caught.value)
    assert packing.find_pack(data.query, SIZE) is None


def test_packs_travel_to_loader_processes_without_their_pixels(data):
    packing.pack(data, SIZE)
    found = packing.find_pack(data.gallery, SIZE)
    found.read([0])
    assert len(pickle.dumps(found)) < 5_000
    assert torch.equal(pickle.loads(pickle.dumps(found)).read([3]), found.read([3]))


def test_speed_is_measured_with_and_without(data):
    assert list(packing.reading_speed(data.gallery, SIZE, count=20)) == ["decoded"]
    packing.pack(data, SIZE)
    speed = packing.reading_speed(data.gallery, SIZE, count=40)
    assert list(speed) == ["decoded", "packed"]
    assert speed["packed"] > speed["decoded"] > 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: (folder / "index.json").write_text('{"files": {}}'),
        lambda folder: (folder / "index.json").write_bytes(b"\xff\xfe"),
        lambda folder: os.truncate(folder / "images.u8", 1000),
        lambda folder: (folder / "crc.u64").unlink(),
    ],
)
def test_a_damaged_pack_costs_that_pack_only(data, damage):
    """Another dataset of the same size is read as before, and the pack can be made again."""
    sound = contents(folder := packing.pack(data, SIZE))
    other = replace(data, name="another", train=data.train[:5], query=(), gallery=())
    kept = packing.pack(other, SIZE)
    damage(folder)
    with pytest.warns(UserWarning, match=f"{folder.name} is not used: remove it and pack again"):
        assert packing.find_pack(data.query, SIZE) is None
    assert packing.find_pack(other.train, SIZE).folder == kept
    assert len(next(iter(eval_loader(data.query, SIZE))).pids) == len(data.query)
    shutil.rmtree(folder)
    packing.pack(data, SIZE)
    assert contents(folder) == sound


def test_a_damaged_index_is_written_anew(data):
    sound = contents(folder := packing.pack(data, SIZE))
    (folder / "index.json").write_text('{"size": [64, 32]}')
    assert packing.pack(data, SIZE) == folder
    assert contents(folder) == sound
    assert packing.find_pack(data.query, SIZE)


def test_a_file_of_equal_size_and_time_is_another_file(data):
    packing.pack(data, SIZE)
    path = data.query[0].path
    stat = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes()[::-1])
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(path)
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert packing.find_pack(data.query, SIZE) is None
