"""Training without labels: samplers of clusters, norms over parts of a batch, and the loop that finds its labels."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_cases import one_thread  # noqa: F401 (a fixture)
from loop_cases import small, timeless, weights
from torch import nn

from reidlib.data.datasets import load_adaptation
from reidlib.data.samplers import ClusterSampler, JoinedSampler
from reidlib.training import Job, Recipe, Setup, fit, loop
from reidlib.training.norms import split_norms
from reidlib.training.recipes import RECIPES
from reidlib.training.relabel import cluster_advice
from reidlib.workbook.runs import Run

CLUSTERS = Recipe(
    epochs=3,
    people=4,
    images=2,
    steps=5,
    eval_every=1,
    lr=0.01,
    augment=(),
    warmup=0,
    cross_entropy_weight=0,
    contrast_weight=1.0,
    k1=8,
    k2=3,
    min_samples=2,
    keep="last",
    check_clusters=False,
)
IMAGES = replace(CLUSTERS, memory="image", memory_momentum=0.2, reliable=0.02, ema=0.9)
CPU = Setup(cpu=True)

# ---- samplers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [np.arange(40) // 5, [0] * 30 + [1], [3], [0, -1, 0, 0, 7], list(range(20)) + [-1] * 20]
)
def test_batches_are_whole_whatever_the_clusters(labels) -> None:
    labels = np.asarray(labels)
    sampler = ClusterSampler(4, 3, 6, cameras=np.arange(len(labels)) % 2)
    sampler.set_labels(labels)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 6
    for batch in batches:
        drawn = labels[batch].reshape(4, 3)
        assert (drawn >= 0).all()
        assert (drawn == drawn[:, :1]).all()
        assert len(set(drawn[:, 0])) == min(4, len(set(labels[labels >= 0])))
    assert batches == list(sampler)
    sampler.set_epoch(2)
    if len(labels) > 5:
        assert batches != list(sampler)


def test_images_of_a_cluster_come_from_its_cameras_in_turn() -> None:
    cameras = np.array([0] * 19 + [1] + [2] * 4)
    sampler = ClusterSampler(1, 3, 1, cameras=cameras)
    sampler.set_labels([5] * 24)
    for epoch in range(9):
        sampler.set_epoch(epoch)
        assert sorted(cameras[next(iter(sampler))]) == [0, 1, 2]
    every = ClusterSampler(1, 24, 1, cameras=cameras)
    every.set_labels([5] * 24)
    assert sorted(next(iter(every))) == list(range(24))


def test_processes_share_a_step() -> None:
    labels = np.arange(60) // 5
    shares = []
    for rank in range(3):
        sampler = ClusterSampler(2, 2, 4, rank=rank, world=3)
        sampler.set_labels(labels)
        shares.append(list(sampler))
    whole = ClusterSampler(6, 2, 4)
    whole.set_labels(labels)
    assert [[i for batch in batches for i in batch] for batches in zip(*shares, strict=True)] == list(whole)


def test_source_stands_before_target() -> None:
    parts = [ClusterSampler(2, 2, 3) for _ in range(2)]
    for part, labels in zip(parts, ([0, 0, 1, 1, -1, -1, -1], [-1, -1, -1, -1, 4, 4, 5]), strict=True):
        part.set_labels(labels)
    batches = JoinedSampler(*parts)
    assert len(batches) == 3
    assert all(max(batch[:4]) < 4 <= min(batch[4:]) and len(batch) == 8 for batch in batches)


def test_no_cluster_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no cluster to take images from: raise eps"):
        ClusterSampler(2, 2, 3).set_labels([-1, -1])


# ---- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(11, 3), (11, 3, 4, 2)])
def test_norms_over_groups_equal_norms_of_each(shape) -> None:
    torch.manual_seed(0)
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3)
    nn.init.uniform_(norm.weight)
    x, alone = 2 * torch.randn(shape) + 1, [copy.deepcopy(norm) for _ in range(2)]
    model = nn.Sequential(norm)
    names = list(model.state_dict())
    assert not len(split_norms(model, 5))
    expected = torch.cat([alone[0](x[:5]), alone[1](x[5:])])  # a rest of one image joins the group before it
    assert torch.allclose(model(x), expected, atol=1e-6)
    for name in ("running_mean", "running_var"):
        mean = (getattr(alone[0], name) + getattr(alone[1], name)) / 2
        assert torch.allclose(getattr(norm, name), mean, atol=1e-6)
    assert list(model.state_dict()) == names
    plain = type(alone[0])(3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_each_domain_has_norms_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3))
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    (partner,) = split_norms(model, domains=True)
    x = torch.cat([torch.randn(6, 3), 5 + torch.randn(6, 3)])
    assert torch.allclose(model(x), torch.cat([source(x[:6]), target(x[6:])]), atol=1e-6)
    assert torch.allclose(partner.running_mean, source.running_mean)
    assert torch.allclose(model[0].running_mean, target.running_mean)
    assert len(list(model.parameters())) == 2  # the source's are not the model's


# ---- the loop --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("recipe", [CLUSTERS, IMAGES], ids=["clusters", "images"])
def test_a_resumed_run_finds_the_same_clusters(tiny, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    whole, broken, rest = (small(tiny) for _ in range(3))
    one, two = Run.create("one", {}), Run.create("two", {})
    history = fit(whole, tiny, one, recipe, CPU)
    updates, update = iter(range(8)), loop.Trainer.update

    def until(self):
        if next(updates, None) is None:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "update", until)
        with pytest.raises(Killed):
            fit(broken, tiny, two, recipe, CPU)
    assert len(two.metrics) == 2
    assert timeless(fit(rest, tiny, two, recipe, CPU)) == timeless(history)
    assert torch.equal(weights(whole), weights(rest))
    a, b = (torch.load(run.path / "last.pt", weights_only=True)["relabel"] for run in (one, two))
    assert torch.equal(a["labels"], b["labels"])
    assert a["threshold"] == b["threshold"]
    assert (a["rows"] is None) == (b["rows"] is None) == (recipe is CLUSTERS)
    assert recipe is CLUSTERS or torch.equal(a["rows"], b["rows"])
    assert (weights(whole) - weights(small(tiny))).abs().max() > 1e-3  # and it did train
    assert all(row["clusters"] > 1 and "ari" in row and "agreement" in row for row in history[2:])


def test_an_epoch_is_one_line_and_a_figure() -> None:
    from reidlib import plots
    from reidlib.workbook.views import epoch_line

    row = {"clusters": 13, "outliers": 0.2, "largest": 0.1, "agreement": 0.75}
    history = [{"epoch": 0}, {"epoch": 1, "loss": 4.2, "seconds": 3.0, **row}]
    line = epoch_line(history, CLUSTERS)
    assert "loss 4.20  13 clusters, 20% outliers, 10% in the largest, agreement 0.75" in line
    assert [axes.get_title(loc="left") for axes in plots.training_curves(history).axes] == [
        "loss",
        "clusters",
        "images (%)",
    ]


def test_the_last_epoch_is_kept_and_the_best_is_called_so(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3])
    monkeypatch.setattr(loop, "_timed", lambda evaluate, model: {"mAP": next(scores)})
    settings = {"epochs": 3, "people": 2, "images": 2, "steps": 1, "milestones": [], "schedule": "cosine", "k1": 8}
    settings |= {"check_clusters": False, "eval_every": 1, "height": 64, "width": 32, "bn_group": 0, "min_samples": 2}
    job = Job.from_params(
        {"dataset": "synthetic-tiny", "recipe": "cluster_contrast", "cpu": True, "settings": settings}
    )
    assert job.model.num_classes is None
    job.train()
    assert job.run.read_json("model.json")["epoch"] == 3
    result = job.run.read_json("result.json")["results"]["synthetic-tiny"]
    assert result["mAP"] == 0.3
    assert result["best"] == {"mAP": 0.5}
    assert job.run.read_json("params.json")["contrast_weight"] == 1


def test_source_to_target_reads_the_labels_of_the_source_alone() -> None:
    data = load_adaptation("synthetic_b-tiny", "synthetic-tiny")
    recipe = replace(IMAGES, bn_group=4, domain_bn=True, epochs=2)
    histories = []
    for order in (1, -1):  # other true people of the target: nothing but what measures them changes
        pids = sorted({s.pid for s in data.train} - data.labelled)
        names = dict(zip(pids, pids[::order], strict=True))
        train = tuple(s._replace(pid=names.get(s.pid, s.pid)) for s in data.train)
        train = tuple(s._replace(pid=pids[n % 3]) if s.pid in pids and order < 0 else s for n, s in enumerate(train))
        model = small(data)
        histories.append(fit(model, replace(data, train=train), Run.create(f"order{order}", {}), recipe, CPU))
    for a, b in zip(*map(timeless, histories), strict=True):
        measured = ("ari", "nmi", "pair_precision", "pair_recall")
        assert {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}
    assert histories[0][1]["ari"] != histories[1][1]["ari"]


def test_unsound_clusters_stop_with_advice(tiny) -> None:
    assert not cluster_advice({"clusters": 16, "outliers": 0.5, "largest": 0.1}, 16)
    found = cluster_advice({"clusters": 3, "outliers": 0.9, "largest": 0.1}, 16)
    assert found.startswith("3 clusters are fewer than the 16 of a batch; 90% of the images are outliers: raise eps")
    with pytest.raises(ValueError, match="clusters are fewer than the 90 of a batch"):
        fit(small(tiny), tiny, Run.create("none", {}), replace(CLUSTERS, check_clusters=True, people=90), CPU)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cross_entropy_weight": 1.0}, "contrast_weight trains without labels"),
        ({"pk": False}, "needs batches of clusters"),
        ({"camera": (1, 2)}, "camera is four numbers or none"),
        ({"contrast_weight": 0.0}, "nothing to learn from"),
    ],
)
def test_recipes_that_contradict_themselves(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(RECIPES["cluster_contrast"], **settings)


def test_a_source_needs_a_recipe_of_clusters() -> None:
    with pytest.raises(ValueError, match="source is for recipes that find clusters"):
        Job.from_params({"source": "synthetic-tiny", "dataset": "synthetic_b-tiny"})
    with pytest.raises(ValueError, match="domain_bn needs a source"):
        Job.from_params({"recipe": "spcl_uda", "dataset": "synthetic_b-tiny"})
