"""Training without labels: samplers of clusters, norms over parts of a batch, and the loop that finds its labels."""

import copy
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from eval_cases import one_thread  # noqa: F401 (a fixture)
from loop_cases import small, timeless, weights
from torch import nn
from torch.nn.functional import normalize

from reidlib.data.datasets import load_adaptation
from reidlib.data.samplers import ClusterSampler, JoinedSampler
from reidlib.evaluation import extract_features
from reidlib.models import Outputs, create_model
from reidlib.seeds import seeded
from reidlib.training import Job, Recipe, Setup, fit, loop
from reidlib.training.losses import Criterion
from reidlib.training.norms import split_norms
from reidlib.training.recipes import RECIPES
from reidlib.training.refinement import MutualPair, agreement, refined
from reidlib.training.relabel import cluster_advice, num_classes
from reidlib.workbook import views
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
CLASSES = replace(
    CLUSTERS, contrast_weight=0.0, clusters=True, cross_entropy_weight=2.0, triplet_weight=1.0, margin=0.0, epochs=2
)
MUTUAL = replace(
    CLASSES,
    mutual=True,
    soft_cross_entropy=0.5,
    soft_triplet=0.8,
    ema=0.9,
    reset_optimizer=True,
    augment=("random_flip", "random_erasing"),
)
PARTS = replace(CLASSES, steps=3, parts=2, parts_after=1, part_neighbours=5, first_branch=0.5)
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


# ---- what refines labels ---------------------------------------------------------------------------------------------


class _Classes:
    num_classes = 4


# ---- the loop --------------------------------------------------------------------------------------------------------


def _model(data, recipe: Recipe):
    """A network without norms, but for parts, which need a trunk and a head."""
    if not recipe.parts:
        return small(data)
    with seeded(0, "weights"):
        return create_model("osnet_x0_25", num_classes=num_classes(data, recipe), input_size=(64, 32))


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("recipe", [CLUSTERS, IMAGES, MUTUAL, PARTS], ids=["clusters", "images", "mutual", "parts"])
def test_a_resumed_run_finds_the_same_clusters(tiny, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    whole, broken, rest = (_model(tiny, recipe) for _ in range(3))
    one, two = Run.create("one", {}), Run.create("two", {})
    history = fit(whole, tiny, one, recipe, CPU)
    updates, update = iter(range(recipe.steps * (recipe.epochs - 1) + 2)), loop.Trainer.update

    def until(self):
        if next(updates, None) is None:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "update", until)
        with pytest.raises(Killed):
            fit(broken, tiny, two, recipe, CPU)
    assert len(two.metrics) == recipe.epochs
    assert timeless(fit(rest, tiny, two, recipe, CPU)) == timeless(history)
    assert torch.equal(weights(whole), weights(rest))
    a, b = (torch.load(run.path / "last.pt", weights_only=True)["relabel"] for run in (one, two))
    assert torch.equal(a["labels"], b["labels"])
    assert a["threshold"] == b["threshold"]
    assert (a["rows"] is None) == (b["rows"] is None) == (recipe is not IMAGES)
    assert recipe is not IMAGES or torch.equal(a["rows"], b["rows"])
    assert (weights(whole) - weights(_model(tiny, recipe))).abs().max() > 1e-3  # and it did train
    assert all(row["clusters"] > 1 and "ari" in row and "agreement" in row for row in history[2:])


def test_each_of_two_networks_learns_from_the_average_of_the_other() -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(2)
    own, taught = (Outputs([*torch.randn(2, 8, 4)], [*torch.randn(2, 8, 6)]) for _ in range(2))
    found = Criterion(MUTUAL, small(_Classes))(own, labels, taught)[1]
    soft, order = [], []
    for i in range(2):
        target, scores = taught.logits[1 - i].softmax(1), own.logits[i].log_softmax(1)
        soft.append(-sum(target[b, c] * scores[b, c] for b in range(8) for c in range(4)) / 8)
        d, t = (torch.cdist(x, x) for x in (own.embeddings[i], taught.embeddings[1 - i]))
        for a in range(8):
            far = max((b for b in range(8) if b != a and labels[b] == labels[a]), key=lambda b: d[a, b])
            near = min((b for b in range(8) if labels[b] != labels[a]), key=lambda b: d[a, b])
            p, q = (torch.stack([x[a, far], x[a, near]]).softmax(0) for x in (t, d))
            order.append(-(p * q.log()).sum())
    assert torch.allclose(found["soft_cross_entropy"], torch.stack(soft).mean(), atol=1e-5)
    assert torch.allclose(found["soft_triplet"], torch.stack(order).mean(), atol=1e-5)
    assert set(found) == {"cross_entropy", "soft_cross_entropy", "triplet", "soft_triplet"}


def test_a_pair_sees_two_views_and_is_ranked_by_its_mean(tiny) -> None:
    pair = MutualPair(small(tiny))
    assert torch.equal(weights(pair.first), weights(pair.second))
    views = torch.randint(0, 256, (6, 3, 32, 16), dtype=torch.uint8)
    with torch.no_grad():
        pair.second.network.scale.weight.mul_(2)
        outputs = pair.train()(views)
        pair.eval()
        assert torch.equal(outputs.embeddings[0], pair.first(views[:3]))
        assert torch.equal(outputs.embeddings[1], pair.second(views[3:]))
        mean = (normalize(pair.first(views)) + normalize(pair.second(views))) / 2
        assert torch.allclose(pair(views), mean)


def test_parts_agree_by_their_neighbours_and_refine_labels() -> None:
    torch.manual_seed(0)
    whole, part, other = torch.randn(3, 12, 5)
    found = agreement(whole, [whole, part], 4)
    assert torch.equal(found[:, 0], torch.ones(12))
    lists = [(normalize(x) @ normalize(x).T).topk(4).indices.tolist() for x in (whole, part)]
    expected = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in zip(*lists, strict=True)]
    assert torch.allclose(found[:, 1], torch.tensor(expected))

    logits, labels = [x[:, :4] for x in (whole, part, other)], torch.arange(12) % 4
    first, *parts = refined(logits, labels, found, 0.5, None)
    weight = found.exp() / found.exp().sum(1, keepdim=True)
    for i in range(12):
        one = torch.eye(4)[labels[i]]
        predicted = weight[i, 0] * logits[1][i].softmax(0) + weight[i, 1] * logits[2][i].softmax(0)
        assert torch.allclose(first[i], 0.5 * one + 0.5 * predicted, atol=1e-6)
        for p in range(2):
            assert torch.allclose(parts[p][i], found[i, p] * one + (1 - found[i, p]) / 4, atol=1e-6)
    assert torch.allclose(refined(logits, labels, found, 0.5, 0.1)[1], 0.9 * torch.eye(4)[labels] + 0.025)


def test_classifiers_begin_an_epoch_with_the_means_of_the_clusters(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    train_epoch = loop.Trainer._relabel

    def note(self, epoch):
        found = train_epoch(self, epoch)
        feats = normalize(extract_features(self.model, self.relabel.batches).feats)
        labels = self.relabel.labels
        for c in range(int(labels.max()) + 1):
            mean = normalize(feats[labels == c].mean(0), dim=0)
            assert torch.allclose(self.model.network.classifier.weight[c], mean, atol=1e-5)
        assert self.criterion.classes == int(labels.max()) + 1 == found["clusters"]
        assert not self.model.network.classifier.bias.any()
        seen.append(found)
        return found

    monkeypatch.setattr(loop.Trainer, "_relabel", note)
    history = fit(small(tiny), tiny, Run.create("classes", {}), CLASSES, CPU)
    assert len(seen) == 2
    assert 0 < history[-1]["accuracy"] <= 1
    with pytest.raises(ValueError, match="classifies another feature than it ranks by"):
        Criterion(CLASSES, create_model("pcb_p4", num_classes=4, input_size=(64, 32)))
    with pytest.raises(ValueError, match="needs a trunk with one map and one head"):
        Criterion(PARTS, small(tiny))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmt", "pplr"])
def test_recipes_of_clusters_run(name: str) -> None:
    settings = {"epochs": 2, "people": 2, "images": 2, "steps": 2, "k1": 8, "min_samples": 2, "eval_every": 1}
    settings |= {"check_clusters": False, "height": 64, "width": 32, "bn_group": 2, "lr": 1e-3, "parts_after": 1}
    settings |= {"schedule": "cosine", "milestones": [], "domain_bn": True}
    data = {"source": "synthetic-tiny", "dataset": "synthetic_b-tiny"}
    job = Job.from_params(data | {"recipe": name, "cpu": True, "settings": settings})
    history = job.train()
    assert history[-1]["epoch"] == 2
    assert history[-1]["clusters"]
    again = create_model("osnet_x0_25", weights=str(job.run.path), input_size=(64, 32))
    assert again.feature_dim == job.model.feature_dim
    state = torch.load(job.run.path / "last.pt", weights_only=True)
    assert any(key.startswith("second.") for key in state["model"]) == (name == "mmt")
    assert any(key.startswith("learned.parts.") for key in state["criterion"]) == (name == "pplr")


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
        ({"clusters": True}, "clusters are new classes in each epoch"),
        ({"mutual": True}, "learn from averaged weights"),
        ({"parts": 2}, "parts refine the labels of clusters"),
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


def test_a_folder_without_labels_is_clustered_and_its_last_epoch_is_kept(tiny, tmp_path) -> None:
    for n, sample in enumerate(tiny.train[:40]):
        (tmp_path / f"c{n % 2}").mkdir(exist_ok=True)
        shutil.copy(sample.path, tmp_path / f"c{n % 2}" / f"{n}.jpg")
    settings = asdict(replace(CLUSTERS, epochs=2, steps=2, height=64, width=32)) | {"cpu": True}
    job = Job.from_params({"dataset": str(tmp_path), "recipe": "cluster_contrast", "settings": settings})
    assert [len(split) for split in job.data.splits.values()] == [40, 0, 0]
    assert "stop" not in {finding.verdict for finding in job.findings}
    history = job.train()
    assert "ari" not in history[-1]
    assert "mAP" not in history[-1]
    assert job.run.read_json("model.json")["epoch"] == 2
    assert views.result_table(job, history).loc[:, "clusters"].item() == history[-1]["clusters"]
    assert views.training_sheet(job.data).axes
    tested = load_adaptation("", str(tmp_path), tested_on="synthetic-tiny")
    assert [len(split) for split in tested.splits.values()] == [40, len(tiny.query), len(tiny.gallery)]
    both = load_adaptation("synthetic-tiny", str(tmp_path))
    assert (len(both.train), len(both.labelled)) == (len(tiny.train) + 40, tiny.num_classes)
