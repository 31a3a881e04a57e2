"""A ranked dataset under the mouse: its lists are the evaluator's, filters choose what they say, HTML is safe."""

import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from reidlib.data.samples import ReIDDataset, Sample
from reidlib.evaluation import Features, rank_gallery
from reidlib.workbook import ranked as room
from reidlib.workbook.ranked import Ranked, explore, find_queries, list_html

PEOPLE = {1: "anna <b>", 2: "bert", 3: "cleo"}
CAMERAS = {1: "door", 2: "hall"}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> Ranked:
    """12 queries of 3 people, 40 gallery images with junk and distractors, features that are often right."""
    root = tmp_path_factory.mktemp("ranked")
    draw = torch.Generator().manual_seed(0)

    def split(name: str, pids: list[int]) -> tuple[tuple[Sample, ...], Features]:
        samples = []
        for n, pid in enumerate(pids):
            path = root / f"{name} {n} 'quoted'.jpg"
            Image.new("RGB", (16, 32), (20 * pid % 255, 9 * n % 255, 90)).save(path)
            samples.append(Sample(path, pid, 1 + int(torch.randint(2, (), generator=draw))))
        centers = torch.eye(8)[torch.tensor(pids) % 8]
        feats = centers + 0.6 * torch.randn(len(pids), 8, generator=draw)
        return tuple(samples), Features(feats, torch.tensor(pids), torch.tensor([s.camid for s in samples]))

    query, query_feats = split("query", [1, 1, 2, 2, 3, 3] * 2)
    gallery, gallery_feats = split("gallery", [-1, 0, 1, 1, 2, 2, 3, 0, 3, -1] * 4)
    data = ReIDDataset("mine", root, (), query, gallery, people=PEOPLE, cameras=CAMERAS)
    return Ranked(data, query_feats, gallery_feats)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_lists_are_those_of_the_evaluator(ranked, metric):
    ranked = replace(ranked, metric=metric)
    lists = rank_gallery(*ranked.inputs, k=40, metric=metric)
    for i in range(12):
        found = ranked.nearest(i, 40)
        kept = lists.indices[i][lists.indices[i] >= 0].tolist()
        assert [match.item for match in found] == kept
        assert [match.right for match in found] == lists.matches[i][: len(kept)].tolist()
        first = ranked.nearest_right(i)
        assert first.rank == next(match.rank for match in found if match.right)
        assert first.item == found[first.rank - 1].item
        assert first.similarity == pytest.approx(found[first.rank - 1].similarity, abs=1e-6)
        of_hall = [match.item for match in found if ranked.data.gallery[match.item].camid == 2]
        assert [match.item for match in ranked.nearest(i, 40, camera=2)] == of_hall


def test_a_reranked_list_agrees_with_its_scores_and_says_what_moved(ranked):
    after = ranked.reranked(k1=6, k2=3, lambda_value=0.2)
    assert "k1 6" in after.label
    for i in range(12):
        found = after.nearest(i, 40)
        right = [match.rank for match in found if match.right]
        assert right[0] == after.result.first_match[i] == after.nearest_right(i).rank
        ap = sum((n + 1) / rank for n, rank in enumerate(right)) / len(right)
        assert ap == pytest.approx(float(after.result.ap[i]))
        before = {match.item: match.rank for match in ranked.nearest(i, 40)}
        assert [m.before for m in after.lists([i], 10, earlier=ranked)[0]] == [before[m.item] for m in found[:10]]
    assert any(m.before != m.rank for found in after.lists(range(12), 10, earlier=ranked) for m in found)


def test_lists_of_several_queries_are_those_of_each(ranked):
    after = ranked.reranked(k1=6, k2=3)
    for ranking in (ranked, after):
        assert ranking.lists([3, 0, 7], 9) == [ranking.nearest(i, 9) for i in (3, 0, 7)]
        assert ranking.lists([3, 0], 9, camera=2) == [ranking.nearest(i, 9, camera=2) for i in (3, 0)]
    assert ranked.lists([1, 2], 9, camera=77) == [[], []]


def test_a_gallery_image_asks_for_the_rest_of_the_gallery(ranked):
    person = next(i for i, s in enumerate(ranked.data.gallery) if s.pid == 2)
    distractor = next(i for i, s in enumerate(ranked.data.gallery) if s.pid == 0)
    for at in (person, distractor):
        asked = ranked.asking(at)
        found = asked.nearest(0, 40)
        assert at not in [match.item for match in found]
        right = {match.item for match in found if match.right}
        other_camera = {
            i for i, s in enumerate(ranked.data.gallery) if s.pid == 2 and s.camid != ranked.data.gallery[person].camid
        }
        assert right == (other_camera if at == person else set())
        assert asked.label == "a gallery image as the query"


def test_expansion_changes_the_features_only(ranked):
    after = ranked.expanded(k=4)
    assert after.query.feats.shape == ranked.query.feats.shape
    assert after.result.mAP != ranked.result.mAP


def test_queries_are_found_by_what_a_person_knows(ranked):
    assert find_queries(ranked, "worst", 99, person="bert")[0] != []
    of_bert, words = find_queries(ranked, "best", 99, person="bert", camera="hall")
    assert {ranked.data.query[i].pid for i in of_bert} == {2}
    assert {ranked.data.query[i].camid for i in of_bert} == {2}
    assert "person bert, camera hall" in words
    ap = ranked.result.ap[torch.tensor(of_bert)]
    assert (ap.diff() <= 0).all()
    assert find_queries(ranked, "worst", 9, file="QUERY 7")[0] == [7]
    wrong, _ = find_queries(ranked, "wrong", 99)
    assert sorted(wrong) == torch.nonzero(ranked.result.first_match > 1).flatten().tolist()
    with pytest.raises(ValueError, match="unknown person 'berta': did you mean"):
        find_queries(ranked, person="berta")
    with pytest.raises(ValueError, match="no query is left: file"):
        find_queries(ranked, file="nowhere")


def test_the_html_says_what_is_right_and_leaves_no_name_unescaped(ranked):
    html = list_html(ranked, [0, 4], 5)
    assert "<b>," not in html
    assert "anna &lt;b&gt;" in html
    for i in (0, 4):
        first = ranked.nearest_right(i)
        assert f"first right: {first.rank}" in html
        assert sum(m.right for m in ranked.nearest(i, 5)) == list_html(ranked, [i], 5).count(room.css_frame(True)) - (
            first.rank > 5
        )
    sources = re.findall(r'src="([^"]*)"', html)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http" not in html
    assert all(re.findall(r'<img [^>]*alt="([^"]+)"', html))


def test_a_list_that_is_wrong_to_the_end_shows_the_right_match_beside_it(ranked):
    i = int(ranked.result.first_match.argmax())
    first = ranked.nearest_right(i)
    assert first.rank > 1
    html = list_html(ranked, [i], first.rank - 1)
    assert html.count("✓") == 1
    assert "…" in html


def test_large_files_become_small_pictures(tmp_path):
    Image.effect_noise((1500, 3000), 90).save(tmp_path / "large.png")
    assert len(room.picture(tmp_path / "large.png")) < 60_000
    with pytest.raises(OSError, match=r"nothing\.jpg"):
        room.picture(tmp_path / "nothing.jpg")


def test_without_a_front_end_the_same_lists_are_shown(ranked):
    page = explore({"plain": ranked, "re-ranked": lambda: pytest.fail("nobody asked for it")}, rows=2)
    assert page.data.count("first right") == 2
    assert "With a kernel" in page.data


def test_the_widgets_choose_step_and_compare(ranked, monkeypatch):
    explorer, made, asked = room.ListExplorer, [], []

    def keep(*args):
        made.append(explorer(*args))
        return made[0]

    monkeypatch.setattr(room, "is_interactive", lambda: True)
    monkeypatch.setattr(room, "ListExplorer", keep)
    box = explore({"plain": ranked, "re-ranked": lambda: asked.append(1) or ranked.reranked(k1=6, k2=3)}, k=5)
    (widgets,) = made
    assert box is widgets.box
    worst = widgets.picked[0]
    assert f"query {worst}<br>" in widgets.shown.value
    widgets.at.value = 3
    assert f"query {widgets.picked[3]}<br>" in widgets.shown.value
    widgets.person.value = "cleo"
    assert {ranked.data.query[i].pid for i in widgets.picked} == {3}
    assert not asked
    widgets.beside.value = "re-ranked"
    assert asked
    assert "re-ranked (k1 6" in widgets.shown.value
    widgets.person.value = "nobody"
    assert "unknown person" in widgets.note.value
