"""Editions of the drawn dataset (occluded, clothes, tracklets), and what training and testing do with tracklets."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import reidlib
from reidlib.data.check import unmatched_queries
from reidlib.data.drawn.writer import OUTFITS, SIZES, Studio, write_synthetic
from reidlib.data.images import read_image
from reidlib.data.loaders import train_loader
from reidlib.data.samplers import PKSampler
from reidlib.data.samples import frames_of
from reidlib.evaluation import evaluate_ranking, ranking_inputs
from reidlib.models.heads import Outputs
from reidlib.training import Recipe, fit
from reidlib.training.loop import of_tracklets
from reidlib.workbook.runs import Run


@pytest.fixture(scope="module")
def studios():
    return {edition: Studio(edition=edition) for edition in ("", "occluded", "clothes", "tracks")}


def test_an_edition_has_the_people_and_cameras_of_its_setting(studios):
    """And differs where it says so: before queries, in every second image, in where and how somebody walks."""
    shots = {edition: list(studio.shots(SIZES["tiny"])) for edition, studio in studios.items()}
    keys = [{shot[1:] for shot in found} for found in shots.values()]
    assert keys[0] == keys[1] == keys[2] == keys[3]

    def same(edition, shot):
        return studios[edition].draw(shot).tobytes() == studios[""].draw(shot).tobytes()

    for shot in [shot for shot in shots[""] if shot.split != "train" and shot.pid > 0][:12]:
        assert same("occluded", shot) == (shot.split != "query")
        assert same("clothes", shot) == (shot.number % OUTFITS == 0)
        assert same("tracks", shot._replace(number=2)) is False
    with pytest.raises(ValueError, match="clothing"):
        Studio(edition="clothing")


def test_other_clothes_are_worn_by_the_same_body(studios):
    studio = studios["clothes"]
    for pid in range(1, 30):
        one, other = studio.person(pid), studio.person(pid, 1)
        assert (one.stature, one.build, one.skin, one.hair, one.hair_colour) == (
            other.stature, other.build, other.skin, other.hair, other.hair_colour
        )  # fmt: skip
        assert (one.upper, one.upper_colour, one.lower_colour) != (other.upper, other.upper_colour, other.lower_colour)


def test_clothes_have_three_protocols():
    names = {"": "standard", "-changed": "cloth-changing", "-same": "same clothes"}
    loaded = {ending: reidlib.load_dataset(f"synthetic-clothes-tiny{ending}") for ending in names}
    assert {ending: data.protocol_name for ending, data in loaded.items()} == names
    data = loaded[""]
    assert Counter(s.clothes for s in data.train).keys() == {"1", "2"}
    assert len({data.fingerprint() for data in loaded.values()}) == 1
    assert not any(map(unmatched_queries, loaded.values()))
    splits = data.query, data.gallery
    pids, camids = ([torch.tensor([getattr(s, name) for s in split]) for split in splits] for name in ("pid", "camid"))
    rng = np.random.default_rng(0)
    feats = [rng.normal(size=(len(x), 8)).astype(np.float32) for x in (data.query, data.gallery)]
    results = {k: evaluate_ranking(*feats, *pids, *camids, **d.protocol()) for k, d in loaded.items()}
    right = {
        ending: sum(
            q.pid == g.pid and q.camid != g.camid and (not ending or (q.clothes == g.clothes) == (ending == "-same"))
            for q in data.query for g in data.gallery
        )
        for ending in names
    }  # fmt: skip
    assert right[""] == right["-changed"] + right["-same"]
    assert len({result.mAP for result in results.values()}) == 3
    assert all(result.num_valid == len(data.query) for result in results.values())


class Mean(nn.Module):
    """The mean colour of an image, and its square."""

    input_size = (32, 16)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1) / 255)

    def forward(self, images, cameras=None):
        mean = images.float().mean((2, 3))
        return torch.cat([mean, mean.square() * self.scale], dim=1)


def test_a_tracklet_is_tested_by_the_mean_of_its_frames():
    data = reidlib.load_dataset("synthetic-tracks-tiny")
    shots = SIZES["tiny"].shots
    assert {len(s.frames) for s in data.query} == {shots}
    assert {len(s.frames) for s in data.gallery if s.pid < 1} == {1}
    assert len(data.gallery) == len({(s.pid, s.camid, s.track) for s in data.gallery})
    assert all(s.track and not s.frames for s in data.train)
    assert not unmatched_queries(data)
    run = SimpleNamespace(cameras=lambda _: None, interpolation="bilinear")
    query, gallery = Run.extract(run, Mean(), data, flip=False, workers=0, progress=False)
    for features, samples in ((query, data.query), (gallery, data.gallery)):
        assert features.pids.tolist() == [s.pid for s in samples]
        for row, sample in list(zip(features.feats, samples, strict=True))[::5]:
            frames = torch.stack([read_image(path, (32, 16)) for path in sample.frames])
            mean = normalize(normalize(Mean()(frames)).mean(0), dim=0)
            torch.testing.assert_close(row, mean.detach())
    assert evaluate_ranking(*ranking_inputs(query, gallery)).num_valid == len(data.query)
    plain = reidlib.load_dataset("synthetic-tiny").query
    assert frames_of(plain) == (plain, [])


def test_frames_of_one_tracklet_are_drawn_together():
    labels = [0] * 11 + [1] * 8 + [2] * 5
    tracks = [*"aaaaabbbbcc", *"aaaabbbb", *"aaabb"]
    sampler = PKSampler(labels, 3, 6, frames=3, tracks=tracks, seed=1)
    seen = Counter()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert len(batch) == 18
            for start in range(0, 18, 3):
                run = batch[start : start + 3]
                assert len({(labels[i], tracks[i]) for i in run}) == 1
                size = sum((labels[i], tracks[i]) == (labels[run[0]], tracks[run[0]]) for i in range(24))
                assert len(set(run)) >= min(size, 3) - 2
                seen.update(run)
    assert set(seen) == set(range(24))
    first = PKSampler(labels, 3, 6, frames=3, tracks=tracks, seed=1)
    first.set_epoch(19)
    sampler.set_epoch(19)
    assert list(first) == list(sampler)
    with pytest.raises(ValueError, match="4 images of a person are no multiple of 3 frames"):
        PKSampler(labels, 3, 4, frames=3, tracks=tracks)
    with pytest.raises(ValueError, match="the dataset has no tracklets to draw 2 frames of"):
        train_loader(reidlib.load_dataset("synthetic-tiny"), (32, 16), people=2, images=2, frames=2)


def test_scores_and_embeddings_of_a_tracklet_are_means():
    logits, embeddings = torch.randn(6, 4), torch.randn(6, 3)
    found = of_tracklets(Outputs([logits], [embeddings], ["maps"]), 3)
    for row in range(2):
        torch.testing.assert_close(found.logits[0][row], logits[3 * row : 3 * row + 3].mean(0))
        torch.testing.assert_close(found.embeddings[0][row], embeddings[3 * row : 3 * row + 3].mean(0))
    assert found.maps == ["maps"]
    for wrong in ({"images": 3}, {"pk": False}, {"contrast_weight": 1.0, "cross_entropy_weight": 0.0}):
        with pytest.raises(ValueError, match="frames=2 needs labels, PK batches"):
            Recipe(frames=2, **wrong)
    with pytest.raises(ValueError, match="at least 2 people × 2 tracklets in a batch, got 8 × 1"):
        Recipe(frames=4, triplet_weight=1.0)


@pytest.mark.slow
def test_training_on_tracklets_learns_and_is_evaluated_as_tested():
    data = reidlib.load_dataset("synthetic-tracks-tiny")
    torch.manual_seed(0)
    model = reidlib.create_model("osnet_x0_25", num_classes=data.num_classes, input_size=(64, 32))
    run, recipe = Run.create("tracks", {"seed": 0}), Recipe(epochs=3, people=4, images=4, frames=2, triplet_weight=1.0)
    history = fit(model, data, run, recipe)
    assert history[-1]["loss"] < history[1]["loss"]
    query, gallery = run.features(model, data)
    assert evaluate_ranking(*ranking_inputs(query, gallery)).mAP == pytest.approx(
        max(row.get("mAP", 0) for row in history[1:]), abs=1e-6
    )


def test_what_is_no_edition_is_refused(tmp_path):
    with pytest.raises(ValueError, match="occlude"):
        write_synthetic(tmp_path, size="tiny", edition="occlude")
    assert not list(tmp_path.iterdir())
