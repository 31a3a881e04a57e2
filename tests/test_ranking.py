"""The evaluator against recorded cases, and against a naive loop."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from eval_cases import CASES, STANDARD, arrays, check, drawn, left_out, naive, one_thread  # noqa: F401 (a fixture)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from reidlib.evaluation import kernels
from reidlib.evaluation.ranking import evaluate_distances, evaluate_ranking, rank_gallery
from reidlib.evaluation.reranking import rerank
from reidlib.evaluation.spaces import Ids, Space

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = ("ties_lattice", "junk_distractors", "zero_vectors", "single_gallery")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]
EXPECTED = [
    (name, key, metric)
    for name, case in CASES.items()
    for key in ("expected", "expected_drop_junk")
    for metric in ("cosine", "euclidean")
    if "mAP" in case.get(key, {}).get(metric, {})
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_size", [None, 1, 64])
@pytest.mark.parametrize(("name", "key", "metric"), EXPECTED)
def test_golden(name, key, metric, block_size, device):
    if block_size == 1 and CASES[name]["num_query"] * CASES[name]["num_gallery"] > 10_000:
        block_size = 13
    inputs = [torch.from_numpy(a) for a in arrays(name)]
    result = evaluate_ranking(*inputs, metric=metric, device=device, block_size=block_size)
    assert result.cmc.shape == (50,)
    check(result, CASES[name][key][metric])


def check_naive(result, inputs, **options):
    expected = naive(*inputs, **options)
    for i, (ap, inp, first, _) in enumerate(expected):
        assert result.first_match[i] == first
        np.testing.assert_allclose([result.ap[i], result.inp[i]], [ap, inp], rtol=1e-12)
    aps = np.array([row[0] for row in expected])
    assert result.mAP == pytest.approx(np.nanmean(aps), abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rank_lists_are_the_order_that_is_counted(metric):
    for name in ("junk_distractors", "zero_vectors", "ties_block_edges", "kept_fewer_than_max_rank"):
        inputs = arrays(name)
        expected = naive(*inputs, metric=metric)
        for k, block_size in ((3, None), (10, 7), (60, 64)):
            top = rank_gallery(*inputs, k=k, metric=metric, block_size=block_size)
            assert top.indices.shape == (len(expected), k)
            assert (top.indices.dtype, top.distances.dtype) == (torch.int64, torch.float32)
            for i, (*_, order) in enumerate(expected):
                length = min(k, len(order))
                assert top.indices[i, :length].tolist() == order[:length].tolist()
                assert (top.indices[i, length:] == -1).all()
                assert top.distances[i, length:].isinf().all()
                assert not top.matches[i, length:].any()
                assert top.matches[i, :length].tolist() == (inputs[3][order[:length]] == inputs[2][i]).tolist()
                g = torch.from_numpy(inputs[1][order[:length]]).double()
                q = torch.from_numpy(inputs[0][i : i + 1]).double()
                far = 1 - torch.cosine_similarity(q, g, eps=1e-12) if metric == "cosine" else torch.cdist(q, g)[0]
                torch.testing.assert_close(top.distances[i, :length].double(), far, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_dtypes_and_strides(dtype, metric):
    q, g, *ids = (torch.from_numpy(a) for a in arrays("ordinary"))
    q, g = q.to(dtype), g.to(dtype)
    result = evaluate_ranking(q.T.contiguous().T, g.repeat(2, 2)[::2, : g.shape[1]][: len(g)], *ids, metric=metric)
    rows = g.repeat(2, 2)[::2, : g.shape[1]][: len(g)]
    check_naive(result, [q.double().numpy(), rows.double().numpy(), *(i.numpy() for i in ids)], metric=metric)


def test_float64_differences_below_float32_are_seen():
    q, g = np.ones((1, 2)), np.array([[1 + 1e-9, 1], [1, 1 + 2e-9], [1 + 5e-10, 1]])
    ids = [np.array(x) for x in ([1], [2, 1, 2], [0], [1, 1, 1])]
    for metric in ("euclidean",):
        assert evaluate_ranking(q, g, *ids, metric=metric).first_match.tolist() == [3]
    assert evaluate_ranking(q.astype(np.float32), g.astype(np.float32), *ids).first_match.tolist() == [2]  # all equal


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("num_query", "num_gallery", "dim", "step"), [(6, 15, 2, 0.5), (3, 20, 2, 0.5), (5, 40, 3, 1)])
def test_ties_are_those_of_exact_arithmetic(num_query, num_gallery, dim, step, metric):
    for seed in range(41):
        inputs = drawn(seed, num_query, num_gallery, dim, step=step)
        top = rank_gallery(*inputs, k=num_gallery, metric=metric)
        for i, (*_, order) in enumerate(naive(*inputs, metric=metric)):
            assert top.indices[i, : len(order)].tolist() == order.tolist(), (seed, i)


def test_equal_directions_tie():
    """Histograms, binary codes and their multiples: what points the same way is at one distance, however long it is."""
    rng = np.random.default_rng(0)
    for histogram in rng.integers(0, 100, (50, 64)):
        g = np.stack([histogram * factor for factor in (7, 1, 3, 1000, 11)]).astype(np.float32)
        q = rng.integers(0, 100, (1, 64)).astype(np.float32)
        top = rank_gallery(q, g, [1], [1, 2, 3, 4, 5], [0], [1] * 5, k=5)
        assert top.indices.tolist() == [[0, 1, 2, 3, 4]]
        assert rank_gallery(g[:1], g, [1], [1, 2, 3, 4, 5], [0], [1] * 5, k=5).distances.eq(0).all()


def halved(terms):
    while (n := len(terms)) > 1:
        half = (n + 1) // 2
        terms = [a + b for a, b in itertools.zip_longest(terms[:half], terms[half:], fillvalue=0.0)]
    return terms[0]


@pytest.mark.parametrize("kind", ["numba", "torch"])
def test_exact_distances_are_ieee_arithmetic_in_the_documented_order(kind, monkeypatch):
    """As Python's floats have it, one operation at a time: the same bits on every processor."""
    monkeypatch.setattr(kernels, "kind", lambda device: kind)
    rows = np.random.default_rng(0).normal(size=(3000, 7))
    each = torch.arange(len(rows))
    ids = Ids(each, each, each, each)
    for metric in ("cosine", "euclidean"):
        space = Space(rows, metric, None, ids)
        block = space.block(0, torch.from_numpy(rows), ids)
        for i, distance in enumerate(space.exact(each, each.flip(0), block).tolist()):
            q, g = rows[i].tolist(), rows[-1 - i].tolist()
            if metric == "cosine":
                dot, qq, gg = (halved([a * b for a, b in zip(*rows, strict=True)]) for rows in ((q, g), (q, q), (g, g)))
                assert distance == 1 - math.copysign(math.sqrt(dot * dot / (qq * gg)), dot)
            else:
                assert distance == halved([(a - b) * (a - b) for a, b in zip(q, g, strict=True)])
        assert space.norms.tolist() == [math.sqrt(halved([a * a for a in row])) for row in rows.tolist()]


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e18])
def test_magnitude_changes_nothing(scale):
    q, g, *ids = arrays("ordinary")
    factor = np.float32(2.0 ** np.round(np.log2(scale)))
    for metric in ("cosine", "euclidean"):
        plain, scaled = (evaluate_ranking(q * f, g * f, *ids, metric=metric) for f in (np.float32(1), factor))
        assert torch.equal(plain.ap, scaled.ap)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, s) for s in (1e-13, 1e-30, 1e-42, 1e30)] + [(np.float64, 2.0**s) for s in (-664, -1060, 664)],
)
def test_only_zero_rows_are_zero(dtype, scale, metric):
    for seed, block_size in ((1, None), (2, 7)):
        q, g, *ids = drawn(seed, dim=7)
        with np.errstate(under="ignore"):
            q, g = (x.astype(dtype) * dtype(scale) for x in (q, g))
        if metric == "cosine":  # some rows stay ordinary, some are zero
            q[::3], g[::3], g[::7] = q[::3] / dtype(scale), g[::3] / dtype(scale), 0
        inputs, options = [q, g, *ids], {"metric": metric, "block_size": block_size}
        check_naive(evaluate_ranking(*inputs, **options), inputs, metric=metric)
        top = rank_gallery(*inputs, k=len(g), **options)
        for i, (*_, order) in enumerate(naive(*inputs, metric=metric)):
            assert top.indices[i, : len(order)].tolist() == order.tolist()


def test_squared_distances_that_overflow_are_refused():
    q, g, *ids = drawn()
    g = g.astype(np.float64)
    g[33] *= 1e160
    with pytest.raises(ValueError, match="gallery_feats is so much longer in row 33 than every query"):
        evaluate_ranking(q, g, *ids, metric="euclidean")
    check_naive(evaluate_ranking(q, g, *ids), [q, g, *ids])


RULES = {
    "standard": STANDARD,
    "cloth-changing": (*STANDARD, ("pid", "clothes")),
    "same clothes": (*STANDARD, ("pid", "!clothes")),
    "same track": (("pid", "track"),),
    "same camera and clothes": (("pid", "camid", "clothes"),),
    "nothing": (),
}


@pytest.mark.parametrize("step", [None, 1.0])
@pytest.mark.parametrize("rules", RULES)
def test_each_protocol_equals_a_naive_loop(rules, step, tmp_path):
    """Junk, ties, unknown clothes and queries without a match; streamed, as lists, of distances and re-ranked."""
    q, g, *ids = inputs = drawn(3, num_query=14, num_gallery=80, people=6, step=step)
    ids[0][2] = 77  # of nobody
    rng = np.random.default_rng(8)
    columns = {name: tuple(rng.integers(-1, 3, n) for n in (14, 80)) for name in ("clothes", "track")}
    options = {"exclude": RULES[rules], "other_ids": columns}
    expected = naive(*inputs, metric="euclidean", **options)
    assert np.isnan(expected[2][0])
    np.save(tmp_path / "g.npy", g)
    for gallery, block_size in ((g, None), (g, 7), (np.load(tmp_path / "g.npy", mmap_mode="r"), 33)):
        how = {"metric": "euclidean", "block_size": block_size}
        result = evaluate_ranking(q, gallery, *ids, **how, **options)
        check_naive(result, inputs, metric="euclidean", **options)
        lists = rank_gallery(q, gallery, *ids, k=80, **how, **options)
        for i, (*_, order) in enumerate(expected):
            assert lists.indices[i, : len(order)].tolist() == order.tolist()
            assert (lists.indices[i, len(order) :] == -1).all()
    distances = ((q[:, None].astype(np.float64) - g) ** 2).sum(-1) if step else rerank(q, g).numpy()
    of_matrix = evaluate_distances(distances, *ids, **options)
    for i in range(14):
        keep = [
            j
            for j in range(80)
            if ids[1][j] != -1
            and not left_out(
                {"pid": ids[0][i], "camid": ids[2][i]} | {n: c[0][i] for n, c in columns.items()},
                {"pid": ids[1][j], "camid": ids[3][j]} | {n: c[1][j] for n, c in columns.items()},
                RULES[rules],
            )
        ]
        order = sorted(keep, key=lambda j: distances[i, j])
        first = next((rank for rank, j in enumerate(order, 1) if ids[1][j] == ids[0][i]), -1)
        assert of_matrix.first_match[i] == first


def test_average_precision_by_trapezoids_equals_a_loop_over_all_ranks():
    inputs = drawn(3, num_query=14, num_gallery=80)
    result, found = evaluate_ranking(*inputs), []
    for pid, (*_, order) in zip(inputs[2], naive(*inputs), strict=True):
        right, old, area = 0, 1.0, 0.0
        for rank, j in enumerate(order, 1):
            hit = inputs[3][j] == pid
            right += hit
            area += hit * (old + right / rank) / 2
            old = right / rank
        found.append(area / right if right else 0.0)
    counted = result.counted("all", area="trapezoid")
    assert counted.mAP == pytest.approx(np.mean(found), abs=1e-12)
    np.testing.assert_allclose(result.trapezoid.nan_to_num(), found, rtol=1e-12)
    assert counted.mAP != result.counted("all").mAP
    assert "trapezoid" in repr(counted)
    assert "trapezoid" not in repr(result)
    assert counted.counted().mAP == result.mAP
    with pytest.raises(ValueError, match="unknown area 'box'"):
        result.counted(area="box")


def test_the_standard_rule_is_the_default_and_bad_rules_are_refused():
    inputs = drawn(3)
    clothes = {"clothes": (np.zeros(9, int), np.zeros(70, int))}
    same = evaluate_ranking(*inputs, exclude=[["camid", "pid"]], other_ids=clothes)
    assert torch.equal(same.ap.nan_to_num(), evaluate_ranking(*inputs).ap.nan_to_num())
    for rules in ("camid", ("pid", "camid"), (("camid",),), (("pid",),), (("pid", "pid"),)):
        with pytest.raises(ValueError, match="exclude is a list of lists of ids, each with pid and another"):
            evaluate_ranking(*inputs, exclude=rules)
    with pytest.raises(ValueError, match=r"cloth.*clothes"):
        evaluate_ranking(*inputs, exclude=(("pid", "cloth"),), other_ids=clothes)
    with pytest.raises(ValueError, match="query_pids has 9 entries, query_clothes has 8"):
        evaluate_ranking(*inputs, other_ids={"clothes": (np.zeros(8, int), np.zeros(70, int))})
    with pytest.raises(ValueError, match=r"no query has a right match.*left out: \[\('pid', 'clothes'\)\]"):
        evaluate_ranking(*inputs, exclude=(("pid", "clothes"),), other_ids=clothes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distances_from_elsewhere(dtype):
    q, g, *ids = drawn(5, step=0.5)
    matrix = (((q[:, None] - g) ** 2).sum(-1)).astype(dtype)
    check_naive(evaluate_distances(matrix, *ids), [q, g, *ids], metric="euclidean")
    assert matrix[4, 7] == dtype(((q[4] - g[7]) ** 2).sum())  # the caller's matrix is as it was
    with pytest.raises(ValueError, match="the pids ask for"):
        evaluate_distances(matrix.T, *ids)
    matrix[4, 7] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        evaluate_distances(matrix, *ids)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_query=st.integers(1, 12),
    num_gallery=st.integers(1, 90),
    dim=st.sampled_from([1, 2, 7, 130]),
    people=st.integers(1, 6),
    cameras=st.integers(1, 3),
    step=st.sampled_from([None, 0.5, 1.0, 4.0]),
    block_size=st.one_of(st.none(), st.integers(1, 40)),
    metric=st.sampled_from(["cosine", "euclidean"]),
    exclude=st.sampled_from([STANDARD, ()]),
    device=st.sampled_from(["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]),
)
def test_equals_a_naive_loop(
    seed, num_query, num_gallery, dim, people, cameras, step, block_size, metric, exclude, device
):
    inputs = drawn(seed, num_query, num_gallery, dim, people, cameras, step)
    options, where = {"metric": metric, "exclude": exclude}, {"block_size": block_size, "device": device}
    if all(np.isnan(row[0]) for row in naive(*inputs, **options)):
        with pytest.raises(ValueError, match="no query has a right match"):
            evaluate_ranking(*inputs, **options, **where)
    else:
        check_naive(evaluate_ranking(*inputs, **options, **where), inputs, **options)


def test_what_is_refused():
    q, g, *ids = drawn()
    names = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")
    for name in ("nan_in_query", "nan_in_gallery", "inf_in_gallery"):
        for block_size in (None, 3):
            with pytest.raises(ValueError, match=f"{name[7:]}_feats .* row 4"):
                evaluate_ranking(*arrays(name), block_size=block_size)
    with pytest.raises(ValueError, match="no query has a right match"):
        evaluate_ranking(*arrays("no_valid_at_all"))
    with pytest.raises(ValueError, match="query_feats has 8 rows, query_pids has 9"):
        evaluate_ranking(q[:8], g, *ids)
    with pytest.raises(ValueError, match="gallery_feats has 69 rows, gallery_pids has 70"):
        evaluate_ranking(q, g[:69], *ids)
    with pytest.raises(ValueError, match="query_feats has 5 dimensions, gallery_feats has 4"):
        evaluate_ranking(q, g[:, :4], *ids)
    with pytest.raises(ValueError, match="query_feats must be a matrix"):
        evaluate_ranking(q[0], g, *ids)
    with pytest.raises(ValueError, match="the gallery set is empty"):
        evaluate_ranking(q, g[:0], ids[0], ids[1][:0], ids[2], ids[3][:0])
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        evaluate_ranking(q, g, *ids, metric="cosin")
    for column, name in enumerate(names):
        for bad in (ids[column].astype(str), ids[column].astype(float), ids[column][:, None]):
            with pytest.raises(ValueError, match=f"{name} must be"):
                evaluate_ranking(q, g, *ids[:column], bad, *ids[column + 1 :])


def test_junk_queries_have_no_match():
    inputs = arrays("junk_in_query")
    result = evaluate_ranking(*inputs)
    junk = inputs[2] == -1
    assert junk.any()
    assert (result.first_match.numpy()[junk] == -1).all()
    assert result.num_valid == (~junk).sum()


def test_result_speaks():
    result = evaluate_ranking(*arrays("ordinary"), max_rank=3)
    assert result.cmc.shape == (3,)
    assert json.loads(json.dumps(result.to_dict()))["rank10"] == result.rank(10) > result.rank(1)
    assert "60 of 60 queries valid" in repr(result)
    with pytest.raises(ValueError, match="max_rank"):
        evaluate_ranking(*arrays("ordinary"), max_rank=0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_plain_torch_gives_the_same_bits(metric, monkeypatch):
    rows, pairs = torch.from_numpy(arrays("ordinary_large")[1]).double() / 3, torch.randint(0, 100, (2, 50))
    of_pairs = (rows, rows, torch.rand(len(rows)).double(), torch.rand(len(rows)).double(), metric == "cosine", *pairs)
    by_numba = kernels.squares(rows), kernels.distances(*of_pairs)
    plain = {name: evaluate_ranking(*arrays(name), metric=metric) for name in SMALL}
    monkeypatch.setattr(kernels, "kind", lambda device: "torch")
    assert torch.equal(kernels.squares(rows), by_numba[0])
    assert torch.equal(kernels.distances(*of_pairs), by_numba[1])
    for name, expected in plain.items():
        for block_size in (None, 50):
            result = evaluate_ranking(*arrays(name), metric=metric, block_size=block_size)
            torch.testing.assert_close(result.ap, expected.ap, rtol=0, atol=0, equal_nan=True)


INTERPRETED = """
import os, sys, torch
from test_ranking import SMALL, arrays, evaluate_ranking, kernels
from reidlib.evaluation import fused
for metric in ("cosine", "euclidean"):
    for name in SMALL:
        plain = evaluate_ranking(*arrays(name), metric=metric)
        used, kind, kernels.kind = [], kernels.kind, lambda device: "triton"
        screen = fused.screen
        fused.screen = lambda *a: used.append(screen(*a)) or used[-1]
        for capacity in (1 << 22, 5):
            fused.CAPACITY = capacity
            result = evaluate_ranking(*arrays(name), metric=metric)
            torch.testing.assert_close(result.ap, plain.ap, rtol=0, atol=0, equal_nan=True)
        fused.screen, kernels.kind = screen, kind
        print(name, metric, used[0][0].sum().item(), used[0][1].shape[0], [u is None for u in used])
"""


def test_fused_kernel_by_the_interpreter():
    pytest.importorskip("triton")
    env = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = run.stdout.splitlines()
    assert len(lines) == 2 * len(SMALL)
    assert any("True" in line for line in lines)  # a list that overflowed was left to the plain way


def test_fused_kernel_compiles_for_hopper():
    """Without a GPU: Triton brings its own assembler."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from reidlib.evaluation import fused

    kinds = ["*fp32"] * 4 + ["*i64"] * 2 + ["*fp32"] * 2 + ["*i32"] * 2 + ["*i64"] + ["i32"] * 5
    sizes = {"BM": fused.TILE[0], "BN": fused.TILE[1], "BK": 32, "CHUNK": fused.CHUNK}
    signature = dict(zip(fused._screen.arg_names, [*kinds, *["constexpr"] * 4], strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i in [*range(11), 13]}
    source = ASTSource(fused._screen, signature, constexprs=sizes, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": True}
    )
    assert "wgmma" in compiled.asm["ptx"]  # the product runs on the tensor cores
    assert len(compiled.asm["cubin"]) > 1000


def test_gallery_from_disk(tmp_path):
    q, g, *ids = arrays("ordinary")
    plain = evaluate_ranking(q, g, *ids, metric="euclidean")
    np.save(tmp_path / "g.npy", g)
    cuts = [(0, 100), (100, 101), (101, len(g))]
    paths = [tmp_path / f"{a}.safetensors" for a, _ in cuts]
    for (a, b), path in zip(cuts, paths, strict=True):
        save_file({"gallery.feats": torch.from_numpy(g[a:b]), "query.feats": torch.from_numpy(q)}, path)
    forms = {
        "map": np.load(tmp_path / "g.npy", mmap_mode="r"),
        "shards": paths,
        "function": lambda: (g[a:b] for a, b in cuts),
    }
    for name, form in forms.items():
        for block_size in (None, 33):
            result = evaluate_ranking(q, form, *ids, metric="euclidean", block_size=block_size)
            assert torch.equal(result.ap, plain.ap), name
        top = rank_gallery(q, form, *ids, k=5, block_size=33)
        assert torch.equal(top.indices, rank_gallery(q, g, *ids, k=5).indices)
    with pytest.raises(ValueError, match="gallery_feats has 101 rows, gallery_pids has 420"):
        evaluate_ranking(q, paths[:2], *ids)
    with pytest.raises(ValueError, match="NaN or infinite value in row 205"):
        evaluate_ranking(q, lambda: (g[:200], np.where(np.arange(9)[:, None] > 4, np.nan, g[:9])), *ids)
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="must hold one matrix"):
        evaluate_ranking(q, tmp_path / "two.safetensors", *ids)


def on_each_process(rank, processes, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, processes), rank=rank, world_size=processes)
    group = dist.group.WORLD
    for name in ("ordinary", "ties_block_edges", "junk_distractors"):
        q, g, pids, g_pids, camids, g_camids = arrays(name)
        cut = slice(len(g) * rank // processes, len(g) * (rank + 1) // processes)
        shard = (q, g[cut], pids, g_pids[cut], camids, g_camids[cut])
        result = evaluate_ranking(*shard, block_size=100, group=group)
        torch.save(result.ap, f"{folder}/{name}.{rank}")
        clothes = {"clothes": (pids % 3, g_camids[cut] % 3)}
        result = evaluate_ranking(*shard, group=group, exclude=(("pid", "clothes"),), other_ids=clothes)
        torch.save(result.ap, f"{folder}/clothes.{name}.{rank}")
    if rank == processes - 1:
        shard[1][3, 0] = np.nan
    try:
        evaluate_ranking(*shard, group=group)
    except ValueError as error:
        Path(f"{folder}/error.{rank}").write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gallery_shared_out(tmp_path, processes):
    mp.spawn(on_each_process, args=(processes, str(tmp_path / "store"), str(tmp_path)), nprocs=processes)
    for rank in range(processes):
        for name in ("ordinary", "ties_block_edges", "junk_distractors"):
            assert torch.equal(torch.load(tmp_path / f"{name}.{rank}"), evaluate_ranking(*arrays(name)).ap)
            clothes = {"clothes": (arrays(name)[2] % 3, arrays(name)[5] % 3)}
            whole = evaluate_ranking(*arrays(name), exclude=(("pid", "clothes"),), other_ids=clothes)
            assert torch.equal(torch.load(tmp_path / f"clothes.{name}.{rank}").nan_to_num(), whole.ap.nan_to_num())
        row = 300 * (processes - 1) // processes + 3
        message = f"process {processes - 1}: gallery_feats has a NaN or infinite value in row {row}"
        assert (tmp_path / f"error.{rank}").read_text() == message


def test_nothing_outside_is_changed():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            result = evaluate_ranking(*arrays("ordinary_large"))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    check(result, CASES["ordinary_large"]["expected"]["cosine"])


def test_any_number_of_threads():
    inputs = arrays("ordinary_large")
    one = evaluate_ranking(*inputs)
    torch.set_num_threads(3)
    assert torch.equal(evaluate_ranking(*inputs).ap, one.ap)


@pytest.mark.parametrize("dim", [1, 100, 129, 2048, 5000])
def test_products_stay_within_their_bound(dim):
    """On friendly and on hostile features: all of one sign, falling by magnitudes, cancelling."""
    torch.manual_seed(dim)
    draws = torch.randn(40, dim), torch.rand(40, dim), torch.randn(40, dim) * torch.logspace(6, -6, dim)
    camids = torch.zeros(40, dtype=torch.int64)
    for feats, metric in itertools.product(draws, ("cosine", "euclidean")):
        ids = Ids(camids, camids, camids, camids)
        space = Space(feats + (metric == "euclidean") * 30, metric, None, ids)
        block = space.block(0, space.rows, ids)
        everyone = torch.arange(40)
        scores = space.product(slice(0, 40), block).mul_(block.scale).sub_(block.shift).double()
        query, item = everyone.repeat_interleave(40), everyone.repeat(40)
        exact = space.score(space.exact(query, item, block), query).view(40, 40)
        bound = space.error(everyone, block)[:, None] + 2.0**-22 * exact.abs()
        assert ((scores - exact).abs() <= bound).all()
        low, high = space.bounds(space.exact(query, item, block), query, block)
        assert (low <= scores.flatten()).all()
        assert (scores.flatten() <= high).all()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what the highest memory was")
def test_memory_stays_bounded():
    """A gallery of half a million beside 300 queries: far less than one number a pair (1.1 GiB)."""
    run = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout) < 256


BOUNDED = """
import re, torch
from pathlib import Path
from reidlib.evaluation import evaluate_ranking
torch.set_num_threads(1)
def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
q, g = torch.randn(300, 8), torch.randn(500_000, 8)
ids = [torch.randint(n, (len(x),)) for n in (5000, 6) for x in (q, g)]
evaluate_ranking(q, g[:999], ids[0], ids[1][:999], ids[2], ids[3][:999])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
evaluate_ranking(q, g, *ids)
print(status("VmHWM") - before)
"""
