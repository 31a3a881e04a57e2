"""A result beside the published one: reached or not, and each reason that may be named."""

import numpy as np
import pytest
import torch
from eval_cases import CASES, arrays, drawn, naive

from reidlib import evaluate_ranking
from reidlib.evaluation import Features, ranking_inputs
from reidlib.models.printed.published import distance, published
from reidlib.workbook import parity

AGW = "https://github.com/HWliiu/pytorch-reid-models/releases/download/v0.1-weights/msmt17-resnet50_agw-0.55-b02gh6.pth"


def about(model: str = "resnet50_agw", trained_on: str = "msmt17", link: str = AGW, **others: object) -> dict:
    """The model.json of published weights; those of osnet and such without a link are a run's own."""
    weights = {"weights": {"name": "x", "link": link}} if link else {}
    return {"name": model, "trained_on": trained_on, "input_size": [256, 128], **weights, **others}


def result(rank1: float = 78.9, mAP: float = 55.4, **others: object) -> dict:
    """An entry of result.json as the test notebook writes it, of MSMT17 V1 with every query valid."""
    images = {"train": 32621, "query": 11659, "gallery": 82161}
    plain = {"rank1": rank1 / 100, "mAP": mAP / 100, "metric": "cosine", "cameras": True, "version": "V1"}
    return plain | {"images": images, "num_valid": 11659, "num_query": 11659} | others


def only(model: dict, tested_on: str, scores: dict) -> parity.Parity:
    (found,) = parity.compare(model, tested_on, scores)
    return found


@pytest.mark.parametrize(
    ("rank1", "mean", "verdict"),
    [
        (78.9, 55.4, "parity"),
        (79.2, 55.1, "parity"),  # 0.3 up, 0.3 down
        (78.5, 55.4, "below"),
        (78.9, 55.0, "below"),
        (79.3, 55.4, "above"),
        (79.3, 56.0, "above"),
        (79.3, 55.0, "mixed"),
    ],
)
def test_parity_is_a_difference_of_three_tenths_at_most(rank1, mean, verdict):
    found = only(about(), "msmt17", result(rank1, mean))
    assert found.verdict == verdict
    assert (found.rank1, found.mAP) == pytest.approx((rank1 - 78.9, mean - 55.4), abs=1e-6)
    assert (found.row.table, found.row.link) == ("pytorch-reid-models", AGW)
    # Half precision is known of this source, so it is named wherever there is something to explain.
    assert found.causes == (() if verdict == "parity" else ("features are float32 here, float16 there",))


HALF = "features are float32 here, float16 there"


@pytest.mark.parametrize(
    ("model", "scores", "causes"),
    [
        ({}, {"version": "V2"}, ("the dataset is V2 here, V1 there", HALF)),
        (
            {},
            {"images": {"train": 1, "query": 11659, "gallery": 80000}},
            ("gallery has 80,000 images here, 82,161 as published", HALF),
        ),
        ({"input_size": [384, 128]}, {}, ("images are 384x128 here, 256x128 there", HALF)),
        ({"interpolation": "bicubic"}, {}, ("images are resized bicubically here, bilinearly there", HALF)),
        ({}, {"flip": True}, ("features are averaged over mirror images here, not there", HALF)),
        (
            {},
            {"multi_query": "max"},
            ("queries are pooled over a person's images under a camera here, not there", HALF),
        ),
        ({}, {"metric": "euclidean"}, ("ranked by euclidean distance here, cosine there", HALF)),
        ({}, {"precision": "float16"}, ()),
        (
            {},
            {"num_valid": 11000, "num_query": 11659},
            (HALF, "659 of 11659 queries have no match and count 0 there: counted as there, mAP is 47.2 here"),
        ),
        ({}, {"num_valid": 11000, "num_query": 11659, "means_over": "all"}, (HALF,)),
        (
            {"input_size": [128, 64]},
            {"version": "V2", "metric": "euclidean", "flip": True},
            (
                "the dataset is V2 here, V1 there",
                "images are 128x64 here, 256x128 there",
                "features are averaged over mirror images here, not there",
                "ranked by euclidean distance here, cosine there",
                HALF,
            ),
        ),
    ],
)
def test_each_cause_is_named_where_it_applies_and_only_there(model, scores, causes):
    assert only(about(**model), "msmt17", result(60, 50, **scores)).causes == causes


def test_a_camera_embedding_that_is_told_nothing_is_a_cause():
    row = next(r for r in published("deit_transreid") if r.trained_on == "market1501")
    model = about("deit_transreid", "market1501", row.link)
    images = {"images": {"query": 3368, "gallery": 19732}, "version": "", "num_valid": 3368, "num_query": 3368}
    told = only(model, "market1501", result(80, 80, **images))
    assert told.causes == (HALF,)
    untold = only(model, "market1501", result(80, 80, **images, cameras=False))
    assert untold.causes == ("the model is told no cameras here, 6 of them there", HALF)


def test_a_source_that_does_not_say_its_edition_leaves_the_question():
    row = next(r for r in published("osnet_x1_0") if r.trained_on == r.tested_on == "msmt17")
    found = only(about("osnet_x1_0", "msmt17", row.link), "msmt17", result(60, 30, metric="euclidean"))
    assert found.causes == ("the dataset is V1 here, and the source does not say which",)


def test_training_here_is_compared_with_every_row_and_says_so():
    model = about("resnet50", "market1501", link="")
    found = parity.compare(model, "market1501", result(85, 70, metric="euclidean", version="", images={}))
    assert [p.row.table for p in found] == ["torchreid-2019-03", "torchreid-2019-05", "torchreid-2020-03"]
    assert all(p.causes[-1] == "these are other weights than the published ones" for p in found if p.causes)
    own = model | {"recipe": "torchreid_softmax", "overridden": ["lr", "epochs"]}
    (*_, last) = parity.compare(own, "market1501", result(80, 60))[0].causes
    assert last.endswith("ones, trained here by the recipe torchreid_softmax with another lr and epochs")
    # Published weights are compared with the rows that link to them: two tables print the same file.
    link = found[-1].row.link
    rows = parity.compare(about("resnet50", "market1501", link), "market1501", result(85, 70, metric="euclidean"))
    assert [p.row.table for p in rows] == ["torchreid-2019-05", "torchreid-2020-03"]


def test_what_nobody_noted_is_no_cause():
    found = only(about(), "msmt17", {"rank1": 0.6, "mAP": 0.5})
    assert found.causes == (HALF,)


def test_other_data_has_no_row():
    assert parity.compare(about(trained_on="msmt17"), "market1501", result()) == []
    assert parity.compare(about(trained_on="synthetic-small", link=""), "synthetic-small", result()) == []
    assert parity.compare(about("osnet_x1_0", "msmt17", link=""), "market1501", result()) == []
    (across,) = parity.compare(about("osnet_x1_0", "msmt17-combineall", link=""), "market1501", result(66.6, 37.5))
    assert (across.verdict, across.row.combineall) == ("parity", True)


def test_table_and_sentence_show_both_sides():
    below, reached = only(about(), "msmt17", result(78.4, 55.5)), only(about(), "msmt17", result())
    table = parity.table([below, reached])
    assert table.index.tolist() == ["msmt17", "msmt17"]
    assert table.iloc[0].to_dict() == {
        "source": "pytorch-reid-models", "published Rank-1": "78.9", "published mAP": "55.4",
        "Rank-1 here": "78.4 (-0.5)", "mAP here": "55.5 (+0.1)", "verdict": "below",
    }  # fmt: skip
    assert str(reached) == "msmt17 beside pytorch-reid-models: parity"
    assert str(below) == f"msmt17 beside pytorch-reid-models: below, perhaps because {HALF}"
    unknown = only(about(), "msmt17", result(60, 50, precision="float16"))
    assert str(unknown).endswith("below, perhaps because of something else: nothing known differs")


def test_a_gap_is_counted_again_as_the_source_did():
    inputs = [torch.from_numpy(a) for a in drawn(seed=5, num_query=30, people=40)]
    query, gallery = (Features(*(inputs[i] for i in ids)) for ids in ((0, 2, 4), (1, 3, 5)))
    ours = evaluate_ranking(*ranking_inputs(query, gallery), metric="euclidean").to_dict()
    scores = ours | {"metric": "euclidean", "cameras": True, "version": "V1", "images": {}}
    found = only(about(), "msmt17", scores)
    assert found.counted is None
    found = parity.compare(about(), "msmt17", scores, (query, gallery))[0].counted
    rows = naive(*(t.numpy() for t in ranking_inputs(query, gallery, precision="float16")))
    firsts, aps = [first == 1 for _, _, first, _ in rows if first > 0], [ap for ap, *_ in rows]
    assert 78.9 + found.rank1 == pytest.approx(100 * np.mean(firsts), abs=1e-5)
    assert 55.4 + found.mAP == pytest.approx(100 * np.nansum(aps) / len(aps), abs=1e-5)
    assert found.causes == ()
    told = str(parity.compare(about(), "msmt17", scores, (query, gallery))[0])
    assert f"; ranked and counted as there: Rank-1 {100 * np.mean(firsts):.1f}, mAP " in told
    # Nothing to count again: the source's way was ours, or the result is at parity.
    link = next(r.link for r in published("osnet_x1_0") if r.trained_on == r.tested_on == "msmt17")
    same = about("osnet_x1_0", "msmt17", link)
    assert (
        parity.compare(same, "msmt17", scores | {"num_valid": 9, "num_query": 9}, (query, gallery))[0].counted is None
    )
    assert parity.compare(same, "msmt17", result(75.1, 43.6), (query, gallery))[0].counted is None


def test_half_precision_is_asked_for_by_name():
    feats = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    features = Features(feats, torch.arange(4), torch.arange(4))
    half = ranking_inputs(features, features, precision="float16")
    assert half[0].dtype == half[1].dtype == torch.float16
    unit = torch.nn.functional.normalize(feats)
    assert (half[0].float() - unit).abs().max() < 2e-3
    assert not torch.equal(half[0].float(), unit)
    assert ranking_inputs(features, features)[0] is feats
    with pytest.raises(ValueError, match="unknown precision 'float8': did you mean"):
        ranking_inputs(features, features, precision="float8")


# How the sources counted


def test_every_result_says_how_it_was_counted():
    for row in published():
        if row.rank1 is not None:
            assert row.distance in ("cosine", "euclidean"), row
            assert (row.precision, row.means_over) in (("float32", "valid"), ("float16", "all")), row
    assert {(r.model, r.trained_on, r.cameras) for r in published() if r.cameras} == {
        (model, data, cameras)
        for model in ("vit_transreid", "deit_transreid", "clipreid_vit_b16_sie_olp")
        for data, cameras in (("market1501", 6), ("dukemtmcreid", 8), ("msmt17", 15))
    } | {("clipreid_vit_b16_sie_olp", "occluded_dukemtmc", 8)}


def test_a_model_is_ranked_by_what_it_was_published_with():
    assert [distance(m) for m in ("resnet50", "osnet_ain_x1_0", "resnet50_agw", "vit_transreid", "densenet121")] == [
        "euclidean", "cosine", "cosine", "cosine", "cosine",
    ]  # fmt: skip


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_means_run_over_all_queries_as_a_source_has_it(metric):
    expected = CASES["invalid_queries"]["expected"][metric]
    result = evaluate_ranking(*arrays("invalid_queries"), metric=metric)
    every = result.counted(means_over="all")
    assert every.mAP == pytest.approx(expected["mAP_invalid_as_zero"], abs=1e-12)
    assert every.mINP == pytest.approx(expected["mINP"] * expected["num_valid"] / expected["num_query"], abs=1e-12)
    assert every.rank(1) == result.rank(1) == pytest.approx(expected["cmc"]["1"], abs=1e-12)
    assert every.counted().mAP == pytest.approx(expected["mAP"], abs=1e-12)
    with pytest.raises(ValueError, match="unknown value of means_over 'every'"):
        result.counted("every")


def test_both_ways_agree_with_a_loop():
    inputs = drawn(seed=3, num_query=30, people=40)
    rows = naive(*inputs)
    valid = [ap for ap, *_ in rows if not np.isnan(ap)]
    assert 0 < len(valid) < len(rows)
    result = evaluate_ranking(*inputs)
    assert result.counted("valid").mAP == pytest.approx(np.mean(valid), abs=1e-12)
    assert result.counted("all").mAP == pytest.approx(sum(valid) / len(rows), abs=1e-12)
