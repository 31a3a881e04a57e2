"""`reidlib.Extractor`: features of images in any form, bad ones skipped; and its threshold card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import reidlib
from reidlib.data.loaders import eval_loader
from reidlib.evaluation import extract_features
from reidlib.evaluation.protocols import threshold_intervals, verify
from reidlib.workbook.threshold import make_card


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return reidlib.create_model("osnet_x0_25")


@pytest.fixture(scope="module")
def extractor(model):
    return reidlib.Extractor(model)


def crop(seed: int, height: int = 96, width: int = 40) -> Image.Image:
    """A smooth random image, a different one for each seed."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (6, 3, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)


@pytest.fixture
def bad_folder(tmp_path: Path) -> Path:
    """Four images that can be read, and one of each kind that cannot."""
    folder = tmp_path / "crops"
    (folder / "sub").mkdir(parents=True)
    crop(1).save(folder / 'it\'s "a" name.jpg')
    crop(2).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(crop(3).convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    crop(4).save(folder / "sub" / "plain.png")
    (folder / "twin.png").write_bytes((folder / "sub" / "plain.png").read_bytes())
    (folder / "notes.txt").write_text("not an image")
    (folder / "text.jpg").write_text("not an image either")
    (folder / "empty.jpg").touch()
    crop(5).save(folder / "whole.jpg")
    (folder / "whole.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:400])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / ".hidden.jpg").touch()
    return folder


def test_every_form_of_an_image_gives_the_features_of_the_notebooks(tiny, model, extractor) -> None:
    samples = tiny.gallery[:10]
    expected = extract_features(model, eval_loader(samples, model.input_size)).feats
    torch.testing.assert_close(extractor([s.path for s in samples]), expected)
    path, (first,) = samples[0].path, expected[:1]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [path, str(path), path.read_bytes(), samples[0], image, array, tensor, tensor / 255, array / 255.0]
    forms += [array[None], tensor[None], [array], iter([image]), array[:, ::-1][:, ::-1]]
    for form in forms:
        feats = extractor(form)
        assert feats.shape == (1, model.feature_dim)
        torch.testing.assert_close(feats[0], first, rtol=1e-4, atol=1e-6)
    assert len(extractor([])) == 0


def test_bad_images_are_skipped_counted_and_named(bad_folder: Path, extractor) -> None:
    found = extractor.extract(bad_folder)
    names = [Path(name).relative_to(bad_folder).as_posix() for name in found.names]
    assert names == ["cmyk.jpg", "deep.png", 'it\'s "a" name.jpg', "twin.png"]
    assert found.feats.shape == (4, extractor.model.feature_dim)
    assert found.feats.isfinite().all()
    reasons = {Path(name).name: reason for name, reason in found.skipped}
    expected = {
        "notes.txt": "by its ending .txt", "text.jpg": "cannot identify it", "empty.jpg": "the file is empty",
        "whole.jpg": "Truncated", "dot.png": "1 × 1 pixels show nobody", "huge.png": "more than the limit",
        "plain.png": "the same file as",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name]
    with pytest.warns(UserWarning, match=r"7 of 11 images skipped \(.*and 4 more\)"):
        extractor(bad_folder)
    # Of a list every entry counts, equal files too.
    assert len(extractor([bad_folder / "twin.png", bad_folder / "sub" / "plain.png"])) == 2
    with pytest.raises(FileNotFoundError, match="name a folder"):
        list(reidlib.data.own_images.walk_folder(bad_folder / "none"))
    with pytest.warns(UserWarning, match="1 of 1 images skipped .*does not exist"):
        extractor(bad_folder / "none.jpg")


def test_converted_images_look_as_they_did(bad_folder: Path, extractor) -> None:
    grey = np.asarray(crop(3).convert("L"))
    torch.testing.assert_close(extractor(bad_folder / "deep.png"), extractor(grey))
    similarity = extractor.similarity(bad_folder / "cmyk.jpg", crop(2))
    assert similarity > extractor.similarity(bad_folder / "cmyk.jpg", crop(4))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 64, 32), np.uint8), r"array \(H, W, 3\)"),
        (torch.zeros(64, 32), r"a tensor \(3, H, W\)"),
        (np.full((64, 32, 3), 200.0), "from 0 to 1"),
        (torch.full((3, 64, 32), torch.nan), "from 0 to 1"),
        (np.zeros((64, 32, 3), np.int32), "not int32"),
        (None, "image 0"),
    ],
)
def test_what_is_no_image_is_said(image, words: str, extractor) -> None:
    with pytest.warns(UserWarning, match=words):
        assert len(extractor([image])) == 0


def test_crops_of_a_frame_are_those_of_its_pixels(extractor) -> None:
    frame = np.asarray(crop(7, 200, 150))
    feats = extractor.crops(frame, [[10, 20, 50, 120], [-5, 0, 40.5, 80]])
    torch.testing.assert_close(feats, extractor([frame[20:120, 10:50], frame[:80, :41]]), rtol=1e-4, atol=1e-6)
    assert extractor.crops(frame, np.zeros((0, 4))).shape == (0, extractor.model.feature_dim)
    with pytest.raises(ValueError, match="1 of 1 boxes hold less than 4 × 4 pixels of a frame of 150 × 200"):
        extractor.crops(frame, torch.tensor([[200, 0, 260, 90]]))
    with pytest.raises(ValueError, match=r"boxes are \(N, 4\)"):
        extractor.crops(frame, [1, 2, 3])


def test_a_stream_reads_ahead_and_holds_few_images(model) -> None:
    seen = 0

    def images():
        nonlocal seen
        for i in range(40):
            seen += 1
            yield np.asarray(crop(i))

    batches = reidlib.Extractor(model, batch_size=4).stream(images())
    first = next(batches)
    assert len(first) == 4
    assert seen == 8  # the batch and the next
    assert sum(map(len, batches)) == 36


def test_a_name_that_is_neither_run_nor_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trained run .*osnet_x025.*did you mean 'osnet_x0_25'"):
        reidlib.Extractor("osnet_x025")
    with pytest.raises(ValueError, match="is a model: give its weights"):
        reidlib.Extractor("osnet_x0_25")


# The threshold card


def pairs(seed: int = 0, people: int = 30, cameras: int = 3):
    """Query and gallery of `people`, whose features lie around one centre each."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(people, 16, generator=draw)
    pids = torch.arange(1, people + 1).repeat_interleave(2 * cameras)
    camids = torch.arange(1, cameras + 1).repeat(2 * people)
    feats = centre[pids - 1] + 0.8 * torch.randn(len(pids), 16, generator=draw)
    pids[::17] = -1
    pids[1::19] = 0
    odd = torch.arange(len(pids)) % 2 == 1
    return feats[odd], feats[~odd], pids[odd], pids[~odd], camids[odd], camids[~odd]


def test_thresholds_across_cameras_are_those_of_a_naive_loop() -> None:
    query, gallery, qp, gp, qc, gc = inputs = pairs()
    similarity = (normalize(query.double()) @ normalize(gallery.double()).T).tolist()
    same, different = [], []
    for i, row in enumerate(similarity):
        for j, value in enumerate(row):
            if qp[i] != -1 and gp[j] != -1 and qc[i] != gc[j]:
                (same if qp[i] == gp[j] else different).append(value)
    found = verify(*inputs, fars=(0.001, 0.01, 0.05), across_cameras=True)
    assert (found.num_genuine, found.num_impostor) == (len(same), len(different))
    for far, distance in found.threshold.items():
        allowed = int(far * len(different))
        limit = sorted(different, reverse=True)[allowed]  # the first that must not be accepted
        accepted = [s for s in same if s > limit]
        assert found.tar[far] == pytest.approx(len(accepted) / len(same))
        assert 1 - distance == pytest.approx(min(accepted))
    assert verify(*inputs, fars=(0.01,)).num_impostor > len(different)


def test_intervals_hold_the_threshold_of_other_people_as_often_as_they_say() -> None:
    """Calibrated on 25 people each time, the interval holds the threshold of very many people in most cases."""
    scores = [threshold_intervals(*pairs(seed=s, people=40), fars=(0.01,), samples=100)[0.01] for s in range(20)]
    query, gallery, qp, gp, qc, gc = pairs(seed=99, people=400)
    distance = 1 - normalize(query) @ normalize(gallery).T
    impostor = (qp[:, None] != gp) & (qc[:, None] != gc) & (qp[:, None] != -1) & (gp != -1)
    quantile = distance[impostor].sort().values[int(0.01 * impostor.sum())].item()
    held = sum(low <= quantile <= high for low, high in scores)
    assert held >= 15
    assert max(high - low for low, high in scores) < 0.2
    assert threshold_intervals(*pairs(), samples=20) == threshold_intervals(*pairs(), samples=20, block_size=7)


def test_the_card_is_kept_in_the_run_and_belongs_to_its_weights(tiny, tmp_path: Path, model) -> None:
    from reidlib.training.record import save_model

    run = reidlib.Run.create("r", {"model": model.name, "dataset": tiny.name}).begin()
    save_model(run, model, trained_on=tiny.name, tested_on=tiny.name, epoch=1)
    extractor = reidlib.Extractor("r")
    paths = [s.path for s in tiny.gallery[:2]]
    answer = extractor.same_person(*paths)  # calibrates by itself: the dataset is here
    card = json.loads((run.path / "model.json").read_text())["threshold_card"]
    assert (card["dataset"], card["weights"]) == (tiny.name, extractor.weights)
    assert [t["false_positive_rate"] for t in card["thresholds"]] == [0.001, 0.01]
    assert all(t["interval"][0] <= t["interval"][1] for t in card["thresholds"])
    assert answer.threshold == card["thresholds"][0]["threshold"]
    assert answer.same == (answer.similarity >= answer.threshold) == bool(answer)
    assert answer.calibrated_on == tiny.name
    assert "another domain" in str(answer)
    assert "0.1%" in str(answer)
    assert extractor.same_person(paths[0], paths[0], false_positive_rate=0.01).same
    with pytest.raises(ValueError, match=r"unknown false positive rate .*'0.5'"):
        extractor.same_person(*paths, false_positive_rate=0.5)
    assert reidlib.Extractor(run).threshold_card() == extractor.threshold_card()
    # Other weights, or features of another kind: no card of theirs.
    (run.path / "model.json").write_text(json.dumps(run.read_json("model.json") | {"tested_on": ""}))
    assert reidlib.Extractor("r", flip=True).stamp != extractor.stamp
    found = reidlib.workbook.threshold.find_card(run, {**extractor.stamp, "weights": "other"})
    assert found is None


def test_a_model_without_a_card_says_so(extractor) -> None:
    answer = extractor.same_person(crop(1), crop(1))
    assert (answer.same, answer.threshold) == (None, None)
    assert answer.similarity == pytest.approx(1)
    assert "calibrate(dataset)" in answer.sentence
    with pytest.raises(ValueError, match=r"1 of 2 images skipped \(nowhere.jpg"):
        extractor.same_person(crop(1), "nowhere.jpg")


def test_a_card_needs_people(tiny) -> None:
    feats = reidlib.evaluation.Features(torch.eye(2), torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="no threshold can be calibrated on synthetic-tiny: nothing to verify"):
        make_card(feats, feats, tiny, {"weights": "", "input": ""})
