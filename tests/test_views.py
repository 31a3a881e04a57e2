"""The helpers that notebooks share."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from reidlib.data.datasets import Sample
from reidlib.evaluation import Features
from reidlib.workbook import views

AP = [0.5, np.nan, 0.9, 0.1, 0.1, 1.0]


@pytest.mark.parametrize(
    ("show", "count", "picked", "words"),
    [
        ("worst", 3, [3, 4, 0], "The 3 worst of 6 queries by average precision, worst first"),
        ("best", 2, [5, 2], "The 2 best of 6 queries by average precision, best first"),
        ("best", 50, [5, 2, 0, 3, 4], "The 5 best of 6"),
        ("random", 2, None, r"2 of 6 queries drawn at random \(seed 0\)"),
    ],
)
def test_choose_queries(show: str, count: int, picked: list[int] | None, words: str) -> None:
    got, order = views.choose_queries(AP, show, count)
    if picked is None:
        assert got == sorted(got)
        assert 1 not in got
    else:
        assert got == picked
    assert re.match(words, order)
    assert views.choose_queries(torch.tensor(AP), show, count) == (got, order)


def test_chosen_queries_keep_their_order_and_may_lack_a_match() -> None:
    assert views.choose_queries(AP, "chosen", 9, chosen=[4, 1])[0] == [4, 1]
    for chosen in ([6], [], [-1]):
        with pytest.raises(ValueError, match="query indices from 0 to 5"):
            views.choose_queries(AP, "chosen", 9, chosen=chosen)
    with pytest.raises(ValueError, match="did you mean 'worst'"):
        views.choose_queries(AP, "worse", 3)
    with pytest.raises(ValueError, match="nothing to show: 0 queries have a match"):
        views.choose_queries([np.nan], "best", 3)


def test_choose_people_takes_all_samples_of_some_people() -> None:
    samples = [Sample(Path(str(i)), pid, 1) for i, pid in enumerate([-1, 0, 3, 4, 3, 5, 0, 4])]
    picked = views.choose_people(samples, 2, seed=1)
    pids = {samples[i].pid for i in picked}
    assert len(pids) == 2
    assert not pids & {-1, 0}
    assert picked == [i for i, s in enumerate(samples) if s.pid in pids]
    assert len(views.choose_people(samples, 99)) == 5


def test_rank_rows_carry_the_cosine_similarity_of_each_pair(tiny) -> None:
    generator = torch.Generator().manual_seed(0)

    def features(samples: tuple) -> Features:
        ids = torch.zeros(len(samples), dtype=torch.int64)
        return Features(torch.randn(len(samples), 8, generator=generator), ids, ids)

    query, gallery = features(tiny.query), features(tiny.gallery)
    ranked = torch.stack([torch.arange(3) + i for i in range(len(query))])
    ranked[2, 2] = -1
    queries, _, rows, similarity = views.rank_rows(tiny, query, gallery, ranked, [2, 0])
    assert queries == [tiny.query[2], tiny.query[0]]
    assert rows.tolist() == [[2, 3, -1], [0, 1, 2]]
    expected = torch.nn.functional.cosine_similarity(query.feats[0], gallery.feats[1], dim=0)
    assert similarity[1, 1].item() == pytest.approx(expected.item(), abs=1e-6)


def test_paths_are_told_from_the_root() -> None:
    assert views.below("/data/m/query/a.jpg", "/data/m") == "query/a.jpg"
    assert views.below("/else/a.jpg", "/data/m") == "/else/a.jpg"


def test_epoch_lines_and_tables() -> None:
    row = {"epoch": 3, "loss": 1.5, "accuracy": 0.25, "mAP": 0.5, "rank1": 0.75}
    assert views.epoch_line(row, 12) == "epoch   3/12  loss  1.500  accuracy  25.0%  mAP  50.0%  Rank-1  75.0%"
    table = views.percent_table({"a": {"rank1": 0.123}, "b": {"mAP": 1.0}})
    assert table.loc["a", "rank1"] == "12.3"
    assert table.loc["a", "mAP"] == ""
    assert table.loc["b", "mAP"] == "100.0"


def test_nobody_watches_without_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    drawn: list[int] = []
    views.LiveFigure(drawn.append)(1)
    assert drawn == []
    assert views.browse(lambda index: f"picture {index}", 5, start=3) == "picture 3"
    monkeypatch.setenv("JPY_SESSION_NAME", "ranklist.ipynb")
    assert views.is_interactive()
