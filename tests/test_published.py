"""The published tables: as many rows, the same sums and the same links as in their sources, every figure explained."""

import re
import zlib
from math import isclose

import pytest
import torch

from reidlib.models import create_model, list_models
from reidlib.models.__main__ import main
from reidlib.models.complexity import _COUNTINGS
from reidlib.models.printed import page as zoo_page
from reidlib.models.printed.cards import card, same_network
from reidlib.models.printed.costs import WHY, agrees, counted, exact, figures, measured, pareto_front
from reidlib.models.printed.published import LATER, SOURCES, published, results
from reidlib.models.zoo import ALIASES, MODELS
from reidlib.paths import REPOSITORY

SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")
# Results, sums of the scores, links, and their checksum, taken from the text of each source.
TABLES = {
    "torchreid-2018-08": (34, (2209.0, 0, 0, 1657.6, 0), 12, 3922556232),
    "torchreid-2019-03": (33, (2503.8, 0, 0, 1769.9, 0), 33, 2005323869),
    "torchreid-2019-05": (18, (1384.6, 0, 0, 998.7, 0), 18, 4060613204),
    "torchreid-2020-03": (48, (3480.6, 279.1, 301.1, 2397.5, 0), 51, 2324544652),
    "pytorch-reid-models": (147, (12774.8, 13734.8, 0, 10723.2, 5697.6), 147, 747460718),
    "CLIP-ReID": (1, (91.1, 0, 0, 86.7, 0), 30, 3856423638),
    "SOLIDER": (12, (1119.3, 0, 0, 1041.0, 0), 6, 3255157413),
    "TransReID-SSL": (28, (2443.1, 0, 0, 2077.9, 0), 17, 1341311403),
    "PASS-reID": (12, (1069.6, 0, 0, 927.0, 0), 14, 682446356),
    "PersonViT": (12, (1060.4, 0, 0, 961.3, 0), 3, 2800692349),
    "LightMBN": (12, (1084.1, 0, 0, 1045.4, 0), 1, 2789924194),
}
# Links to weights without a result.
BARE = {"torchreid-2020-03": 10, "CLIP-ReID": 30, "TransReID-SSL": 3, "PASS-reID": 2, "PersonViT": 2}
DATASETS = {"market1501", "dukemtmcreid", "msmt17", "cuhk03-detected", "cuhk03-labelled", "occluded_dukemtmc"}
VEHICLES = {"veri776", "vehicleid"}  # which CLIP-ReID has weights for, too


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_rows_sums_and_links_of_its_source(table):
    rows = [row for row in published() if row.table == table]
    results = [row for row in rows if row.rank1 is not None]
    sums = tuple(round(sum(getattr(row, score) or 0 for row in results), 1) for score in SCORES)
    links = sorted({row.link for row in rows if row.link})
    assert (len(results), sums, len(links), zlib.crc32("\n".join(links).encode())) == TABLES[table]
    assert len(rows) - len(results) == BARE.get(table, 0)


def test_every_row_is_in_range_and_known():
    assert list(dict.fromkeys(row.table for row in published())) == sorted(SOURCES, key=list(SOURCES).index)
    for row in published():
        assert row.model in list_models(), row
        assert not row.printed or ALIASES.get(row.printed, f"v2018_{row.printed}") == row.model, row
        if row.rank1 is None:
            assert (row.mAP, row.params, bool(row.link)) == (None, "", True), row
            trunk = row.trained_on in ("imagenet", "luperson")
            assert row.tested_on == ("" if trunk else row.trained_on), row
            assert trunk or (row.table == "CLIP-ReID" and row.trained_on in DATASETS | VEHICLES), row
            continue
        assert {row.trained_on, row.tested_on} <= DATASETS, row
        assert row.trained_on == row.tested_on or row.table == "torchreid-2020-03" or row.training == "adapted", row
        assert row.training in ("", "unsupervised", "adapted"), row
        assert not row.combineall or row.trained_on == "msmt17" != row.tested_on, row
        ranks = [score for score in (row.rank1, row.rank5, row.rank10) if score is not None]
        assert ranks == sorted(ranks), row
        assert 0 < (row.mINP or row.mAP / 2) < row.mAP < ranks[0] + (1 if row.rerank else 0.05), row
        assert ranks[-1] < 100, row
        assert row.input in ("", "{}x{}".format(*MODELS[row.model].input_size)), row
        assert row.loss in ("", "softmax", "xent", "htri", "xent+htri"), row
        assert set(row.transforms.split()) <= {"random_flip", "random_crop", "color_jitter"}, row
        assert (row.distance, row.precision, row.means_over) in {
            *(("euclidean", "float32", "valid"), ("cosine", "float32", "valid"), ("cosine", "float16", "all"))
        }, row
        assert row.counting in _COUNTINGS or not (row.params or row.macs), row
        assert all(re.fullmatch(r"\d+\.\d+|", text) for text in (row.params, row.macs)), row
        assert not row.link or re.match(r"https?://\S+$", row.link), row
    keys = [(r.table, r.model, r.trained_on, r.tested_on, r.loss, r.training, r.rerank, r.note) for r in published()]
    assert len(set(keys)) == len(keys)
    assert [source.licence for source in LATER.values()].count("none") == 1
    assert sum("read off a picture" in row.note for row in published()) == 12


def test_re_ranked_and_adapted_results_are_apart_from_the_others():
    plain, again = ({row.model: row for row in results("market1501", rerank=on)} for on in (False, True))
    assert not any(row.rerank or row.training == "adapted" for row in plain.values())
    assert all(row.rerank for row in again.values())
    assert (plain["solider_swin_base"].mAP, again["solider_swin_base"].mAP) == (93.9, 95.6)
    assert plain["transreid_ssl_vit_small"].mAP == 91.2, "the reproduced figure, to which the file belongs"
    assert plain["personvit_vit_small"].mAP == 92.9, "not the row with a star"
    assert "clipreid_vit_b16" not in plain, "no figures are printed of it"


def test_a_file_is_named_after_its_result_but_for_two():
    """Rounded or cut to two digits; where it is neither, the row says so."""
    for row in published():
        if row.table == "pytorch-reid-models":
            dataset, model, mean = re.search(r"/([^/]+?)-(\w+)-(0\.\d+)-\w+\.pth$", row.link).groups()
            assert (dataset, model) == (row.trained_on, row.model)
            fits = 100 * float(mean) - 0.5 <= row.mAP < 100 * float(mean) + 1
            assert fits or f"another mAP, {mean}" in row.note, row


def test_every_printed_figure_is_reproduced_to_its_last_digit():
    for row in published():
        if row.params:
            count = counted(row.model, row.counting, row.trained_on)
            assert agrees(count.params / 1e6, row.params), row
            assert agrees(count.macs / 1e9, row.macs), row


def test_every_model_is_beside_its_figures_equal_or_with_a_reason():
    assert {key[0] for key in measured()} == set(list_models())
    covered = {(f.model, f.table, data) for f in figures() for data in f.trained_on}
    assert covered == {(row.model, row.table, row.trained_on) for row in published() if row.params}
    for figure in figures():
        assert (figure.params, figure.macs) == exact(figure.model)[-2:]
        for value, printed, why in (
            (figure.params / 1e6, figure.printed_params, figure.params_why),
            (figure.macs / 1e9, figure.printed_macs, figure.macs_why),
        ):
            assert agrees(value, printed) is not bool(why), figure
    assert {"exact"} | set(WHY) == {row.counting for row in published() if row.counting} == set(_COUNTINGS)


def test_a_value_agrees_with_what_it_rounds_to():
    assert agrees(2.9291, "2.9")
    assert agrees(2.9291, "2.929")
    assert not agrees(2.9291, "2.93" + "0")
    assert agrees(2.9291, "")
    assert not agrees(73.9, "74.0")


def test_contradictions_are_kept_and_explained():
    hacnn = {(row.params, row.counting) for name in ("hacnn", "v2018_HACNN") for row in published(name)}
    assert hacnn == {("2.9", "exact"), ("3.7", "total"), ("4.5", "torchreid")}
    assert exact("hacnn").params == exact("v2018_HACNN").params
    (apnet,) = figures("resnet50_ap")
    assert apnet.params_why.startswith("its trunk is registered under two names")
    assert isclose(float(apnet.printed_macs), 4 * apnet.macs / 1e9, rel_tol=0.01)
    assert len({figure.printed_params for figure in figures("resnet50_abd")}) == 3
    (row,) = (row for row in published() if "without the M" in row.note)
    assert (row.model, row.trained_on, row.params) == ("mgn_agw_S50_ibn_fastreid", "msmt17", "73.946")
    for name in ("vit_transreid", "deit_transreid"):
        assert all("passed no camera" in row.note and not row.params for row in published(name))
    assert same_network("vit_transreid") == ("deit_transreid",)
    assert same_network("mgn_S50_fastreid") == ("mgn_S50_ibn_fastreid",)
    assert "v2018_HACNN" in same_network("hacnn")
    assert same_network("resnet50_agw") == ()


def test_the_front_is_what_nothing_beats():
    cost, score = [1, 2, 2, 3, 3, 4, 1], [10, 30, 20, 30, 40, 35, 10]
    assert pareto_front(cost, score) == [True, True, False, False, True, False, True]
    assert pareto_front([], []) == []


def test_the_newer_tables_print_the_same_results():
    printed = {}
    for row in published():
        if re.match(r"torchreid-20(19|20)", row.table) and row.trained_on == row.tested_on:
            printed.setdefault((row.model, row.tested_on), []).append((row.rank1, row.mAP))
    assert sum(len(scores) > 1 for scores in printed.values()) == 18
    assert all(len(set(scores)) == 1 for scores in printed.values())


# The page


def test_the_page_is_what_make_zoo_would_write():
    assert zoo_page.PAGE.read_text(encoding="utf-8") == zoo_page.page(), "stale: run `make zoo`"


def test_the_advice_quotes_published_figures():
    text = zoo_page.WHICH
    plain = {(row.model, data): row.mAP for data in zoo_page.DATASETS for row in results(data)}
    for name, data in (
        *(("lmbn_n", "market1501"), ("solider_swin_tiny", "market1501"), ("personvit_vit_small", "market1501")),
        *(("personvit_vit_base", "market1501"), ("personvit_vit_base", "msmt17")),
        *(("solider_swin_base", "market1501"), ("solider_swin_base", "msmt17")),
    ):
        assert str(plain[name, data]) in text.split(f"`{name}`")[1], name
    for name in ("osnet_x1_0", "lmbn_n", "solider_swin_tiny", "personvit_vit_small"):
        assert f"{exact(name).macs / 1e9:.1f} G" in text.split(f"`{name}`")[1], name
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    advice = readme.split("**Which model should I take today?**")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", advice)) <= set(re.findall(r"`(\w+)`", text))


def test_the_page_holds_every_model_link_and_footnote():
    text = zoo_page.page()
    for name in list_models():
        assert f"| `{name}`" in text, name
    newest = {row.link for data in zoo_page.DATASETS for row in results(data) if row.link}
    assert all(f"({link})" in text for link in newest)
    marks = set(re.findall(r"\[\^([\w-]+)\](?!:)", text))
    assert marks == set(re.findall(r"^\[\^([\w-]+)\]:", text, re.M)) != set()
    headings = {zoo_page._anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= headings
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1, table[:200]


# Cards


@pytest.mark.parametrize("name", ["osnet_x1_0", "mgn_sbs_R50_ibn_fastreid", "vit_transreid", "hacnn", "squeezenet1_1"])
def test_a_card_is_read_off_the_model(name):
    shown = card(name)
    with torch.device("meta"):
        model = create_model(name, num_classes=751, num_cameras=6)
    assert (shown.name, shown.feature_dim, shown.input_size) == (name, model.feature_dim, MODELS[name].input_size)
    assert shown.cost == exact(name)[-2:]
    assert dict(model.named_modules())[shown.cam_layer] is model.cam_layer
    assert len(shown.cam_map) == 3
    whole = [part for part in shown.parts if "." not in part.name]
    assert sum(part.params for part in whole) == sum(p.numel() for p in model.parameters())
    assert {weights.row.link for weights in shown.weights} <= {row.link for row in published(name)}
    assert {w.row.trained_on for w in shown.weights} == {row.trained_on for row in published(name) if row.link}
    assert not shown.weights or shown.weights[0].row.table == published(name)[-1].table
    if name == "mgn_sbs_R50_ibn_fastreid":
        assert shown.parts[-1][:3] == ("heads.0 … 7", "8 × Head", (256,))


# The command


def test_the_command_shows_a_model(capsys):
    assert main(["osnet_x0_25"]) == 0
    text = re.sub(" +", " ", capsys.readouterr().out)
    for fact in ("0.202 M parameters, 0.082 G", "512 values", "256 × 128", "market1501 market1501", "mega.nz"):
        assert fact in text
    assert main(["osnet_1_0"]) == 2
    assert capsys.readouterr().err.startswith("unknown model 'osnet_1_0': did you mean")


def test_the_command_lists_every_model(capsys):
    assert main([]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "published weights" in header
    assert [line.split()[0] for line in lines] == list_models()
    rows = {line.split()[0]: line for line in lines}
    assert rows["hacnn"].endswith("market1501, dukemtmcreid, msmt17")
    assert rows["v2018_SqueezeNet"].split()[-1] == "-"
