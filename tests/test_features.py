"""Feature extraction: what it gives, and what it leaves of the model."""

import pytest
import torch
from torch.nn.functional import normalize

import reidlib
from reidlib.data.loaders import eval_loader
from reidlib.evaluation.features import (
    Features,
    average_tracks,
    extract_features,
    load_features,
    ranking_inputs,
    save_features,
)

SIZE = (64, 32)


@pytest.fixture
def model() -> torch.nn.Module:
    return reidlib.create_model("osnet_x0_25", num_classes=4, input_size=SIZE)


def test_features_equal_a_plain_loop_in_order(tiny, model) -> None:
    features = extract_features(model, eval_loader(tiny.gallery, SIZE, batch_size=7))
    model.eval()
    with torch.no_grad():
        plain = torch.cat([model(b.images) for b in eval_loader(tiny.gallery, SIZE, batch_size=1)])
    assert features.feats.dtype == torch.float32
    assert (features.feats - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert features.pids.tolist() == [s.pid for s in tiny.gallery]
    assert features.camids.tolist() == [s.camid for s in tiny.gallery]


def test_the_model_can_still_be_trained(tiny, model) -> None:
    model.train()
    extract_features(model, eval_loader(tiny.query, SIZE))
    assert model.training
    outputs = model(torch.rand(4, 3, *SIZE))
    outputs.logits[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def state(model: torch.nn.Module) -> list:
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return [m.training for m in model.modules()] + [(t.data_ptr(), t.stride(), t.device, t._version) for t in tensors]


class Plain(torch.nn.Module):
    """A network that cannot be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.register_buffer("map", torch.rand(1, 3, 4, 4))

    def forward(self, images: torch.Tensor, camids: torch.Tensor) -> torch.Tensor:
        assert not self.norm.training
        return self.norm(self.conv(images / 255)).mean((2, 3)) + camids[:, None]


@pytest.mark.parametrize("kind", ["reid", "plain"])
def test_the_model_stays_as_it_is(tiny, model, kind) -> None:
    model = model if kind == "reid" else Plain()
    model.train()
    for module in model.modules():  # frozen by the user
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state(model)

    def broken():
        yield next(iter(eval_loader(tiny.query, SIZE)))
        raise OSError("a broken image")

    extract_features(model, eval_loader(tiny.query, SIZE))
    assert state(model) == before
    with pytest.raises(OSError, match="broken image"):
        extract_features(model, broken())
    assert state(model) == before
    with pytest.raises(RuntimeError, match="meta"):  # a device that cannot compute
        extract_features(model, eval_loader(tiny.query, SIZE), device="meta")
    assert state(model) == before


def test_flip_is_the_mean_over_mirror_images(tiny, model) -> None:
    plain = extract_features(model, eval_loader(tiny.query, SIZE))
    flipped = extract_features(model, eval_loader(tiny.query, SIZE), flip=True)
    model.eval()
    with torch.no_grad():
        mirrored = torch.cat([model(b.images.flip(-1)) for b in eval_loader(tiny.query, SIZE, batch_size=1)])
    torch.testing.assert_close(flipped.feats, (plain.feats + mirrored) / 2, rtol=1e-4, atol=1e-5)
    assert (flipped.feats - plain.feats).abs().max() > 1e-3


def test_a_model_that_is_ranked_by_mirrored_and_normalised_parts_is_extracted_so(tiny) -> None:
    model = reidlib.create_model("lmbn_n", input_size=(64, 32)).eval()
    batch = next(iter(eval_loader(tiny.query[:2], (64, 32), workers=0)))
    with torch.no_grad():
        maps = [model(x).view(2, 512, 7) for x in (batch.images, batch.images.flip(3))]  # as LightMBN's code has them
    parts = [(maps[0] + maps[1])[:, :, part] for part in range(7)]
    wanted = torch.stack([part / part.norm(dim=1, keepdim=True) for part in parts], dim=2).flatten(1)
    for flip in (False, True):
        feats = extract_features(model, [batch], flip=flip).feats
        torch.testing.assert_close(feats, wanted, rtol=1e-3, atol=1e-5)


def test_multi_query_pools_the_images_of_a_person_under_a_camera() -> None:
    query = Features(torch.tensor([[1.0, -5.0], [3.0, -1.0], [10.0, 0.0]]), *torch.tensor([[4, 4, 2], [1, 1, 0]]))
    gallery = Features(torch.tensor([[5.0, 3.0], [9.0, 9.0], [8.0, 8.0]]), *torch.tensor([[4, 4, 3], [1, 0, 0]]))
    for how, expected in (("mean", [[10.0, 0.0], [3.0, -1.0]]), ("max", [[10.0, 0.0], [5.0, 3.0]])):
        q, g, pids, g_pids, camids, g_camids = ranking_inputs(query, gallery, multi_query=how)
        assert q.tolist() == expected
        assert (pids.tolist(), camids.tolist()) == ([2, 4], [0, 1])
        assert (g is gallery.feats, g_pids is gallery.pids, g_camids is gallery.camids) == (True, True, True)
    with pytest.raises(ValueError, match="unknown multi_query 'maen': did you mean 'mean'"):
        ranking_inputs(query, gallery, multi_query="maen")
    with pytest.raises(ValueError, match="unknown precision 'float61'"):
        ranking_inputs(query, gallery, precision="float61")


def test_half_precision_keeps_zero_rows() -> None:
    side = Features(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), *torch.tensor([[1, 1], [0, 1]]))
    q, *_ = ranking_inputs(side, side, precision="float16")
    assert q.dtype == torch.float16
    torch.testing.assert_close(q.float(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]), atol=1e-3, rtol=0)


def test_bfloat16_gives_float32_features_nearby(tiny, model) -> None:
    exact = extract_features(model, eval_loader(tiny.query, SIZE)).feats
    rough = extract_features(model, eval_loader(tiny.query, SIZE), bfloat16=True).feats
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.99
    assert not torch.equal(exact, rough)


def test_nothing_to_extract_is_said(model) -> None:
    with pytest.raises(ValueError, match="no images to extract"):
        extract_features(model, [])


def test_features_come_back_only_for_what_they_were_made_from(tiny, model, tmp_path) -> None:
    features = extract_features(model, eval_loader(tiny.query, SIZE))
    path = tmp_path / "f.safetensors"
    other = extract_features(model, eval_loader(tiny.gallery, SIZE))
    save_features(path, {"query": features, "gallery": other}, {"weights": "a", "data": "b"})
    back = load_features(path, {"weights": "a", "data": "b"})
    assert torch.equal(back["query"].feats, features.feats)
    assert torch.equal(back["gallery"].camids, other.camids)
    assert load_features(path, {"weights": "a", "data": "c"}) is None
    assert load_features(tmp_path / "none", {}) is None


def tracklets() -> tuple[Features, list[str]]:
    draw = torch.Generator().manual_seed(4)
    pids, camids = torch.tensor([1, 1, 2, 1, 2, 3, 3]), torch.tensor([1, 1, 1, 2, 1, 2, 2])
    return Features(torch.randn(7, 5, generator=draw), pids, camids), ["t1", "t1", "t2", "t1", "t2", "", ""]


@pytest.mark.parametrize("quality", [None, [1.0, 3.0, 0.5, 1.0, 0.0, 2.0, 1.0]])
def test_tracks_are_averaged_as_a_naive_loop_does(quality) -> None:
    features, tracks = tracklets()
    averaged, track = average_tracks(features, tracks, quality=quality)
    expected = [[0, 1], [2, 4], [3], [5], [6]]  # t1 of camera 2 is another one; "" is one image each
    assert track.tolist() == [0, 0, 1, 2, 1, 3, 4]
    weights = quality or [1.0] * 7
    for row, images in enumerate(expected):
        mean = sum(weights[i] * normalize(features.feats[i], dim=0) for i in images)
        torch.testing.assert_close(averaged.feats[row], normalize(mean, dim=0))
    assert averaged.pids.tolist() == [1, 2, 1, 3, 3]
    assert averaged.camids.tolist() == [1, 1, 2, 2, 2]
    reidlib.evaluate_ranking(*ranking_inputs(averaged, averaged), exclude=())


def test_tracks_that_do_not_fit_are_said() -> None:
    features, tracks = tracklets()
    with pytest.raises(ValueError, match="the track 't1' of camera 1 has two people, 1 and 2"):
        average_tracks(features, ["t1"] * 7)
    with pytest.raises(ValueError, match="7 features, 3 tracks"):
        average_tracks(features, tracks[:3])
    with pytest.raises(ValueError, match="finite number of 0 or more"):
        average_tracks(features, tracks, quality=[-1.0] * 7)
    with pytest.raises(ValueError, match="all images of the track 't2' have the quality 0"):
        average_tracks(features, tracks, quality=[1, 1, 0, 1, 0, 1, 1])
