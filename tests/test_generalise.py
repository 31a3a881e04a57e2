"""Domain generalisation: what the protocols train on and test on, and the published table beside one's own."""

import pandas as pd
import pytest

from reidlib.data.datasets import list_datasets
from reidlib.data.layouts import with_splits
from reidlib.workbook import generalise


@pytest.mark.parametrize("protocol", generalise.PROTOCOLS)
def test_protocols_name_datasets_and_never_train_on_a_target(protocol: str) -> None:
    for one in generalise.rounds(protocol):
        assert {*one.sources, *with_splits(one.targets)} <= {*list_datasets()}
        assert not {*one.sources} & {*one.targets}
    published = generalise.published(protocol)
    ours = {
        ("+".join(r.sources) + "-combineall" * (r.combineall and protocol == "single"), t)
        for r in generalise.rounds(protocol)
        for t in r.targets
    }
    printed = {(row.sources, row.target) for row in published.itertuples()}
    if protocol == "p1":
        assert printed == {(next(iter(ours))[0], "mean")}
    else:
        assert printed == (set() if protocol.startswith("drawn") else printed & ours)
        assert protocol.startswith("drawn") or len(published) >= 2 * len(printed) >= 4
    assert not published.duplicated(["sources", "target", "method"]).any()
    assert published[["rank1", "mAP"]].apply(lambda score: score.between(10, 95)).all(axis=None) or published.empty


def test_a_job_of_each_round_keeps_its_last_epoch() -> None:
    rounds = dict(generalise.jobs("drawn-tiny", "lodo", {"recipe": "toy", "settings": {"epochs": 1}}))
    assert [job.plan.tested_on for job in rounds.values()] == [f"synthetic{b}-tiny" for b in ("", "_b", "_c")]
    assert {job.recipe.keep for job in rounds.values()} == {"last"}
    assert [job.name for job in rounds.values()] == ["lodo/1", "lodo/2", "lodo/3"]
    data = next(iter(rounds.values())).data
    assert {data.people[s.pid].partition(":")[0] for s in data.train} == {"synthetic_b-tiny", "synthetic_c-tiny"}
    assert {data.people[s.pid].partition(":")[0] for s in data.query} == {"synthetic-tiny"}
    with pytest.raises(ValueError, match="unknown protocol 'p4': did you mean"):
        generalise.rounds("p4")


def test_own_scores_stand_before_the_published_ones() -> None:
    (one,) = generalise.rounds("p1")
    sources = "+".join(one.sources)
    own = {(sources, f"{t}-split{n}"): {"rank1": n / 10, "mAP": 0.5} for t in one.targets for n in (1, 2)}
    table = generalise.beside("p1", own, "mine")
    assert table.index[0] == "mine"
    assert table.loc["mine", "viper"] == table.loc["mine", "mean"] == "15.0 / 50.0"
    assert table.loc["CLIP-FGDI", "mean"] == "75.5 / 82.2"
    m3l = generalise.beside("p2", {}, "mine")
    assert m3l.loc["M3L", "market1501"] == "82.3 / 61.5"
    assert isinstance(m3l, pd.DataFrame)
