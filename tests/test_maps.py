"""The map under the mouse: its table, its page, and what a selection shows."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_ranked import ranked  # noqa: F401, a fixture

from reidlib.workbook import maps as room
from reidlib.workbook.maps import chosen_html, embed, explore_map, map_html, map_table


@pytest.fixture
def table(ranked):  # noqa: F811
    return map_table(ranked, np.random.default_rng(0).normal(size=(52, 2)))


def clusters(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    group = torch.arange(count) % 6
    return torch.eye(16)[group] * 4 + 0.3 * torch.randn(count, 16, generator=draw), group


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow), "pca"])
def test_each_method_keeps_neighbours_together_and_is_seeded(method) -> None:
    feats, group = clusters(120)
    points, note = embed(feats, method)
    assert points.shape == (120, 2)
    assert points.dtype == np.float32
    assert "120 images" in note
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(120) * 1e9
    agree = (group[distance.argmin(1)] == group).float().mean()
    assert agree > (0.6 if method == "pca" else 0.97)
    assert np.array_equal(points, embed(feats, method)[0])


@pytest.mark.slow
def test_many_points_go_to_opentsne(monkeypatch) -> None:
    monkeypatch.setattr(room, "MANY", 100)
    feats, group = clusters(150)
    points, note = embed(feats)
    assert "openTSNE, perplexity 30" in note
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(150) * 1e9
    assert (group[distance.argmin(1)] == group).float().mean() > 0.97


def test_what_cannot_be_mapped_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown method 'tnse': did you mean 'tsne'"):
        embed(torch.zeros(3, 4), "tnse")
    with pytest.raises(ValueError, match="NaN or infinite in row 1"):
        embed(torch.tensor([[1.0, 2], [3, torch.nan]]), "pca")


def test_the_table_says_what_each_point_is(ranked, table) -> None:  # noqa: F811
    assert list(table["split"]) == ["query"] * 12 + ["gallery"] * 40
    assert table["person"][0] == "anna <b>"
    assert set(table["person"][12:]) == {"junk", "distractor", "anna <b>", "bert", "cleo"}
    right = (table["outcome"] == "right at rank 1").sum()
    assert right == (ranked.result.first_match == 1).sum()
    assert table["AP"][:12].to_numpy() == pytest.approx(100 * ranked.result.ap.numpy(), abs=0.051)
    part = map_table(ranked, np.zeros((2, 2)), keep=[3, 30])
    assert part["at"].tolist() == [3, 30]
    assert part["file"].tolist() == [table["file"][3], table["file"][30]]


def test_the_page_needs_no_other_file_and_holds_every_point(ranked, table) -> None:  # noqa: F811
    html = map_html(ranked, table, colour="outcome")
    data = json.loads(re.search(r" m = (\{.*\});\n", html)[1])
    assert len(data["points"]) == len(data["files"]) == 52
    assert data["columns"]["person"]["names"] == ["anna <b>", "bert", "cleo", "distractor", "junk"]
    assert data["columns"]["AP"][12:] == [None] * 40
    assert "<option selected>outcome</option>" in html
    assert not re.search(r"""(src|href)=|https?://""", html)


def test_five_thousand_points_stay_under_five_megabytes(ranked, table) -> None:  # noqa: F811
    import pandas as pd

    many = pd.concat([table] * 97, ignore_index=True)
    assert len(many) > 5000
    assert len(map_html(ranked, many)) < 5e6


def test_a_selection_shows_its_images_and_the_list_of_the_first(ranked) -> None:  # noqa: F811
    html = chosen_html(ranked, [4, 20, 21])
    assert html.count("<figure") >= 3 + 11
    assert "AP" in html
    junk = next(i for i, s in enumerate(ranked.data.gallery) if s.pid == -1)
    assert "no right match" in chosen_html(ranked, [12 + junk])
    of_gallery = chosen_html(ranked, [12 + 4])  # person 2
    assert "first right: " in of_gallery
    assert "and 10 more" in chosen_html(ranked, list(range(50)), most=40)


def test_two_maps_share_a_selection_and_a_colour(ranked, table, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(room, "is_interactive", lambda: True)
    kept = []
    monkeypatch.setattr(
        room, "MapExplorer", lambda *args, make=room.MapExplorer: kept.append(make(*args)) or SimpleNamespace(box=1)
    )
    assert explore_map([(ranked, table), (ranked, table)]) == 1
    (explorer,) = kept
    first, second = explorer.scatters
    explorer.colour.value = "AP"
    assert first.color()["by"] == second.color()["by"] == "AP"
    first.widget.selection = np.array([2, 3], dtype=np.uint32)
    assert explorer.shown.value.count("<hr>") == 1
    assert "query 2<br>" in explorer.shown.value


def test_without_a_front_end_the_map_is_a_page(ranked, table) -> None:  # noqa: F811
    assert "reid-map" in explore_map([(ranked, table)]).data
    with pytest.raises(ValueError, match="unknown colour 'persn': did you mean 'person'"):
        explore_map([(ranked, table)], colour="persn")
