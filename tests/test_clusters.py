"""Learning without labels: Jaccard graphs, pseudo-labels and the memory, against recorded cases and plain loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import one_thread  # noqa: F401 (a fixture)

from reidlib.evaluation import jaccard_graph, rerank

FOLDER = Path(__file__).parent / "fixtures" / "clustering"
BY_CAMERA = {
    "plain": {"lists": "rerank"},
    "full_2_4": {"camera": (5, 20, 2, 4)},
    "full_warmup_3_3": {"camera": (5, 20, 3, 3)},
    "ckrnns_only": {"camera": (5, 20, 0, 0)},
    "clqe_only": {"camera": (0, 0, 2, 4), "lists": "rerank"},
}
JACCARD = {"30_k2_6": {}, "20_k2_6": {"k1": 20}, "30_k2_1": {"k2": 1}}


def recorded(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def graph_case(name):
    """Features, arguments and the recorded case of a graph."""
    if name in JACCARD:
        return recorded("jaccard_features")["features"], JACCARD[name], recorded(f"jaccard_k1_{name}")
    inputs = recorded("caj_features")
    return inputs["features"], BY_CAMERA[name] | {"camids": inputs["cam"]}, recorded(f"caj_{name}")


def matrix(case):
    """The distances (N, N) of a recorded case."""
    row = np.repeat(np.arange(case["n"]), case["row_count"])
    column = np.cumsum(case["col_gap"].astype(np.int64))
    distances = np.ones((case["n"], case["n"]), np.float32)
    distances[row, column] = distances[column, row] = case["val"]
    return distances


def whole(graph):
    """A graph as a matrix, with 1 where it holds nothing."""
    distances, entries = np.ones(graph.shape, np.float32), graph.tocoo()
    distances[entries.row, entries.col] = entries.data
    return distances


def drawn(count, seed=0, clusters=6, cameras=3, dim=16):
    """Features (N, D) of `clusters` clusters, and a camera each."""
    rng = np.random.default_rng(seed)
    centers, which = rng.normal(size=(clusters, dim)), rng.integers(0, clusters, count)
    feats = centers[which] + 0.5 * rng.normal(size=(count, dim))
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    return feats.astype(np.float32), rng.integers(0, cameras, count)


# ---- Jaccard graphs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*JACCARD, *BY_CAMERA])
def test_recorded_distances(name):
    feats, arguments, case = graph_case(name)
    expected = matrix(case)
    np.testing.assert_allclose(whole(jaccard_graph(feats, keep=1.0, **arguments)), expected, atol=2e-6)
    graph = jaccard_graph(torch.from_numpy(feats), **arguments)
    assert (graph.format, graph.dtype, graph.shape) == ("csr", np.float32, expected.shape)
    assert (graph != graph.T).nnz == 0
    assert graph.data.max() <= 0.65
    kept = np.zeros(expected.shape, bool)
    kept[graph.tocoo().row, graph.tocoo().col] = True
    near = np.abs(expected - 0.65) < 5e-6
    assert (kept == (expected <= 0.65))[~near].all()


def test_recorded_reranking_by_camera():
    case = recorded("caj_rerank")
    arguments = {"k1": 20, "square_twice": True}
    for name, camera in {"plain": None, "ca": (5, 20, 2, 4), "ca_k2_3_3": (5, 20, 3, 3)}.items():
        cameras = {"query_camids": case["cam_query"], "gallery_camids": case["cam_gallery"], "camera": camera}
        distances = rerank(case["query"], case["gallery"], **arguments, **cameras)
        np.testing.assert_allclose(distances.numpy(), case[f"final_{name}"], atol=2e-6)
    with pytest.raises(ValueError, match="camera needs camids, one for each of the 240 images, got 0"):
        rerank(case["query"], case["gallery"], camera=(5, 20, 2, 4))


def by_loops(feats, k1, k2, camids, camera, lists):
    """The distances (N, N) in float64, one image at a time."""
    count = len(feats)
    x = feats.astype(np.float64)
    d = 2 - 2 * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    np.fill_diagonal(d, -1)  # itself first
    order = np.argsort(d, axis=1, kind="stable")
    same = [sorted(order[i], key=lambda j, i=i: camids[j] != camids[i]) for i in range(count)]
    other = [sorted(order[i], key=lambda j, i=i: camids[j] == camids[i]) for i in range(count)]

    def mutual(ranks, i, k):
        return [j for j in ranks[i][:k] if i in ranks[j][:k]]

    v = np.zeros((count, count))
    for i in range(count):
        if camera:
            members = mutual(same, i, camera[0] + 1) + mutual(other, i, camera[1] + 1)
        else:
            core = mutual(order, i, k1 + (lists == "rerank"))
            members = list(core)
            for j in core:
                more = mutual(order, j, round(k1 / 2) + 1)
                members += more if len(set(more) & set(core)) > 2 / 3 * len(more) else []
        members = sorted(set(members))
        v[i, members] = np.exp(-np.maximum(d[i, members], 0))
    v /= v.sum(1, keepdims=True)
    if camera:
        near = [[*same[i][: camera[2]], *other[i][: camera[3]]] for i in range(count)]
    else:
        near = [order[i][:k2] for i in range(count)]
    v = np.stack([v[n].mean(0) for n in near])
    common = np.minimum(v[:, None], v[None]).sum(-1)
    return 1 - common / (2 - common)


@pytest.mark.parametrize("camera", [None, (3, 8, 2, 3)])
@pytest.mark.parametrize(("count", "cameras"), [(60, 3), (20, 2), (60, 1), (2, 2), (1, 1)])
def test_equals_plain_loops_where_images_or_cameras_are_few(count, cameras, camera):
    feats, camids = drawn(count, cameras=cameras)
    for lists in ("cluster", "rerank"):
        graph = jaccard_graph(feats, camids=camids, camera=camera, lists=lists, keep=1.0)
        np.testing.assert_allclose(whole(graph), by_loops(feats, 30, 6, camids, camera, lists), atol=2e-6)


def test_identical_images_are_close():
    feats = np.repeat(drawn(1)[0], 60, axis=0)
    graph = jaccard_graph(feats, camids=np.arange(60) % 2, camera=(5, 20, 2, 4))
    assert whole(graph).max() < 0.65
    assert whole(jaccard_graph(feats)).max() < 0.6
    twins = np.repeat(drawn(30)[0], 2, axis=0)
    pairs = whole(jaccard_graph(twins, k2=2, k1=4))[::2, 1::2].diagonal()
    assert pairs.max() == 0
    assert jaccard_graph(twins, k2=2, k1=4).nnz == (whole(jaccard_graph(twins, k2=2, k1=4)) < 1).sum()  # zeros are kept


def test_length_threads_and_blocks_change_nothing():
    feats, _ = drawn(300)
    graph = jaccard_graph(feats)
    longer = feats * np.linspace(1, 2, 300, dtype=np.float32)[:, None]
    np.testing.assert_allclose(whole(jaccard_graph(longer, keep=1.0)), whole(jaccard_graph(feats, keep=1.0)), atol=2e-6)
    assert (jaccard_graph(feats * 2) != graph).nnz == 0
    torch.set_num_threads(3)
    again = jaccard_graph(feats)
    assert (again.indices == graph.indices).all()
    assert (again.data == graph.data).all()


def test_wrong_arguments_are_named():
    feats, camids = drawn(40)
    broken = feats.copy()
    broken[17, 3] = np.nan
    for arguments, message in (
        ({"feats": broken}, "feats has a NaN or infinite value in row 17"),
        ({"feats": feats[:0]}, "feats has no rows"),
        ({"k1": 0}, "k1 must be at least 1"),
        ({"lists": "list"}, "unknown lists 'list'"),
        ({"keep": 1.5}, "keep must be above 0 and at most 1"),
        ({"camera": (5, 20, 2, 4)}, "camera needs camids, one for each of the 40 images, got 0"),
        ({"camera": (5, 20, 2, 4), "camids": camids[:7]}, "of the 40 images, got 7"),
        ({"camera": (5, -1, 2, 4), "camids": camids}, "camera must be four numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            jaccard_graph(**({"feats": feats} | arguments))
