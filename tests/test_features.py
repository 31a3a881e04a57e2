"""Feature extraction: what it gives, and what it leaves of the model."""

import pytest
import torch

import reidlib
from reidlib.data.loaders import eval_loader
from reidlib.evaluation.features import extract_features, load_features, save_features

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


def test_bfloat16_gives_float32_features_nearby(tiny, model) -> None:
    exact = extract_features(model, eval_loader(tiny.query, SIZE)).feats
    rough = extract_features(model, eval_loader(tiny.query, SIZE), bfloat16=True).feats
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.99
    assert not torch.equal(exact, rough)


def test_nothing_to_extract_is_said(model) -> None:
    with pytest.raises(ValueError, match="no pictures to extract"):
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
