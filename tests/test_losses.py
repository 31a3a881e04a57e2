"""Every loss against plain Python loops, its gradient where a rule of its own makes one, and what a criterion adds."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import reidlib
from reidlib.models.heads import CosineLinear, Outputs
from reidlib.seeds import torch_generator_for
from reidlib.training import RECIPES, Recipe
from reidlib.training.losses import (
    Criterion,
    center,
    cross_entropy,
    eigenvalue_spread,
    feature_spread,
    margin_cosines,
    triplet,
    weight_spread,
)

LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 0])  # 3 is alone: no pair, no triplet


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator_for(seed, "test"))


def model(name: str = "resnet50_bot", classes: int | None = 5, size: tuple[int, int] = (64, 32)) -> nn.Module:
    """On the meta device: shapes only."""
    with torch.device("meta"):
        return reidlib.create_model(name, num_classes=classes, num_cameras=3, input_size=size)


# On the scores of classes


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_cross_entropy_equals_a_plain_loop(focal: float) -> None:
    logits = normal(6, 5) * 3
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        each = -sum((0.9 * (c == label) + 0.1 / 5) * (row[c] - log_sum) for c in range(5))
        total += each * (1 - math.exp(row[label] - log_sum)) ** focal
    assert cross_entropy(logits, labels, 0.1, focal).item() == pytest.approx(total / 6, abs=1e-5)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "circle"])
def test_margins_equal_a_plain_loop(kind: str) -> None:
    labels, margin = torch.tensor([0, 1, 2, 3]), 0.35
    cosines = torch.nn.functional.normalize(normal(4, 5), dim=1)
    cosines[0, 0] = -0.99  # beyond what the angle can be widened by
    cosines[1, 1] = 0.9
    wanted = cosines.clone()
    for i, row in enumerate(cosines.tolist()):
        for c, x in enumerate(row):
            if kind == "circle":
                own = c == labels[i]
                wanted[i, c] = max(0, 1 + margin - x) * (x - 1 + margin) if own else max(0, x + margin) * (x - margin)
            elif c == labels[i]:
                angle = math.acos(x)
                beyond = angle > math.pi - margin
                arc = x - margin * math.sin(margin) if beyond else math.cos(angle + margin)
                wanted[i, c] = arc if kind == "arcface" else x - margin
    assert torch.allclose(margin_cosines(cosines, labels, kind, margin), wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "of"), [("arcface", "ArcFaceLoss"), ("cosface", "CosFaceLoss")])
def test_margins_equal_those_of_pytorch_metric_learning(kind: str, of: str) -> None:
    from pytorch_metric_learning import losses

    margin = 0.35
    theirs = getattr(losses, of)(5, 8, margin=math.degrees(margin) if kind == "arcface" else margin, scale=64)
    x, labels = normal(9, 8), LABELS
    with torch.no_grad():
        theirs.W.copy_(normal(8, 5, seed=1))
    weights = torch.nn.functional.normalize(theirs.W.detach(), dim=0)
    cosines = torch.nn.functional.normalize(x, dim=1) @ weights
    ours = cross_entropy(64 * margin_cosines(cosines, labels, kind, margin), labels, 0)
    assert ours.item() == pytest.approx(theirs(x, labels).item(), rel=1e-4)


def test_a_margin_makes_the_own_class_harder_and_pulls_on_it() -> None:
    cosines = torch.zeros(3, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 2])
    plain = cross_entropy(16 * cosines, labels, 0)
    for kind in ("arcface", "cosface", "circle"):
        loss = cross_entropy(16 * margin_cosines(cosines, labels, kind, 0.3), labels, 0)
        assert loss > plain
        (grad,) = torch.autograd.grad(loss, cosines)
        assert (grad.gather(1, labels[:, None]) < 0).all()
        assert (grad >= 0).sum() == 9


# On embeddings


def plain_triplet(x: torch.Tensor, labels: torch.Tensor, margin: float, mining: str) -> float:
    losses = []
    for i in range(len(x)):
        distance = [(x[i] - x[j]).norm().item() for j in range(len(x))]
        same = [j for j in range(len(x)) if labels[j] == labels[i]]
        others = [j for j in range(len(x)) if labels[j] != labels[i]]
        if len(same) < 2 or not others:
            continue
        if mining == "hard":
            far, near = max(distance[j] for j in same if j != i), min(distance[j] for j in others)
        else:
            heavy, light = ([math.exp(s * distance[j]) for j in js] for s, js in ((1, same), (-1, others)))
            far = sum(w * distance[j] for w, j in zip(heavy, same, strict=True)) / sum(heavy)
            near = sum(w * distance[j] for w, j in zip(light, others, strict=True)) / sum(light)
        losses.append(max(0.0, far - near + margin) if margin else math.log1p(math.exp(far - near)))
    assert len(losses) == 8
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mining", ["hard", "weighted"])
@pytest.mark.parametrize("margin", [0.3, 0.0])
def test_triplet_equals_a_plain_loop(margin: float, mining: str) -> None:
    x = normal(9, 4)
    assert triplet(x, LABELS, margin, mining).item() == pytest.approx(
        plain_triplet(x, LABELS, margin, mining), abs=1e-5
    )


def test_hard_triplet_equals_that_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning import distances, losses, miners, reducers

    x, labels = normal(12, 6), torch.arange(12) // 3
    euclidean = distances.LpDistance(normalize_embeddings=False)
    theirs = losses.TripletMarginLoss(0.3, distance=euclidean, reducer=reducers.MeanReducer())
    found = theirs(x, labels, miners.BatchHardMiner(distance=euclidean)(x, labels))
    assert triplet(x, labels, 0.3).item() == pytest.approx(found.item(), rel=1e-5)


@pytest.mark.parametrize("mining", ["hard", "weighted"])
def test_triplet_has_finite_gradients_where_it_is_hardest(mining: str) -> None:
    for labels in (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 3])):
        x = torch.ones(4, 3, requires_grad=True)  # all the same point
        triplet(x, labels, mining=mining).backward()
        assert torch.isfinite(x.grad).all()
    assert triplet(normal(4, 3), torch.arange(4), mining=mining).item() == 0


def test_center_equals_a_plain_loop_and_the_centers_follow() -> None:
    labels = torch.tensor([0, 0, 1, 4])
    criterion = Criterion(Recipe(center_weight=5e-4), model())
    assert [tuple(c.shape) for c in criterion.centers] == [(5, 2048)]
    x = normal(4, 2048).requires_grad_()
    before = criterion.centers[0].detach().clone()
    wanted = sum(((x[i] - before[labels[i]]) ** 2).sum() for i in range(4)).item() / 4
    assert center(x, labels, before).item() == pytest.approx(wanted, rel=1e-5)
    loss, parts = criterion(Outputs([normal(4, 5)], [x]), labels)
    assert parts["center"].item() == pytest.approx(wanted, rel=1e-5)
    assert (loss - parts["cross_entropy"]).item() == pytest.approx(5e-4 * wanted, rel=1e-3)
    loss.backward()
    criterion.update()
    after = criterion.centers[0]
    moved = [0.5 * 2 / 4 * sum(before[k] - x[i] for i in range(4) if labels[i] == k) for k in (0, 1, 4)]
    for k, step in zip((0, 1, 4), moved, strict=True):
        assert torch.allclose(before[k] - step, after[k], atol=1e-4)
    assert torch.equal(before[[2, 3]], after[[2, 3]])
    assert after.grad is None
    state = criterion.state_dict()
    assert torch.equal(state["centers.0"], after)


def test_circle_loss_of_pairs_equals_a_plain_loop() -> None:
    x = normal(8, 4)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    _, parts = Criterion(Recipe(circle_weight=1.0), model())(Outputs([normal(8, 5)], [x]), labels)
    unit, m, gamma, losses = x / x.norm(dim=1, keepdim=True), 0.25, 128, []
    for i in range(8):
        terms = {True: [], False: []}
        for j in range(8):
            s = float(unit[i] @ unit[j])
            if i != j and labels[i] == labels[j]:
                terms[True].append(-gamma * max(0, 1 + m - s) * (s - 1 + m))
            elif i != j:
                terms[False].append(gamma * max(0, s + m) * (s - m))
        both = sum(float(torch.logsumexp(torch.tensor(t), 0)) for t in terms.values())
        losses.append(max(0, both) + math.log1p(math.exp(-abs(both))))
    assert parts["circle"].item() == pytest.approx(sum(losses) / 8, rel=1e-4)


# Orthogonality


def test_one_step_of_the_spread_equals_a_plain_loop() -> None:
    rows = normal(2, 4, 7)
    starts = [normal(4, 1, seed=1), normal(4, 1, seed=2)]
    spread = eigenvalue_spread(rows, lambda *shape, device: starts.pop(0).clone())
    for one, found in zip(rows, spread, strict=True):
        gram = [[sum(a * b for a, b in zip(r, s, strict=True)) for s in one.tolist()] for r in one.tolist()]

        def rayleigh(matrix: list[list[float]], x: list[float]) -> float:
            for _ in range(2):
                before, x = x, [sum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]
            return sum(a * b for a, b in zip(before, x, strict=True)) / sum(a * a for a in before)

        first, second = (normal(4, 1, seed=s)[:, 0].tolist() for s in (1, 2))
        largest = rayleigh(gram, first)
        shifted = [[gram[i][j] - largest * (i == j) for j in range(4)] for i in range(4)]
        assert found.item() == pytest.approx(-rayleigh(shifted, second), rel=1e-4)


def test_many_steps_find_the_eigenvalues_and_orthogonal_rows_have_no_spread() -> None:
    rows = normal(3, 5, 9)
    values = torch.linalg.svdvals(rows) ** 2
    assert torch.allclose(eigenvalue_spread(rows, steps=400), values[:, 0] - values[:, -1], rtol=1e-3)
    square = torch.linalg.qr(normal(6, 6))[0]
    assert eigenvalue_spread(3 * square).abs() < 1e-4


def test_the_penalty_makes_filters_less_alike() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(2, 4, 3)
        optimizer = torch.optim.SGD(conv.parameters(), 0.02)
        spread = [eigenvalue_spread(conv.weight.flatten(1), steps=200).item()]
        for _ in range(60):
            optimizer.zero_grad()
            weight_spread([conv]).backward()
            optimizer.step()
        assert eigenvalue_spread(conv.weight.flatten(1), steps=200).item() < 0.5 * spread[0]
        a, b = normal(2, 3, 4, 2), normal(2, 3, 4, 2, seed=1)
        torch.manual_seed(1)
        both = feature_spread([a, b])
        torch.manual_seed(1)
        assert both.item() == pytest.approx(sum(32 * eigenvalue_spread(x.flatten(2)).mean() for x in (a, b)).item())


def test_abd_gives_its_maps_and_its_first_convolution_to_the_penalties() -> None:
    recipe = replace(RECIPES["abd"], height=0, width=0)
    abd = model("resnet50_abd")
    criterion = Criterion(recipe, abd)
    assert criterion.convolutions[0] == [abd.network.backbone.shallow[0]]
    assert not list(criterion.parameters())  # the model's are not the criterion's
    assert [tuple(x.shape[1:3]) for x in abd.output_shapes().maps] == [(256, 16)] + 8 * [(1024, 2)]


# The criterion


def test_losses_are_computed_in_float32_under_autocast() -> None:
    labels = torch.arange(8) // 2
    x, logits = normal(8, 2048).bfloat16(), normal(8, 5).bfloat16()
    recipe = Recipe(triplet_weight=1.0, center_weight=1.0, circle_weight=1.0)
    criterion, parts = Criterion(recipe, model()), {}
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, parts[dtype] = criterion(Outputs([logits.to(dtype)], [x.to(dtype)]), labels)
        assert loss.dtype == torch.float32
        assert all(value.dtype == torch.float32 for value in parts[dtype].values())
    assert parts[torch.bfloat16] == parts[torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        assert CosineLinear(16, 3)(torch.randn(4, 16)).dtype == torch.float32


def test_branches_are_averaged_with_a_share_of_their_own_for_the_first() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    branches = [normal(4, 5, seed=s) for s in range(3)]
    for share in (0.0, 0.5):
        recipe = Recipe(triplet_weight=1.0, first_branch=share)
        criterion = Criterion(recipe, model())
        first, *rest = (criterion(Outputs([x], [x]), labels)[0].item() for x in branches)
        together = criterion(Outputs(branches, branches), labels)[0].item()
        mean = (first + sum(rest)) / 3
        assert together == pytest.approx(share * first + (1 - share) * sum(rest) / 2 if share else mean, rel=1e-5)


def test_the_classifiers_margin_is_taken_on_its_cosines() -> None:
    recipe = Recipe(softmax="circle", smoothing=0)
    cosines, labels = torch.nn.functional.normalize(normal(4, 5), dim=1), torch.tensor([0, 1, 2, 3])
    _, parts = Criterion(recipe, model("sbs_R50_fastreid"))(Outputs([64 * cosines], [cosines]), labels)
    wanted = cross_entropy(64 * margin_cosines(cosines, labels, "circle", 0.35), labels, 0)
    assert parts["cross_entropy"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_penalty_on_features_waits_for_its_epoch() -> None:
    recipe = Recipe(orthogonal_features=1e-6, orthogonal_features_after=2, epochs=5)
    criterion = Criterion(recipe, model("resnet50_abd"))
    outputs = Outputs([normal(4, 5)], [normal(4, 8)], [normal(4, 6, 3, 2)])
    seen = []
    for criterion.epoch in (1, 2, 3):
        seen.append("orthogonal_features" in criterion(outputs, torch.arange(4))[1])
    assert seen == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "of", "said"),
    [
        ({}, {"classes": None}, "cross_entropy_weight=1.0, but resnet50_bot has no classifier: build it with num_cl"),
        ({"center_weight": 1.0, "cross_entropy_weight": 0, "triplet_weight": 1.0}, {"classes": None}, "center_weight"),
        ({"orthogonal_features": 1e-6}, {}, "resnet50_bot has no attentive maps: use an ABD model, or set it to 0"),
        ({"orthogonal_weights": 1e-3}, {"name": "osnet_x0_25"}, "begins with a convolution, unlike osnet_x0_25's"),
        ({"softmax": "circle"}, {}, "needs a classifier of cosines, and resnet50_bot has none"),
        ({"height": 256, "width": 128}, {}, "wants 256 × 128 pixels, resnet50_bot was built for 64 × 32"),
    ],
)
def test_a_model_that_lacks_what_a_recipe_asks_for_is_refused(settings: dict, of: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Criterion(replace(Recipe(), **settings), model(**of))


def test_looking_at_a_model_leaves_it_as_it_was() -> None:
    net = reidlib.create_model("osnet_x0_25", num_classes=3, input_size=(64, 32)).eval()
    net.network.head.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    outputs = net.output_shapes()
    assert [tuple(x.shape) for x in outputs.logits] == [(2, 3)]
    assert outputs.logits[0].is_meta
    assert not net.training
    assert net.network.head.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
