"""What the check finds: every kind of damage, planted one at a time and all at once, and nothing in a sound set."""

import json
import os
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidlib.data import check
from reidlib.data.datasets import merge
from reidlib.data.readers import read_dukemtmcreid, read_market1501
from reidlib.data.samples import SPLITS, ReIDDataset, Sample
from reidlib.plots import image_counts, image_sizes, pair_sheet, score_matrix


def verdicts(findings):
    return {f.question: f.verdict for f in findings if f.verdict != check.FINE}


def found(findings, question):
    (finding,) = (f for f in findings if question in f.question)
    return finding.found


@pytest.fixture
def damaged(tiny, tmp_path):
    """A copy of the drawn dataset to damage: its folder, and how to read it again."""
    root = tmp_path / "Market"
    shutil.copytree(tiny.root, root)
    return root, lambda: read_market1501("mine", root, "here")


def test_a_sound_set_has_no_finding(tiny):
    scan = check.scan_images(tiny)
    assert not verdicts(check.check_dataset(tiny, scan))
    assert len(check.check_dataset(tiny)) == 9
    assert len(check.check_dataset(tiny, scan)) == 15
    assert set(map(tuple, scan.sizes)) == {(128, 64)}
    check.stop_if_unsound(check.check_dataset(tiny))


def test_everything_planted_is_found_and_named(damaged):
    root, read = damaged
    train, query, gallery = (root / name for name in ("bounding_box_train", "query", "bounding_box_test"))
    sound = read()
    shot = sound.train[0].path
    one, two, three = sound.gallery[-1].path, sound.gallery[-4].path, sound.gallery[-8].path
    shutil.copy(one, train / "0002_c2s1_999999_01.jpg")  # the same bytes in train and test
    with Image.open(two) as image:  # the same shot in another format, in train and test
        image.resize((32, 64)).save(train / "0004_c1s1_999999_01.jpg", quality=60)
    shutil.copy(three, gallery / "0003_c1s1_999999_01.jpg")  # one image, two people
    person = sound.query[0].pid
    shutil.copy(shot, train / f"{person:04d}_c3s1_888888_01.jpg")  # somebody of test in train
    lonely = query / "0777_c1s1_000001_00.jpg"  # nobody to match
    shutil.copy(sound.query[1].path, lonely)
    (gallery / "0005_c1s1_777777_01.jpg").write_bytes(shot.read_bytes()[:900])  # cut off
    (gallery / "0005_c1s1_666666_01.jpg").touch()  # empty
    data = read()
    findings = check.check_dataset(data, check.scan_images(data))
    assert verdicts(findings) == {
        "Is every file there?": "stop",
        "Is somebody in train and in test?": "stop",
        "Can every query be matched?": "look",
        "Can every image be read?": "stop",
        "Is an image of train also in test?": "stop",
        "Is one image given to two people?": "look",
        "Is an image of train almost one of test?": "look",
    }
    assert found(findings, "every file") == "1 missing or empty: bounding_box_test/0005_c1s1_666666_01.jpg"
    assert found(findings, "somebody in train") == f"1 in train and in test: {person}"
    assert found(findings, "every query") == f"1 of 21 queries without a right image: query/{lonely.name}"
    assert "2 unreadable" in found(findings, "image be read")
    assert "0005_c1s1_777777_01.jpg (image file is truncated" in found(findings, "image be read")
    leak = found(findings, "train also in test")
    assert "bounding_box_train/0002_c2s1_999999_01.jpg = bounding_box_test/" + one.name in leak
    near = found(findings, "almost one of test")
    assert "1 almost the same" in near
    assert "bounding_box_train/0004_c1s1_999999_01.jpg = bounding_box_test/" + two.name in near
    assert "0003_c1s1_999999_01.jpg" in found(findings, "to two people")
    with pytest.raises(ValueError, match=r"mislead: 1 missing or empty: .*1 in train and in test: ") as caught:
        check.stop_if_unsound(findings)
    assert "\n" not in str(caught.value)
    check.stop_if_unsound(findings, skip_check=True)


def rows(*listed, root):
    """A dataset of rows (split, file, pid, camid); the files are there."""
    splits = {split: [] for split in SPLITS}
    for split, name, pid, camid in listed:
        (root / name).touch()
        (root / name).write_bytes(b"x")
        splits[split].append(Sample(root / name, pid, camid))
    return ReIDDataset("mine", root, *map(tuple, splits.values()), people={1: "ann", 2: "bo"})


SOUND = [("train", "a", 1, 1), ("train", "b", 2, 1), ("query", "c", 3, 1), ("gallery", "d", 3, 2)]


@pytest.mark.parametrize(
    ("extra", "question", "verdict", "sentence"),
    [
        (("gallery", "c", 3, 2), "Is a query in the gallery", "stop", "1 listed for both: c"),
        (("train", "a", 2, 1), "Is a file listed for two people?", "stop", "1 listed for two: a (ann, bo)"),
        (("gallery", "d", 4, 1), "Is a file listed for two people?", "stop", "1 listed for two: d (3, 4)"),
        (("gallery", "c", 0, 1), "Is a file listed for two people?", "stop", "1 listed for two: c (0, 3)"),
        (("train", "b", 2, 1), "Is a file listed twice in one split?", "look", "1 listed more than once: b"),
        (("gallery", "d", 3, 4), "Is a file listed twice in one split?", "look", "1 listed more than once: d"),
        (("train", "c", 3, 1), "Is a file listed for train and for test?", "stop", "1 listed for both: c"),
    ],
)
def test_one_file_in_several_rows_is_found(tmp_path, extra, question, verdict, sentence):
    (finding,) = (f for f in check.check_dataset(rows(*SOUND, extra, root=tmp_path)) if f.question.startswith(question))
    assert (finding.verdict, finding.found) == (verdict, sentence)
    assert finding.advice
    sound = check.check_dataset(rows(*SOUND, root=tmp_path))
    assert not verdicts(sound)
    links = rows(*SOUND, root=tmp_path)  # the same file by another name
    link = tmp_path / "link"
    link.symlink_to(tmp_path / extra[1])
    links = replace(links, **{extra[0]: (*links.splits[extra[0]], Sample(link, *extra[2:]))})
    assert question in "".join(verdicts(check.check_dataset(links)))


def test_a_query_in_the_gallery_before_its_own_camera_is_fine(tmp_path):
    """CUHK03's first protocol lists all test images in both; of the same camera they are left out of the ranking."""
    data = rows(*SOUND, ("query", "d", 3, 2), ("gallery", "c", 3, 1), root=tmp_path)
    assert not verdicts(check.check_dataset(data))


def test_one_table_under_two_names_is_found_when_merged(tiny):
    data = merge([replace(tiny, name="a"), replace(tiny, name="b")])
    findings = check.check_dataset(data)
    assert verdicts(findings) == {
        "Is a file listed for two people?": "stop",
        "Is a file listed twice in one split?": "look",  # distractors and junk
    }
    first = tiny.relative(tiny.train[0])
    assert f"{first} (a:2, b:2)" in found(findings, "two people")
    assert "leave one of them out" in next(f.advice for f in findings if f.verdict == check.STOP)


def test_a_file_in_a_hundred_thousand_rows_takes_seconds(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    data = ReIDDataset("mine", tmp_path, tuple(Sample(tmp_path / "x", i, i) for i in range(1, 100_001)), (), ())
    start = time.process_time()
    assert "listed for two: x (1, 2, 3 and 99997 more)" in found(check.check_dataset(data), "file listed for two")
    assert time.process_time() - start < 20


def test_what_can_be_read_is_left(damaged):
    """So that the dataset notebook shows its finding, and goes on, where an image is missing or broken."""
    _, read = damaged
    sound = read()
    gone, broken = sound.train[0].path, sound.train[1].path
    gone.unlink()
    broken.write_bytes(b"no image")
    data = replace(sound)
    assert len(data.fingerprint()) == len(data.fingerprint(files=False)) == 64
    assert data.stamp()["images"] == {"train": 90, "query": 20, "gallery": 52}
    assert check.scan_images(data).content_hash
    assert {s.path for s in data.samples} - {s.path for s in check.readable(data).samples} == {gone}
    left = check.readable(data, check.scan_images(data))
    assert {s.path for s in data.samples} - {s.path for s in left.samples} == {gone, broken}
    assert left.query == data.query


def test_the_quick_part_reads_no_image(damaged, monkeypatch):
    _, read = damaged
    data = read()
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    check.check_dataset(data)


def test_splits_that_cannot_be_used_stop(tiny):
    cases = {
        "query is empty": replace(tiny, query=()),
        "train is empty, gallery is empty": replace(tiny, train=(), gallery=()),
        "train shows one person only": replace(tiny, train=tiny.train[:2]),
    }
    for said, data in cases.items():
        assert said in found(check.check_dataset(data), "trained and tested")
        with pytest.raises(ValueError, match=said):
            check.stop_if_unsound(check.check_dataset(data))
    blind = replace(tiny, gallery=tuple(s._replace(camid=1) for s in tiny.gallery if s.camid == 1),
                    query=tuple(s for s in tiny.query if s.camid == 1))  # fmt: skip
    assert verdicts(check.check_dataset(blind))["Can every query be matched?"] == check.STOP
    twice = replace(tiny, train=(*tiny.train, tiny.query[0]._replace(pid=2)))
    assert tiny.query[0].path.name in found(check.check_dataset(twice), "listed for train and")
    assert verdicts(check.check_dataset(merge([tiny], combineall=True)))["Is somebody in train and in test?"] == "stop"


def test_a_test_needs_no_training_images(tiny):
    lost = replace(tiny, train=tuple(s._replace(path=s.path / "gone") for s in tiny.train))
    assert verdicts(check.check_dataset(lost)) == {"Is every file there?": "stop"}
    assert not verdicts(check.check_dataset(lost, training=False))
    assert "query is empty" in found(check.check_dataset(replace(lost, query=()), training=False), "tested on")


def test_unmatched_queries_equal_a_plain_loop(tiny):
    rng = np.random.default_rng(0)
    part = replace(tiny, gallery=tuple(s for s in tiny.gallery if rng.random() < 0.3))
    plain = [q for q in part.query if not any(g.pid == q.pid and g.camid != q.camid for g in part.gallery)]
    assert check.unmatched_queries(part) == plain != []


def test_near_copies_equal_a_plain_loop_at_any_block(tiny):
    scan = check.scan_images(tiny)
    plain = []
    for i, a in enumerate(scan.samples):
        for j, b in enumerate(scan.samples[:i]):
            likeness = float(scan.thumbnails[i] @ scan.thumbnails[j])
            across = scan.is_train[i] != scan.is_train[j]
            if likeness > 0.6 and (across or (a.pid != b.pid and min(a.pid, b.pid) >= 0)):
                plain.append((j, i))
    for block in (1, 37, 4096):
        assert {pair[:2] for pair in check.near_copies(scan, 0.6, block)} == set(plain)
    assert len(plain) > 50


def test_the_content_hash_follows_bytes_and_labels(damaged):
    root, read = damaged
    before = check.scan_images(read()).content_hash
    assert before == check.scan_images(read()).content_hash
    path = root / "query" / sorted(os.listdir(root / "query"))[0]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    changed = check.scan_images(read()).content_hash
    assert changed != before
    content[-3] ^= 1
    path.write_bytes(content)
    assert check.scan_images(read()).content_hash == before
    path.rename(path.with_name(path.name.replace("c1", "c2", 1)))
    assert check.scan_images(read()).content_hash != before


def test_counts_stand_beside_the_published_ones(tiny, tmp_path):
    data = replace(tiny, name="market1501")
    assert check.compare_counts(data)[1]["published images"] == 3368
    finding = check.check_dataset(data)[0]
    assert finding.verdict == check.LOOK
    assert "train has 90 images, published 12936, train has 12 people, published 751" in finding.found
    assert check.compare_counts(tiny)[0]["published images"] is None
    with pytest.raises(FileNotFoundError, match="bounding_box_train"):
        read_dukemtmcreid("dukemtmcreid", tmp_path, "here")


def test_people_by_camera_counts(tiny):
    table, pids, camids = check.people_by_camera(tiny.gallery)
    plain = defaultdict(int)
    for s in tiny.gallery:
        plain[s.pid, s.camid] += 1
    assert all(table[i, j] == plain[p, c] for i, p in enumerate(pids) for j, c in enumerate(camids))
    assert table.sum() == sum(s.pid > 0 for s in tiny.gallery)


def test_figures_draw_and_refuse(tiny):
    figure = image_counts({"train": check.people_by_camera(tiny.train), "none": (np.zeros((0, 3)), [], [1, 2, 3])})
    (cells,) = figure.axes[0].collections
    assert cells.get_array().sum() == len(tiny.train)
    assert "12 people, 90 images; 0 seen by one camera only" in figure.axes[0].get_title(loc="left")
    assert len(figure.axes) == 2  # one panel and its colours
    sizes = image_sizes([(128, 64)] * 9 + [(100, 90), (0, 0)])
    assert "10 images, 2 sizes, most often 128 × 64" in sizes.get_suptitle()
    sheet = pair_sheet([(tiny.train[0], tiny.query[0], "0.991")] * 5)
    assert len(sheet.axes[0].images) == 10
    matrix = score_matrix([[0.5, np.nan], [0.25, 1.0]], ["a", "b"], ["c", "d"])
    assert [t.get_text() for t in matrix.axes[0].texts] == ["50.0", "25.0", "100.0", "–"]
    for wrong in (lambda: image_counts({}), lambda: image_sizes([(0, 0)]), lambda: pair_sheet([])):
        with pytest.raises(ValueError, match="no"):
            wrong()
    with pytest.raises(ValueError, match="2 rows and 1 columns do not fit"):
        score_matrix([[1, 2]], ["a", "b"], ["c"])


@pytest.mark.slow
def test_the_notebook_shows_what_is_wrong_and_goes_on(damaged, tmp_path, monkeypatch):
    import papermill

    root, read = damaged
    gone, empty, broken = (read().train[i].path for i in (0, 1, 2))
    gone.unlink()
    gone.symlink_to(root / "nowhere")
    empty.write_bytes(b"")
    broken.write_bytes(b"no image")
    (tmp_path / "data_paths.yaml").write_text(f"market1501: {root}\n")
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    book = Path(__file__).resolve().parents[1] / "notebooks" / "dataset.ipynb"
    out = papermill.execute_notebook(book, tmp_path / "out.ipynb", {"dataset": "market1501"}, progress_bar=False)
    text = json.dumps(out)
    assert "2 missing or empty: " in text
    assert "3 unreadable: " in text
    assert all(path.name in text for path in (gone, empty, broken))
    assert "images per second in one process" in text
