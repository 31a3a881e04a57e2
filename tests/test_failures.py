"""Failures fall into groups by rules that hold on made-up rankings; suspected labels are the swapped ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_ranked import ranked  # noqa: F401, a fixture

from reidlib.data.patches import Correction, apply_corrections, person_key, read_corrections, write_corrections
from reidlib.data.samples import ReIDDataset, Sample
from reidlib.evaluation import Features
from reidlib.workbook import failures as room
from reidlib.workbook.failures import Suspect, corrections, explain, lost_map, suspects
from reidlib.workbook.ranked import Ranked


def made(gallery: list[tuple[int, int, float]], easy: float) -> Ranked:
    """A query of person 1, camera 1, and its gallery as (pid, camid, similarity); beside it 20 queries that are right,
    each with one match of similarity `easy`."""
    cosine = torch.tensor([s for *_, s in gallery] + [easy] * 20)
    n = len(gallery)
    rows, query = torch.zeros(n + 20, 42), torch.eye(42)[[0, *range(2, 22)]]
    rows[:n, 0], rows[:n, 1] = cosine[:n], (1 - cosine[:n] ** 2).sqrt()
    for i in range(20):
        rows[n + i, 2 + i], rows[n + i, 22 + i] = easy, (1 - easy**2) ** 0.5
    pids, camids = [p for p, *_ in gallery] + list(range(100, 120)), [c for _, c, _ in gallery] + [2] * 20
    samples = [Sample(Path(f"g{i}.jpg"), p, c) for i, (p, c) in enumerate(zip(pids, camids, strict=True))]
    asked = [Sample(Path("q.jpg"), 1, 1), *(Sample(Path(f"q{i}.jpg"), 100 + i, 1) for i in range(20))]
    return Ranked(
        ReIDDataset("made", Path(), (), tuple(asked), tuple(samples)),
        Features(query, torch.tensor([s.pid for s in asked]), torch.ones(21, dtype=torch.int64)),
        Features(rows, torch.tensor(pids), torch.tensor(camids)),
    )


CASES = {
    "suspected label": [(2, 2, 0.99), (2, 3, 0.98), (2, 2, 0.97), (2, 3, 0.96), (1, 2, 0.95)],
    "low similarity": [(3, 2, 0.3), (1, 2, 0.2)],
    "distractor": [(0, 2, 0.99), (0, 3, 0.98), (3, 3, 0.97), (1, 2, 0.9)],
    "lookalike": [(3, 2, 0.99), (4, 3, 0.98), (3, 2, 0.97), (1, 2, 0.9)],
    "camera look": [(3, 2, 0.99), (4, 2, 0.98), (5, 2, 0.97), (1, 3, 0.9)],
    "other": [(3, 2, 0.99), (4, 3, 0.98), (1, 2, 0.9)],
}


@pytest.mark.parametrize("kind", CASES)
def test_each_rule_finds_its_case(kind) -> None:
    table = explain(made(CASES[kind], easy=0.9 if kind == "low similarity" else 0.5))
    assert table["query"].tolist() == [0]
    assert table["kind"].tolist() == [kind]
    assert table["first_right"].tolist() == [len(CASES[kind])]


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == room.RULES.keys()


def test_the_groups_explain_all_that_is_lost(ranked) -> None:  # noqa: F811
    table = lost_map(ranked, explain(ranked))
    assert table["queries"].sum() == ranked.result.num_valid
    assert table["points of mAP"].sum() == pytest.approx(100 * (1 - ranked.result.mAP), abs=0.4)
    assert table["share of what is lost (%)"].sum() == pytest.approx(100, abs=0.5)


def people(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    pids = torch.arange(1, 41).repeat_interleave(8)
    return torch.randn(41, 32, generator=draw)[pids] + noise * torch.randn(320, 32, generator=draw), pids


@pytest.mark.parametrize("block", [7, 512])
def test_swapped_labels_are_doubted_first_and_find_their_partner(block) -> None:
    feats, pids = people(0.7)
    swapped = pids.clone()
    swapped[[3, 100]] = swapped[[100, 3]]
    found = suspects(feats, swapped, block=block)
    assert {s.at for s in found[:2]} == {3, 100}
    assert {(s.at, s.proposed, s.partner) for s in found[:2]} == {(3, int(pids[3]), 100), (100, int(pids[100]), 3)}
    assert len(found) == 320
    assert suspects(feats, swapped, count=5, block=block) == found[:5]


def test_doubt_is_what_a_naive_loop_computes() -> None:
    feats, pids = people(2.0)
    pids[:3] = torch.tensor([-1, 0, 77])  # junk, a distractor, a person of one image
    unit = torch.nn.functional.normalize(feats)
    found = suspects(feats, pids)
    assert not {0, 1, 2} & {s.at for s in found}
    for s in found[::40]:
        means = {}
        for pid in {p for p in pids.tolist() if p > 0}:
            near = sorted(
                (float(unit[s.at] @ unit[j]) for j in range(320) if pids[j] == pid and j != s.at), reverse=True
            )
            means[pid] = sum(near[:2]) / len(near[:2])
        own = means.pop(int(pids[s.at]))
        assert s.own == pytest.approx(own, abs=1e-5)
        assert s.other == pytest.approx(max(means.values()), abs=1e-5)
        assert means[s.proposed] == max(means.values())


def test_verdicts_become_rows_that_mend_the_dataset(ranked, tmp_path: Path) -> None:  # noqa: F811
    data = ranked.data
    first, last = Suspect(0, 2, 0.1, 0.9, partner=2), Suspect(5, 1, 0.1, 0.2)
    assert [data.query[i].pid for i in (0, 2, 5)] == [1, 2, 3]
    rows = corrections(ranked, first, "swap", "seen") + corrections(ranked, last, "same")
    write_corrections(tmp_path / "fixes.csv", rows)
    mended = apply_corrections(data, tmp_path / "fixes.csv")
    assert [mended.query[i].pid for i in (0, 2, 5)] == [2, 1, 3]
    with pytest.raises(ValueError, match="no image of anna <b> looks like cleo: choose other"):
        corrections(ranked, last, "swap")


def test_the_buttons_write_the_table_at_once_and_go_on(ranked, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    page = room.repair(ranked, tmp_path / "fixes.csv", shown=3)
    assert page.data.count("its label:") == 3
    widgets, kept = room._Repair, []
    monkeypatch.setattr(room, "_Repair", lambda *args: kept.append(widgets(*args)) or kept[0])
    monkeypatch.setattr(room, "is_interactive", lambda: True)
    assert room.repair(ranked, tmp_path / "fixes.csv") is kept[0].box
    kept[0].note.value = "other coat"
    kept[0].buttons["other"].click()
    kept[0].buttons["junk"].click()
    rows = read_corrections(tmp_path / "fixes.csv")
    assert [row.verdict for row in rows] == ["other", "junk"]
    assert rows[0].note == "other coat"
    assert kept[0].at.value == 2
    again = widgets(ranked, kept[0].found, tmp_path / "fixes.csv")
    assert "this one: other" in again.state.value
    apply_corrections(ranked.data, tmp_path / "fixes.csv")


def test_labels_are_swapped_in_pairs_and_mended_by_their_table(ranked, tmp_path: Path) -> None:  # noqa: F811
    data = room.with_swapped_labels(ranked.data, 0.2, seed=1)
    before, after = ([*d.query, *d.gallery] for d in (ranked.data, data))
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a.pid != b.pid]
    assert 6 <= len(changed) <= 10
    assert sorted(before[i].pid for i in changed) == sorted(after[i].pid for i in changed)
    assert room.with_swapped_labels(ranked.data, 0.2, seed=1) == data
    assert room.with_swapped_labels(ranked.data, 0) is ranked.data
    rows = [
        Correction(data.relative(after[i]), person_key(data, after[i].pid), person_key(data, before[i].pid), "swap")
        for i in changed
    ]
    write_corrections(tmp_path / "fixes.csv", rows)
    pids = [torch.tensor([s.pid for s in samples]) for samples in (data.query, data.gallery)]
    wrong = replace(
        ranked, data=data, query=replace(ranked.query, pids=pids[0]), gallery=replace(ranked.gallery, pids=pids[1])
    )
    assert wrong.result.mAP < ranked.result.mAP
    assert room.corrected(wrong, tmp_path / "fixes.csv").result.mAP == ranked.result.mAP
