"""What the cluster notebook is made of: answers that survive a new clustering, questions, and a table to train on."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import reidlib
from reidlib.data.samples import Sample
from reidlib.evaluation import jaccard_graph
from reidlib.training import pseudo_labels
from reidlib.workbook import clusters
from reidlib.workbook.clusters import Link


def blobs(sizes, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.eye(len(sizes), 8)
    return torch.from_numpy(np.repeat(centers, sizes, axis=0) + spread * rng.normal(size=(sum(sizes), 8))).float()


def test_answers_join_and_part_clusters_again_after_each_clustering() -> None:
    feats = blobs([4, 4, 4, 2])
    names = [f"{n}.jpg" for n in range(14)]
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [-1, -1])
    links = [Link("0.jpg", "5.jpg", "same"), Link("8.jpg", "11.jpg", "different"), Link("12.jpg", "gone.jpg", "same")]
    found = clusters.with_links(labels, links, names, feats)
    assert found[:8].tolist() == [0] * 8
    assert found[8] != found[11]
    assert (found[8:12] > 0).all()
    assert found[12:].tolist() == [-1, -1]
    assert clusters.with_links(labels, [*links, Link("12.jpg", "13.jpg", "same")], names, feats)[12:].tolist() == [4, 4]
    other = torch.tensor([5] * 8 + [-1] * 6)  # another clustering: the same answers hold
    again = clusters.with_links(
        other, [Link("0.jpg", "5.jpg", "different"), Link("1.jpg", "8.jpg", "same")], names, feats
    )
    assert again[:4].tolist() == [5] * 4
    assert again[4:8].tolist() == [6] * 4
    assert again[8] == 5
    tied = [Link("0.jpg", "1.jpg", "same"), Link("0.jpg", "1.jpg", "different")]
    assert clusters.with_links(labels, tied, names, feats).tolist() == labels.tolist()


def test_answers_are_rows_of_a_table(tmp_path) -> None:
    file = tmp_path / "links.csv"
    assert clusters.read_links(file) == []
    clusters.add_link(file, Link("a, b.jpg", "c.jpg", "same", "hat"))
    clusters.add_link(file, Link("d.jpg", "c.jpg", "different"))
    clusters.add_link(file, Link("c.jpg", "a, b.jpg", "different"))
    assert clusters.read_links(file) == [Link("d.jpg", "c.jpg", "different"), Link("c.jpg", "a, b.jpg", "different")]
    file.write_text("path,other,verdict,note\na,b,maybe,\n")
    with pytest.raises(ValueError, match="line 2: 4 columns with a verdict of same, different are needed"):
        clusters.read_links(file)


def test_a_sweep_and_questions() -> None:
    feats = blobs([12] * 6, spread=0.25)
    graph, truth = jaccard_graph(feats, k1=8, k2=3), np.repeat(np.arange(6), 12)
    sweep = clusters.eps_sweep(graph, [0.3, 0.5, 0.6, 0.9], truth=truth)
    assert sweep.index.tolist() == [0.3, 0.5, 0.6]  # the graph ends at 0.65
    assert sweep["outliers"].is_monotonic_decreasing
    assert {"clusters", "largest", "ari"} <= set(sweep.columns)
    labels, table = pseudo_labels(graph, eps=0.4, camids=np.arange(72) % 2)
    doubts = clusters.doubtful(table)["doubt"]
    assert doubts.is_monotonic_decreasing
    asked = clusters.questions(graph, labels, table, eps=0.4)
    for _, row in asked.iterrows():
        assert (labels[row["a"]] == labels[row["b"]]) == (row["kind"] == "split")
    pairs = clusters.random_pairs(graph, labels, 20)
    assert (pairs["kind"] == "within").sum() == 10
    assert all((labels[a] == labels[b]) == (kind == "within") for kind, a, b in pairs[["kind", "a", "b"]].values)
    names = [str(n) for n in range(72)]
    links = [
        Link(names[a], names[b], "same" if truth[a] == truth[b] else "different") for a, b in pairs[["a", "b"]].values
    ]
    found = clusters.answered(pairs, links, names).loc["within"]
    assert found["answered"] == found["asked"] == 10
    assert found["from"] <= found["same"] <= found["to"]


def test_the_interval_of_a_share() -> None:
    assert clusters.share_interval(0, 0) == (0, 1)
    assert clusters.share_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert clusters.share_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)


def test_members_are_the_closest_one_of_each_camera_and_the_farthest() -> None:
    feats = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [1.0, 0.9], [0.0, 1.0]])
    shown = clusters.members(feats, torch.tensor([0, 0, 0, 0, 1]), 0, [1, 1, 2, 2, 3])
    assert shown[-1] == 3
    assert {1, 2} <= {[1, 1, 2, 2, 3][n] for n in shown}


def test_clusters_are_a_dataset_to_train_on(tiny, tmp_path) -> None:
    labels = torch.tensor([s.pid - 3 if s.pid > 3 else -1 for s in tiny.train])
    counts = clusters.export_clusters(tmp_path / "mine.csv", tiny.train, labels, tiny, tested=0.3)
    data = reidlib.load_dataset(str(tmp_path / "mine.csv"))
    assert {split: len(samples) for split, samples in data.splits.items()} == counts
    assert sum(counts.values()) == (labels >= 0).sum()
    assert min(counts.values()) > 0
    person = {str(Sample(*s[:3]).path.resolve()): s.pid for s in tiny.train}
    for split in data.splits.values():
        pairs = {(s.pid, person[str(s.path.resolve())]) for s in split}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert not {s.pid for s in data.train} & {s.pid for s in data.query}


def test_a_table_to_look_at_has_words_and_no_empty_numbers() -> None:
    table = pd.DataFrame({"pair_precision": [0.456, math.nan], "nearest": [-1, 3], "ari": [0.1234, 0.2]})
    shown = clusters.readable(table)
    assert list(shown) == ["pair precision", "nearest", "ARI"]
    assert shown.values.tolist() == [[0.46, "", 0.12], ["", 3, 0.2]]
