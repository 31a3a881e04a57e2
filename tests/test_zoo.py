"""The notebook of the zoo: its table, its matrix and its cards, and no card that downloads anything."""

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from reidlib import plots
from reidlib.models import list_models
from reidlib.models.printed.cards import card
from reidlib.models.printed.costs import exact
from reidlib.models.printed.published import published
from reidlib.workbook import zoo_table

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def table():
    return zoo_table.zoo_table()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Any connection is an error, and nothing may be written where downloads are kept."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield
    assert not (tmp_path / "torch").exists()


def test_the_table_holds_every_result_beside_what_is_counted(table):
    assert len(table) == sum(row.rank1 is not None for row in published()) == 280 + 77
    row = table[(table["model"] == "resnet50_ap") & (table["tested on"] == "msmt17")].iloc[0]
    assert (row["Rank-1"], row["mAP"], row["params printed"], row["params"]) == (79.2, 57.5, "51.281", 27.773)
    assert "registered under two names" in row["params differ"]
    assert row["mult-adds"] == round(exact("resnet50_ap").macs / 1e9, 3)
    same = table[(table["model"] == "osnet_x1_0")]
    assert set(same["params differ"]) == set(same["mult-adds differ"]) == {""}


def test_rows_are_searched_filtered_and_sorted(table):
    chosen = zoo_table.select(table, "IBN osnet", tested_on="market1501")
    assert len(chosen) == 4
    assert all("osnet_ibn" in name for name in chosen["model"])
    assert chosen["mAP"].is_monotonic_decreasing
    small = zoo_table.select(table, trained_on="market1501", sort="params", descending=False)
    assert small.iloc[0]["model"] == "osnet_x0_25"
    assert len(zoo_table.select(table, source="torchreid-2018-08", family="torchreid-2018")) == 34
    by_missing = zoo_table.select(table, sort="mINP")
    assert by_missing["mINP"].notna().to_list() == [True] * 147 + [False] * 210
    assert zoo_table.select(table, "no such words").empty
    assert len(zoo_table.select(table, "(all images)")) == 14, "words are not patterns"
    for wrong in ({"sort": "map"}, {"source": "torchreid-2020"}, {"trained": "msmt17"}):
        with pytest.raises(ValueError, match="did you mean"):
            zoo_table.select(table, **wrong)


def test_the_plain_table_links_weights_and_explains_figures(table):
    chosen = zoo_table.select(table, tested_on="market1501")
    html = zoo_table.show(chosen, 60).data
    assert html.count("<tr>") == 61
    assert "127 published results, the first 60 shown" in html
    assert len(re.findall(r'<a href="https?://[^"]+"', html)) == (chosen["link"][:60] != "").sum() > 40
    marks = set(re.findall(r"[\d.]+<sup>(\d+)</sup></td>", html))
    assert marks == set(re.findall(r"(?:<br>|<small>)<sup>(\d+)</sup> \w", html)) != set()
    assert "registered under two names" in html
    assert "nan" not in html
    assert "<th" in zoo_table.show(zoo_table.select(table, "no such words")).data
    titles = [
        re.findall(r"<th style[^>]*>(.*?)</th>", zoo_table.show(table, 1, **how).data) for how in ({}, {"every": True})
    ]
    assert set(titles[1]) - set(titles[0]) == set(zoo_table.HIDDEN)
    assert set(table.columns) - set(titles[1]) == set(zoo_table.NEVER)
    assert "loss" in zoo_table.show(table, 1, sort="loss").data


def test_without_a_front_end_there_is_a_plain_table(table, monkeypatch):
    monkeypatch.setattr(zoo_table, "is_interactive", lambda: False)
    assert "the first 3 shown" in zoo_table.browse_table(table, rows=3, tested_on="msmt17").data
    assert "<th" in zoo_table.plain(zoo_table.differences()).data


def test_with_a_front_end_there_are_fields(table, monkeypatch):
    monkeypatch.setattr(zoo_table, "is_interactive", lambda: True)
    box = zoo_table.browse_table(table, tested_on="msmt17")
    fields = [field for row in box.children[:-1] for field in row.children]
    assert [field.description for field in fields] == [
        *("search", "trained on", "tested on", "source", "family", "sort by", "largest first", "all columns")
    ]
    assert fields[2].value == "msmt17"


def test_differences_count_every_printed_figure():
    table = zoo_table.differences()
    printed = {(row.model, row.table, row.params, row.macs) for row in published() if row.params}
    assert table["figures"].sum() == len(printed) + sum(bool(macs) for *_, macs in printed)
    assert (table.loc[table["beside what is counted here"] == "as here", "off by at most (%)"] == 0).all()


def test_fronts_and_crossings_are_drawn():
    figure = zoo_table.cost_figure("market1501")
    words = {text for note in figure.axes[0].texts for text in note.get_text().split("\n")}
    assert {"osnet_x0_25", "personvit_vit_base"} <= words
    assert words & {"mgn_sbs_S50_fastreid", "mgn_sbs_S50_ibn_fastreid"}, "the best of 2021"
    assert "resnet50" not in words
    matrix, models, pairs = zoo_table.crossing_matrix("rank1")
    assert (len(models), pairs[0]) == (7, "Market → Duke")
    assert matrix[models.index("osnet_ain_x1_0")] == [0.524, 0.61, 0.701, 0.711]
    assert math.isnan(matrix[models.index("resnet50")][0])
    assert plots.score_matrix(matrix, models, pairs)


def boxes(figure, axes):
    renderer = figure.canvas.get_renderer()
    return [note.get_window_extent(renderer) for note in axes.texts]


@pytest.mark.parametrize("dataset", ["market1501", "dukemtmcreid", "msmt17"])
def test_no_label_lies_on_another(dataset):
    figure = zoo_table.cost_figure(dataset)
    figure.draw_without_rendering()
    for axes in figure.axes:
        found = boxes(figure, axes)
        assert len(found) >= 7
        assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])
        frame = axes.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in found)


def test_cost_figures_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="of one length above 0"):
        plots.cost_accuracy({"G": [1, 2]}, {"G": [True]}, [50, 60], ["a", "b"], ["x", "x"])
    with pytest.raises(ValueError, match="of one length above 0"):
        plots.cost_accuracy({"G": []}, {"G": []}, [], [], [])
    assert plots.cost_accuracy({"G": [1.0]}, {"G": [True]}, [50.0], ["a"], ["x"])


def test_speed_is_measured_or_left():
    assert zoo_table.speed_line("osnet_x0_25", seconds=0) == ""
    line = zoo_table.speed_line("osnet_x0_25", batch=2, seconds=0.01)
    assert re.fullmatch(r"osnet_x0_25 here, on cpu, \d+ thread\(s\): [\d.]+ ms an image, .* in batches of 2", line)


HANDFUL = ["osnet_x1_0", "hacnn", "vit_transreid", "v2018_SqueezeNet", "squeezenet1_1"]


@pytest.mark.parametrize(
    "name", [name if name in HANDFUL else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_a_card_is_a_page_without_a_download(name, no_network):
    html = zoo_table.card_page(card(name)).data
    assert f"<h3>{name}</h3>" in html
    for fact in ("same network as", "CAM", "recipe", "parameters at 751 identities", f"{exact(name).feature} values"):
        assert fact in html
    links = {row.link for row in published(name) if row.link}
    assert ("reidlib.create_model" in html) is bool(links)
    assert ("No weights were published" in html) is not bool(links)


def papermill(out: Path, *parameters: str) -> str:
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "zoo.ipynb"), str(out), "--no-progress-bar"]
    nowhere = "http://127.0.0.1:9"
    env = {"TORCH_HOME": str(out.parent / "torch"), "http_proxy": nowhere, "https_proxy": nowhere}
    done = subprocess.run([*command, *parameters], env=os.environ | env, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (out.parent / "torch").exists(), "something was downloaded"
    cells = nbformat.read(out, as_version=4).cells
    return "".join(str(output) for output in cells[-1].outputs)


@pytest.mark.slow
def test_papermill_shows_several_cards(tmp_path):
    shown = papermill(
        tmp_path / "zoo.ipynb", "-p", "card", "hacnn, osnet_x0_25", "-p", "seconds", "0.1", "-p", "batch", "2"
    )
    assert "<h3>hacnn</h3>" in shown
    assert "osnet_x0_25 here, on" in shown


@pytest.mark.slow
def test_papermill_shows_all_cards(tmp_path):
    parameters = ("-p", "card", "all", "-p", "seconds", "0", "-p", "recount", "true")
    shown = papermill(tmp_path / "zoo.ipynb", *parameters)
    for name in list_models():
        assert f"<h3>{name}</h3>" in shown
