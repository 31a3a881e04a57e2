"""Runs side by side: what differs, whether it is chance, and which queries moved."""

from types import SimpleNamespace

import pytest
import torch
from test_ranked import ranked  # noqa: F401, a fixture

from reidlib import plots
from reidlib.evaluation import bootstrap, pair_histogram, verify
from reidlib.workbook.comparison import (
    ap_table,
    moved_queries,
    open_runs,
    over_seeds,
    score_table,
    settings_that_differ,
)


@pytest.fixture
def other(ranked):  # noqa: F811
    return ranked.reranked(k1=6, k2=3)


def run(**params) -> SimpleNamespace:
    return SimpleNamespace(params={"run": str(params), "model": "osnet_x0_25", "settings": {"lr": 0.1}} | params)


def test_settings_that_differ_are_shown_and_no_others() -> None:
    runs = {"a": run(seed=0), "b": run(seed=1, settings={"lr": 0.2, "clip": 1})}
    table = settings_that_differ(runs)
    assert table.to_dict("index") == {
        "seed": {"a": "0", "b": "1"},
        "lr": {"a": "0.1", "b": "0.2"},
        "clip": {"a": "", "b": "1"},
    }


def test_two_names_of_one_run_are_refused(monkeypatch) -> None:
    opened = []

    def fake(name: str, **how: object) -> SimpleNamespace:
        opened.append((name, how))
        return SimpleNamespace(name=name.rpartition("/")[2])

    monkeypatch.setattr("reidlib.workbook.runs.Run.open", fake)
    assert list(open_runs(["a", "x/b"], output="there")) == ["a", "b"]
    assert opened == [("a", {"plugins": "", "output": "there"}), ("x/b", {"plugins": ""})]
    with pytest.raises(ValueError, match="different names, got b, b"):
        open_runs(["b", "x/b"])


def test_differences_have_an_interval_and_a_p_value(ranked, other) -> None:  # noqa: F811
    table = score_table({"plain": ranked, "re-ranked": other, "again": ranked})
    points = 100 * (other.result.mAP - ranked.result.mAP)
    assert table.loc["re-ranked", "Δ mAP"] == f"{points:+.1f}"
    low, high = (float(x) for x in table.loc["re-ranked", "Δ mAP, 95 %"].split(" to "))
    assert low <= points <= high
    assert 0 < float(table.loc["re-ranked", "p (mAP)"]) <= 1
    assert table.loc["plain", "Δ mAP"] == ""


def test_the_interval_of_a_difference_is_that_of_the_paired_queries(ranked, other) -> None:  # noqa: F811
    change = (other.result.ap - ranked.result.ap)[~ranked.result.ap.isnan()]
    draws = torch.randint(len(change), (20_000, len(change)), generator=torch.Generator().manual_seed(0))
    naive = change[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert bootstrap(other.result, against=ranked.result) == pytest.approx(naive.tolist(), abs=0.01)
    assert bootstrap(ranked.result, against=ranked.result) == (0, 0)


def test_runs_that_differ_in_their_seed_have_a_spread(ranked, other) -> None:  # noqa: F811
    runs = {"a": run(seed=0), "b": run(seed=1), "c": run(seed=0, model="osnet_x1_0")}
    table = over_seeds(runs, {"a": ranked, "b": other, "c": ranked})
    assert list(table.index) == ["a, b"]
    values = [100 * ranked.result.mAP, 100 * other.result.mAP]
    spread = abs(values[0] - values[1]) / 2**0.5
    assert table.loc["a, b", "mAP"] == f"{sum(values) / 2:.1f} ± {spread:.1f}"
    assert over_seeds({"a": run()}, {"a": ranked}).empty


def test_the_queries_that_moved_most_come_first(ranked, other) -> None:  # noqa: F811
    better, worse = moved_queries(ranked, other, 3)
    change = (other.result.ap - ranked.result.ap).nan_to_num()
    assert better[:1] == [int(change.argmax())] * bool(better)
    assert worse[:1] == [int(change.argmin())] * bool(worse)
    assert all(change[i] > 0 for i in better)
    assert all(change[i] < 0 for i in worse)
    assert moved_queries(ranked, ranked) == ([], [])


def test_points_are_average_precisions(ranked, other) -> None:  # noqa: F811
    table = ap_table(ranked, other)
    assert table["x"].to_numpy() == pytest.approx(100 * ranked.result.ap[table["at"]].numpy(), abs=1e-4)
    assert table["y"].to_numpy() == pytest.approx(100 * other.result.ap[table["at"]].numpy(), abs=1e-4)


def test_the_figures_say_how_many_and_refuse_what_does_not_fit(ranked, other) -> None:  # noqa: F811
    figure = plots.ap_scatter(ranked.result.ap, other.result.ap, ("plain", "re-ranked"))
    label = figure.axes[0].get_xlabel()
    better = int((other.result.ap > ranked.result.ap).sum())
    assert f"better: {better} " in label
    with pytest.raises(ValueError, match="the same queries, got 1 and 2"):
        plots.ap_scatter([0.1], [0.1, 0.2], ("a", "b"))
    rows = [{"epoch": 0, "mAP": 0.1}, {"epoch": 1}, {"epoch": 2, "mAP": 0.4}, {"epoch": 3, "mAP": 0.3}]
    figure = plots.learning_curves({"a": rows, "b": rows[:1]})
    (line, best, *_) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0, 10], [2, 40], [3, 30]]
    assert best.get_xydata().tolist() == [[2, 40]]
    with pytest.raises(ValueError, match="no run has a score called 'rank1'"):
        plots.learning_curves({"a": rows}, "rank1")


def test_pairs_are_counted_as_by_a_naive_loop_and_agree_with_the_thresholds(ranked) -> None:  # noqa: F811
    query, gallery, *ids = ranked.inputs
    found = pair_histogram(*ranked.inputs, bins=40, block_size=5)
    naive = torch.zeros(2, 40, dtype=torch.int64)
    query_pids, gallery_pids, query_camids, gallery_camids = (x.tolist() for x in ids)
    for i in range(len(query)):
        for j in range(len(gallery)):
            similarity = float(torch.nn.functional.cosine_similarity(query[i], gallery[j], dim=0))
            same = query_pids[i] == gallery_pids[j]
            if gallery_pids[j] != -1 and not (same and query_camids[i] == gallery_camids[j]):
                naive[int(not same), int((similarity + 1) * 20)] += 1
    assert torch.equal(found.same, naive[0])
    assert torch.equal(found.different, naive[1])
    fine = pair_histogram(*ranked.inputs, bins=20_000)
    drawn = plots.pair_similarities(fine.edges, fine.same, fine.different).axes[1].lines[0]
    far, tar = (values / 100 for values in drawn.get_data())
    exact = verify(*ranked.inputs, fars=(0.1,))
    at = int((1 - exact.threshold[0.1] + 1) * 10_000)
    assert float(tar[at]) == pytest.approx(exact.tar[0.1], abs=0.01)
    assert float(far[at]) <= 0.101
    figure = plots.pair_similarities(found.edges, found.same, found.different, {0.1: 1 - exact.threshold[0.1]})
    assert [len(axes.lines) for axes in figure.axes] == [1, 2]
    with pytest.raises(ValueError, match="0 pairs of one person, 40 of two"):
        plots.pair_similarities(found.edges, torch.zeros(40), torch.ones(40))
