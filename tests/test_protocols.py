"""Single shot, verification, camera pairs, and the statistics, against recorded cases and plain loops."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from eval_cases import CASES, arrays, drawn, naive, one_thread  # noqa: F401 (a fixture)

from reidlib.evaluation.protocols import bootstrap, evaluate_camera_pairs, permutation_test, single_shot, verify
from reidlib.evaluation.ranking import evaluate_ranking


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_single_shot_recorded(metric):
    inputs = arrays("cuhk03_single_shot")
    expected = CASES["cuhk03_single_shot"]["expected"][metric]
    exact = single_shot(*inputs, metric=metric)
    sampled = single_shot(*inputs, metric=metric, repeats=100, seed=1)
    assert exact.num_valid == sampled.num_valid == expected["num_valid"]
    assert exact.num_query == len(inputs[0])
    assert exact.mAP == pytest.approx(expected["mAP_single_shot"], abs=1e-9)
    assert sampled.mAP == pytest.approx(exact.mAP, abs=0.02)
    for k, value in expected["cmc"].items():
        assert exact.cmc[int(k) - 1].item() == pytest.approx(value, abs=1e-9)
        error = expected["cmc_se_10_repeats"][k] * (10 / 100) ** 0.5
        assert sampled.cmc[int(k) - 1].item() == pytest.approx(value, abs=4 * error)
    assert evaluate_ranking(*inputs, metric=metric).mAP == pytest.approx(expected["mAP_full_list"], abs=1e-9)
    assert torch.equal(
        single_shot(*inputs, metric=metric, repeats=3, seed=5).cmc,
        single_shot(*inputs, metric=metric, repeats=3, seed=5).cmc,
    )


def test_single_shot_over_every_draw():
    inputs = drawn(2, num_query=4, num_gallery=9, people=3, cameras=2)
    pids, g_pids = inputs[2], inputs[3]
    ranks = []
    for i, (*_, order) in enumerate(naive(*inputs)):
        people = [order[g_pids[order] == p] for p in np.unique(g_pids[order])]
        draws = [sorted(draw, key=order.tolist().index) for draw in itertools.product(*people)]
        if pids[i] in g_pids[order]:
            ranks.append([[g_pids[item] for item in draw].index(pids[i]) + 1 for draw in draws])
    result = single_shot(*inputs, max_rank=4)
    for k in range(1, 5):
        assert result.cmc[k - 1].item() == pytest.approx(np.mean([np.mean(np.array(r) <= k) for r in ranks]), abs=1e-12)
    assert result.mAP == pytest.approx(np.mean([np.mean(1 / np.array(r)) for r in ranks]), abs=1e-12)


@pytest.mark.parametrize("block_size", [1024, 37])
def test_verification_recorded(block_size):
    case = CASES["roc"]
    fars = {text: float(text) for text in case["expected"]["tpr_at_fpr"]}
    result = verify(*arrays("roc"), fars=tuple(fars.values()), block_size=block_size)
    assert (result.num_genuine, result.num_impostor) == (case["num_genuine_pairs"], case["num_impostor_pairs"])
    assert result.auc == pytest.approx(case["expected"]["auc"], abs=1e-6)
    for text, far in fars.items():
        assert result.tar[far] == pytest.approx(case["expected"]["tpr_at_fpr"][text]["tpr"], abs=1e-9)


def test_verification_by_plain_counting():
    q, g, pids, g_pids, camids, g_camids = inputs = drawn(4, step=0.5)
    d = ((q[:, None] - g) ** 2).sum(-1)
    same, seen = pids[:, None] == g_pids, np.broadcast_to(g_pids != -1, d.shape)
    genuine, impostor = d[same & seen & (camids[:, None] != g_camids)], d[~same & seen]
    result = verify(*inputs, metric="euclidean", fars=(0.0, 0.05, 0.3))
    assert (result.num_genuine, result.num_impostor) == (len(genuine), len(impostor))
    wins = (genuine[:, None] < impostor).mean() + (genuine[:, None] == impostor).mean() / 2
    assert result.auc == pytest.approx(wins, abs=1e-12)
    for far, tar in result.tar.items():
        allowed = [t for t in genuine if (impostor <= t).sum() <= far * len(impostor)]
        assert tar == pytest.approx(len([d for d in genuine if allowed and d <= max(allowed)]) / len(genuine))
        np.testing.assert_equal(result.threshold[far], max(allowed, default=np.nan))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_verification_decides_ties_exactly(metric):
    """Copies of a genuine image among the impostors: a matrix product sees them at other distances by its rounding."""
    q, g, pids, g_pids, camids, g_camids = drawn(6, num_query=12, num_gallery=60, dim=130)
    g[:12], g[12:24] = q, q
    exact = [[_exact(a, b, metric) for b in g] for a in q]
    same = pids[:, None] == g_pids
    kept = (g_pids != -1) & ~(same & (camids[:, None] == g_camids))
    pairs = [(exact[i][j], same[i, j]) for i, j in zip(*kept.nonzero(), strict=True)]
    genuine, impostor = ([d for d, right in pairs if right == wanted] for wanted in (True, False))
    assert set(genuine) & set(impostor)
    wins = sum((a < b) + (a == b) / 2 for a in genuine for b in impostor) / len(genuine) / len(impostor)
    result = verify(q, g, pids, g_pids, camids, g_camids, metric=metric, fars=(0.1,), block_size=7)
    assert result.auc == pytest.approx(wins, abs=1e-12)
    allowed = [a for a in genuine if sum(b <= a for b in impostor) <= 0.1 * len(impostor)]
    assert result.tar[0.1] == pytest.approx(len(allowed) / len(genuine))


def _exact(a, b, metric):
    """A Fraction that falls or rises with the distance: nothing is rounded."""
    a, b = ([Fraction(float(x)) for x in row] for row in (a, b))
    dot, aa, bb = (sum(x * y for x, y in zip(*rows, strict=True)) for rows in ((a, b), (a, a), (b, b)))
    return aa + bb - 2 * dot if metric == "euclidean" else 1 - dot * abs(dot) / (aa * bb)


@pytest.mark.parametrize("scale", [2.0**-43, 2.0**-660, 2.0**660])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_magnitude_changes_nothing(metric, scale):
    q, g, *ids = (x.astype(np.float64) if x.dtype == np.float32 else x for x in drawn(3))
    plain, scaled = (verify(q * f, g * f, *ids, metric=metric, fars=(0.1,)) for f in (1, scale))
    assert (plain.auc, plain.tar) == (scaled.auc, scaled.tar)
    if metric == "cosine" or scale < 1:
        factor = 1 if metric == "cosine" else scale**2
        assert scaled.threshold[0.1] == plain.threshold[0.1] * factor or scale**2 == 0
    assert single_shot(q * scale, g * scale, *ids, metric=metric).mAP == single_shot(q, g, *ids, metric=metric).mAP


def test_misspelt_options_are_refused():
    for protocol in (single_shot, evaluate_camera_pairs):
        with pytest.raises(TypeError, match=rf"{protocol.__name__}.*same_cameras"):
            protocol(*drawn(7), same_cameras=True)


def test_every_score_takes_the_rules():
    """Clothes that may not agree are what cameras are in the standard protocol."""
    q, g, pids, g_pids, camids, g_camids = drawn(5, num_query=20, num_gallery=90)
    clothes = {"clothes": (camids[::-1], (g_camids + g_pids) % 3)}
    standard = (q, g, pids, g_pids, *clothes["clothes"])
    rules = {"exclude": (("pid", "clothes"),), "other_ids": clothes}
    inputs = (q, g, pids, g_pids, camids, g_camids)
    a, b = single_shot(*inputs, **rules), single_shot(*standard)
    assert (a.mAP, a.num_valid) == (b.mAP, b.num_valid) != (single_shot(*inputs).mAP, 0)
    a, b = verify(*inputs, **rules), verify(*standard)
    assert (a.auc, a.tar, a.num_genuine) == (b.auc, b.tar, b.num_genuine)
    assert a.num_genuine != verify(*inputs).num_genuine


@pytest.mark.parametrize("rules", [{}, {"exclude": (("pid", "camid"), ("pid", "clothes"))}])
def test_camera_pairs(rules):
    inputs = drawn(7, num_query=20, num_gallery=120, people=8)
    clothes = np.arange(20) % 2, np.arange(120) % 2
    result = evaluate_camera_pairs(*inputs, **rules, other_ids={"clothes": clothes})
    assert result.mAP.shape == (3, 3)
    for r, c in itertools.product(range(3), range(3)):
        of_query, of_gallery = inputs[4] == result.query_camids[r].item(), inputs[5] == result.gallery_camids[c].item()
        part = [inputs[0][of_query], inputs[1][of_gallery]]
        part += [ids[of] for ids, of in zip(inputs[2:], (of_query, of_gallery) * 2, strict=True)]
        of_part = {"clothes": (clothes[0][of_query], clothes[1][of_gallery])}
        aps = np.array([row[0] for row in naive(*part, **rules, other_ids=of_part)])
        assert result.num_valid[r, c] == (~np.isnan(aps)).sum()
        if r == c:
            assert result.mAP[r, c].isnan()
        else:
            assert result.mAP[r, c].item() == pytest.approx(np.nanmean(aps), abs=1e-12)


def test_bootstrap_interval():
    result = evaluate_ranking(*arrays("invalid_queries"))
    values = result.ap[~result.ap.isnan()]
    low, high = bootstrap(result)
    assert low < result.mAP < high
    width = 2 * 1.96 * values.std().item() / len(values) ** 0.5  # what the normal approximation gives
    assert high - low == pytest.approx(width, rel=0.15)
    assert bootstrap(result) == (low, high)
    narrow = bootstrap(result, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    low, high = bootstrap(result, "rank1")
    assert low <= result.rank(1) <= high
    with pytest.raises(ValueError, match="unknown measure 'map'"):
        bootstrap(result, "map")


def test_permutation_test():
    q, g, *ids = arrays("ordinary")
    rng = np.random.default_rng(0)
    noisy = evaluate_ranking(q + rng.normal(size=q.shape).astype(np.float32) * 4, g, *ids)
    plain = evaluate_ranking(q, g, *ids)
    difference, p = permutation_test(noisy, plain, samples=2000)
    assert difference == pytest.approx(plain.mAP - noisy.mAP, abs=1e-12)
    assert p < 0.05
    assert permutation_test(plain, plain, samples=100) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not of the same queries"):
        permutation_test(plain, evaluate_ranking(*arrays("invalid_queries")))

    # Eight queries: every one of the 256 sign patterns, counted.
    first, second = (evaluate_ranking(*drawn(s, num_query=8, num_gallery=200)) for s in (1, 2))
    change = (second.ap - first.ap).numpy()
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    share = (np.abs(signs @ change) >= abs(change.sum()) - 1e-12).mean()
    assert permutation_test(first, second)[1] == pytest.approx(share, abs=0.03)
