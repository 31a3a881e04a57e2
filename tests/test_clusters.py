"""Learning without labels: Jaccard graphs, pseudo-labels and the memory, against recorded cases and plain loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import one_thread  # noqa: F401 (a fixture)

from reidlib.evaluation import jaccard_graph, rerank
from reidlib.training import ClusterMemory, cluster_quality, pseudo_labels

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


# ---- pseudo-labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*JACCARD, *BY_CAMERA])
def test_recorded_labels(name):
    feats, arguments, case = graph_case(name)
    graph = jaccard_graph(feats, **arguments)
    for eps in ("0.40", "0.50", "0.60"):
        labels, table = pseudo_labels(graph, eps=float(eps))
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(labels, case[f"labels_{eps}"])
        assert table["size"].tolist() == np.bincount(labels[labels >= 0]).tolist()


def test_recorded_reliability():
    case, threshold = recorded("spcl_reliability"), None
    for epoch in (0, 1):
        graph = jaccard_graph(recorded("spcl_reliability_features")[f"features_{epoch}"])
        labels, table = pseudo_labels(graph, outliers="own", reliable=0.02, threshold=threshold)
        threshold = table.attrs["threshold"]
        assert threshold == pytest.approx(case[f"indep_threshold_{epoch}"], abs=1e-6)
        final = case[f"final_labels_{epoch}"]
        np.testing.assert_array_equal(labels, final)
        dropped, _ = pseudo_labels(graph, reliable=0.02, threshold=threshold)
        together = np.bincount(final)[final] > 1
        assert ((dropped.numpy() >= 0) == together).all()
        assert sorted(set(dropped.tolist())) == list(range(-1, dropped.max() + 1))  # without gaps
        kept = [final[dropped.numpy() == label] for label in range(dropped.max() + 1)]
        assert all(len(set(images)) == 1 for images in kept)


def test_table_against_plain_loops():
    feats, camids = drawn(120, clusters=12, dim=4)
    graph = jaccard_graph(feats, k1=10, keep=1.0)
    distances = whole(graph)
    labels, table = pseudo_labels(graph, eps=0.35, camids=camids)
    assert table.index.tolist() == list(range(labels.max() + 1))
    members = [np.flatnonzero(labels.numpy() == label) for label in table.index]
    for label, mine in enumerate(members):
        row = table.loc[label]
        within = distances[np.ix_(mine, mine)][~np.eye(len(mine), dtype=bool)].mean()
        far = [distances[np.ix_(mine, other)].mean() if n != label else 2 for n, other in enumerate(members)]
        assert (row["size"], row["cameras"]) == (len(mine), len(set(camids[mine])))
        assert row["mean_distance"] == pytest.approx(within, abs=1e-6)
        assert row["nearest_distance"] == pytest.approx(min(far), abs=1e-6)
        assert row["nearest"] == (np.argmin(far) if min(far) < 1 else -1)
    assert (table["nearest"] >= 0).any()


def test_few_images_and_no_clusters():
    feats, _ = drawn(40, clusters=40)
    graph = jaccard_graph(feats, k1=2, k2=1)
    labels, table = pseudo_labels(graph, eps=0.1)
    assert (labels == -1).all()
    assert len(table) == 0
    own, table = pseudo_labels(graph, eps=0.1, outliers="own", reliable=0.02)
    assert own.tolist() == list(range(40))
    assert len(table) == 40
    for method in ("dbscan", "hdbscan"):
        assert pseudo_labels(jaccard_graph(feats[:3]), method=method)[0].tolist() == [-1, -1, -1]
    identical = jaccard_graph(np.repeat(feats[:1], 60, axis=0))
    assert set(pseudo_labels(identical)[0].tolist()) == {0}
    assert set(pseudo_labels(identical, outliers="own", reliable=0.02)[0].tolist()) == {0}
    assert cluster_quality(labels)["outliers"] == 1


@pytest.mark.parametrize("method", ["hdbscan", "infomap"])
def test_other_methods(method):
    if method == "infomap":
        pytest.importorskip("infomap")
    inputs = recorded("jaccard_features")
    people = inputs["true"] >= 0
    labels, _ = pseudo_labels(jaccard_graph(inputs["features"]), method=method)
    assert cluster_quality(labels[people], truth=inputs["true"][people])["ari"] > 0.85


def test_quality_against_plain_loops():
    rng = np.random.default_rng(0)
    truth, labels = rng.integers(0, 4, 60), rng.integers(-1, 5, 60)
    found = cluster_quality(labels, truth=truth, previous=labels)
    pairs = [(i, j) for i in range(60) for j in range(i)]
    same = [truth[i] == truth[j] for i, j in pairs]
    linked = [labels[i] == labels[j] >= 0 for i, j in pairs]
    both = sum(a and b for a, b in zip(same, linked, strict=True))
    assert found["pair_precision"] == pytest.approx(both / sum(linked))
    assert found["pair_recall"] == pytest.approx(both / sum(same))
    assert found["agreement"] == 1
    assert (found["clusters"], found["outliers"]) == (5, pytest.approx((labels < 0).mean()))


def test_wrong_arguments_of_pseudo_labels_are_named():
    graph = jaccard_graph(drawn(40)[0])
    for arguments, message in (
        ({"eps": 0.7}, "eps \\+ reliable is 0.7, the graph keeps 0.65: give jaccard_graph a larger `keep`"),
        ({"eps": 0.6, "reliable": 0.06}, "give jaccard_graph a larger `keep`"),
        ({"eps": 0.01, "reliable": 0.02}, "eps must be above 0"),
        ({"outliers": "keep"}, "unknown outliers 'keep'"),
        ({"method": "kmeans"}, "unknown method 'kmeans'"),
    ):
        with pytest.raises(ValueError, match=message):
            pseudo_labels(graph, **arguments)


# ---- the memory ------------------------------------------------------------------------------------------------------


def leaf(array):
    return torch.from_numpy(array).requires_grad_()


@pytest.mark.parametrize("momentum", ["0.1", "0.2"])
@pytest.mark.parametrize("update", ["mean", "hard"])
def test_recorded_cluster_memory(update, momentum):
    case = recorded(f"cluster_memory_{update}_m{momentum}")
    how = {"mean": "sequential", "hard": "hard"}[update]
    memory = ClusterMemory(case["memory_0"], np.arange(12), momentum=float(momentum), update=how)
    for step in (1, 2, 3):
        feats = leaf(case[f"inputs_{step}"])
        loss = memory(feats, torch.from_numpy(case[f"targets_{step}"]))
        loss.backward()
        np.testing.assert_array_equal(memory.rows, case[f"memory_{step - 1}"])  # nothing moves before `step`
        memory.step()
        assert loss.item() == pytest.approx(float(case[f"loss_{step}"]), abs=1e-6)
        np.testing.assert_allclose(feats.grad, case[f"grad_{step}"], atol=1e-6)
        np.testing.assert_allclose(memory.rows, case[f"memory_{step}"], atol=1e-6)


def test_recorded_memory_of_images():
    case = recorded("hybrid_memory_usl")
    memory = ClusterMemory(case["memory_0"], case["labels"], momentum=0.2, normalise=False)
    for step in (1, 2, 3):
        feats = leaf(case[f"inputs_{step}"])
        loss = memory(feats, torch.from_numpy(case[f"indexes_{step}"]))
        loss.backward()
        memory.step()
        assert loss.item() == pytest.approx(float(case[f"loss_{step}"]), abs=1e-6)
        np.testing.assert_allclose(feats.grad, case[f"grad_{step}"], atol=1e-6)
        np.testing.assert_allclose(memory.rows, case[f"memory_{step}"], atol=1e-6)


def test_recorded_memory_from_source_to_target():
    case = recorded("hybrid_memory_uda")
    memory = ClusterMemory(case["memory_0"], case["labels"], momentum=0.2, normalise=False)
    for step in (1, 2, 3):
        source, target = leaf(case[f"source_inputs_{step}"]), leaf(case[f"target_inputs_{step}"])
        images = torch.from_numpy(case[f"target_indexes_{step}"]).long() + int(case["source_classes"])
        losses = memory(source, torch.from_numpy(case[f"source_targets_{step}"])), memory(target, images)
        sum(losses).backward()
        memory.step()
        for name, loss, feats in zip(("source", "target"), losses, (source, target), strict=True):
            assert loss.item() == pytest.approx(float(case[f"loss_{name}_{step}"]), abs=1e-6)
            np.testing.assert_allclose(feats.grad, case[f"grad_{name}_{step}"], atol=1e-6)
        np.testing.assert_allclose(memory.rows, case[f"memory_{step}"], atol=1e-6)


def test_memory_against_plain_loops():
    """Rows without a group are in no score, and the mean of a batch moves a row once."""
    rng = np.random.default_rng(0)
    rows, x = (torch.from_numpy(a) for a in (rng.normal(size=(5, 3)), rng.normal(size=(4, 3))))
    rows, index = rows / rows.norm(dim=1, keepdim=True), torch.tensor([0, 3, 3, 4])
    memory = ClusterMemory(rows, [2, -1, 0, 0, 2], momentum=0.3, temperature=0.5, update="batch_mean")
    loss = memory(x, index)
    unit = x / x.norm(dim=1, keepdim=True)
    means = {0: rows[[2, 3]].mean(0), 2: rows[[0, 4]].mean(0)}
    expected = []
    for each, group in zip(unit, (2, 0, 0, 2), strict=True):
        scores = {g: float(each @ m) / 0.5 for g, m in means.items()}
        expected.append(-scores[group] + np.log(sum(np.exp(s) for s in scores.values())))
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-6)
    memory.step()
    moved = 0.3 * rows[3] + 0.7 * unit[[1, 2]].mean(0)
    np.testing.assert_allclose(memory.rows[3], moved / moved.norm(), atol=1e-6)
    np.testing.assert_allclose(memory.rows[[1, 2]], rows[[1, 2]], atol=1e-6)
    memory.eval()(x, index)
    before = memory.rows.clone()
    memory.step()
    assert torch.equal(before, memory.rows)  # in eval mode nothing is kept


def test_wrong_arguments_of_the_memory_are_named():
    rows = torch.eye(3)
    for arguments, message in (
        ({"groups": [-1, -1, -1]}, "are there no clusters"),
        ({"groups": [0, 1]}, "needs rows \\(R, D\\) and the group of each"),
        ({"update": "mean"}, "unknown update 'mean'"),
        ({"momentum": 1.5}, "momentum must be from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterMemory(rows, **({"groups": [0, 1, 2], "momentum": 0.1} | arguments))
