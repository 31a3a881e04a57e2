"""Re-ranking and query expansion, against recorded cases and plain loops."""

import numpy as np
import pytest
import torch
from eval_cases import CASES, FOLDER, arrays, check, one_thread  # noqa: F401 (a fixture)

from reidlib.evaluation.ranking import evaluate_distances, evaluate_ranking
from reidlib.evaluation.reranking import expand_features, rerank

CASE = CASES["rerank"]


def dense(q, g, k1, k2, lambda_value, power=1):
    """k-reciprocal encoding as published: whole matrices, one image at a time, float64."""
    x = np.concatenate([q, g]).astype(np.float64)
    d = ((x[:, None] - x) ** 2).sum(-1) ** power
    d /= d.max(1, keepdims=True)
    order = np.argsort(d, axis=1, kind="stable")
    v = np.zeros_like(d)

    def mutual(i, k):
        return [j for j in order[i, :k] if i in order[j, :k]]

    for i in range(len(x)):
        core = mutual(i, k1 + 1)
        members = list(core)
        for j in core:
            more = mutual(j, round(k1 / 2) + 1)
            if len(set(more) & set(core)) > 2 / 3 * len(more):
                members += more
        members = np.unique(members).astype(int)
        v[i, members] = np.exp(-d[i, members]) / np.exp(-d[i, members]).sum()
    if k2 > 1:
        v = np.stack([v[order[i, :k2]].mean(0) for i in range(len(x))])
    common = np.minimum(v[: len(q), None], v[None, len(q) :]).sum(-1)
    return (1 - lambda_value) * (1 - common / (2 - common)) + lambda_value * d[: len(q), len(q) :]


@pytest.mark.parametrize("block_size", [None, 37])
def test_recorded(block_size):
    q, g, *ids = arrays("rerank")
    with np.load(FOLDER / "rerank.npz") as file:
        recorded = file["reranked"]
    check(evaluate_ranking(q, g, *ids, metric="euclidean"), CASE["expected_before"])
    distances = rerank(q, g, block_size=block_size)
    assert (distances.dtype, distances.shape) == (torch.float32, (len(q), len(g)))
    np.testing.assert_allclose(distances.numpy(), recorded, atol=CASE["tolerance"])
    np.testing.assert_allclose(rerank(q, g, metric="cosine").numpy(), recorded, atol=CASE["tolerance"])
    check(evaluate_distances(distances, *ids), CASE["expected_after"])
    for sample in CASE["samples"]:
        value = distances[sample["query"], sample["gallery"]].item()
        assert value == pytest.approx(sample["distance"], abs=CASE["tolerance"])
    for name, expected in CASE["other_parameters"].items():
        k1, k2, lambda_value = (float(part.split("=")[1]) for part in name.split(","))
        distances = rerank(q, g, k1=int(k1), k2=int(k2), lambda_value=lambda_value, block_size=block_size)
        assert distances.mean().item() == pytest.approx(expected["mean_distance"], abs=CASE["tolerance"])
        check(evaluate_distances(distances, *ids), expected)
    twice = evaluate_distances(rerank(q, g, square_twice=True), *ids)
    check(twice, CASE["variants"]["input_already_squared"])


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_dense_form(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(31, 4)).astype(np.float32)
    g[11] = g[3]
    k1, k2 = int(rng.integers(1, 45)), int(rng.integers(1, 9))
    for power in (1, 2):
        expected = dense(q, g, k1, k2, 0.4, power)
        distances = rerank(q, g, k1=k1, k2=k2, lambda_value=0.4, square_twice=power == 2, block_size=10)
        np.testing.assert_allclose(distances.numpy(), expected, atol=2e-5)


def test_one_place_for_all():
    distances = rerank(np.ones((2, 3), np.float32), np.ones((40, 3), np.float32))
    assert distances.isfinite().all()


def test_query_expansion():
    q, g, *ids = arrays("query_expansion")
    case = CASES["query_expansion"]
    check(evaluate_ranking(q, g, *ids), case["expected_before"]["cosine"])
    with np.load(FOLDER / "query_expansion.npz") as file:
        for name, expected in case["expected_after"].items():
            new_q, new_g = expand_features(q, g, **{key: expected[key] for key in ("k", "alpha", "times")})
            np.testing.assert_allclose(new_q.numpy(), file[f"{name}_q"], atol=case["tolerance"])
            if f"{name}_g" in file:
                np.testing.assert_allclose(new_g.numpy(), file[f"{name}_g"], atol=case["tolerance"])
            check(evaluate_ranking(new_q, new_g, *ids), expected["cosine"])
    opposite = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert expand_features(*opposite, k=2, alpha=0.5)[0].isfinite().all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("dtype", "power"), [("float32", -43), ("float32", 60), ("float64", -660), ("float64", 660)])
def test_magnitude_changes_nothing(dtype, power, metric):
    rng = np.random.default_rng(0)
    q, g = (rng.normal(size=(n, 6)).astype(np.float32).astype(dtype) for n in (9, 40))
    g[5] = 0
    factor = np.array(2.0**power, dtype=dtype)
    plain, scaled = (rerank(q * f, g * f, metric=metric, k1=8) for f in (factor / factor, factor))
    assert torch.equal(plain, scaled)
    plain, scaled = (torch.cat(expand_features(q * f, g * f, k=4, times=2)) for f in (factor / factor, factor))
    assert torch.equal(plain * 2.0**power, scaled)


def test_refusals():
    q, g, *_ = arrays("nan_in_gallery")
    with pytest.raises(ValueError, match="gallery_feats has a NaN or infinite value in row 4"):
        rerank(q, g)
    with pytest.raises(ValueError, match="query_feats has 15 dimensions, gallery_feats has 16"):
        rerank(q[:, :15], g)
    with pytest.raises(ValueError, match="k1 must be at least 1"):
        rerank(q, g, k1=0)
    with pytest.raises(ValueError, match="unknown metric"):
        rerank(q, g, metric="manhattan")
    with pytest.raises(TypeError, match=r"expand_features.*tmies"):
        expand_features(q, q, tmies=2)
