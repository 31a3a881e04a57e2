"""The loop: accumulation, clipping, averaged weights, early stopping, what it measures; each with an exact resume."""

import re
from dataclasses import replace

import pytest
import torch
from loop_cases import PLAIN, SIZE, small, timeless, weights
from torch import nn

from reidlib.training import Setup, fit, loop
from reidlib.training.losses import Criterion
from reidlib.training.optim import AveragedWeights, build_optimizer, set_rate
from reidlib.workbook.runs import Run


def test_accumulated_batches_are_one_bigger_batch(tiny) -> None:
    whole, parts = small(tiny), small(tiny)
    a = fit(whole, tiny, Run.create("whole", {}), PLAIN)
    b = fit(parts, tiny, Run.create("parts", {}), replace(PLAIN, people=2, accumulate=2))
    assert (weights(whole) - weights(parts)).abs().max() < 1e-5
    assert (weights(whole) - weights(small(tiny))).abs().max() > 1e-2  # and it did train
    assert [row["loss"] for row in a[1:]] == pytest.approx([row["loss"] for row in b[1:]], rel=1e-5)
    assert [row["gradient_norm"] for row in a[1:]] == pytest.approx([row["gradient_norm"] for row in b[1:]], rel=1e-4)


def test_a_rest_of_batches_counts_in_full(tiny) -> None:
    """11 batches by threes: the last step is the mean of two, not two thirds of it."""
    recipe = replace(PLAIN, epochs=1, accumulate=3)
    got, model = small(tiny), small(tiny)
    fit(got, tiny, Run.create("rest", {}), recipe)
    loader = loop_loader(tiny, recipe)
    assert len(loader) % 3 == 2
    criterion, optimizer = Criterion(recipe, model), build_optimizer(model, recipe)
    batches = list(loader)
    for start in range(0, len(batches), 3):
        group = batches[start : start + 3]
        set_rate(optimizer, recipe, start / len(batches))
        loss = sum(criterion(model(b.images), b.pids)[0] for b in group) / len(group)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (weights(got) - weights(model)).abs().max() < 1e-6


def loop_loader(data, recipe):
    from reidlib.data.loaders import train_loader

    loader = train_loader(data, SIZE, people=recipe.people, images=recipe.images)
    loader.sampler.set_epoch(1)
    return loader


def test_a_clipped_gradient_moves_no_further(tiny) -> None:
    recipe = replace(PLAIN, epochs=1, clip=1e-3, weight_decay=0)
    before, model = small(tiny), small(tiny)
    row = fit(model, tiny, Run.create("clipped", {}), recipe)[1]
    assert row["gradient_norm"] > 1e-3  # what is written is the length before
    steps = 11  # each at most lr × clip × (1 + 0.9 + 0.81 + …), with momentum
    assert 0 < (weights(model) - weights(before)).norm() <= steps * 0.05 * 1e-3 * 10


def test_averaged_weights_equal_a_plain_loop() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = AveragedWeights(model, 0.9)
    mean = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for n in range(200):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
            model(torch.randn(3, 1, 4, 4))
        average.update_parameters(model)
        decay = min(0.9, (1 + n) / (10 + n))
        for name, tensor in model.state_dict().items():
            new = decay * mean[name] + (1 - decay) * tensor
            mean[name] = new if tensor.is_floating_point() else tensor.clone()
    state = average.module.state_dict()
    assert all(torch.allclose(state[name], mean[name], atol=1e-5) for name in mean)
    assert state["1.num_batches_tracked"] == 200


def test_averaged_weights_are_what_is_kept(tiny) -> None:
    run, model = Run.create("averaged", {}), small(tiny)
    fit(model, tiny, run, replace(PLAIN, epochs=1, ema=0.9))  # the only epoch is the best
    state = torch.load(run.path / "last.pt", weights_only=True)
    averaged = state["average"]["module.network.stem.weight"]
    assert state["average"]["n_averaged"] == 11
    assert not torch.equal(state["model"]["network.stem.weight"], averaged)
    assert torch.equal(model.state_dict()["network.stem.weight"], averaged)


def test_patience_ends_a_run_and_says_so(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.3, 0.5, 0.4, 0.5, 0.2, 0.9])
    monkeypatch.setattr(loop, "_timed", lambda evaluate, model: {"mAP": next(scores)})
    run = Run.create("patient", {})
    recipe = replace(PLAIN, epochs=12, patience=3)
    history = fit(small(tiny), tiny, run, recipe)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4, 5]
    assert history[-1]["stopped"] == "no better mAP than 50.0% of epoch 2 in 3 evaluations"
    assert not any("stopped" in row for row in history[:-1])
    assert run.read_json("model.json")["epoch"] == 2
    assert run.metrics == history
    assert fit(small(tiny), tiny, run, recipe) == history  # a run that stopped is finished
    assert next(scores) == 0.9


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("survived", [8, 10])  # updates: two epochs, or half of the third as well
def test_a_resumed_run_is_the_same_run(tiny, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    recipe = replace(
        PLAIN, epochs=4, accumulate=3, clip=0.5, ema=0.9, patience=3, optimizer="adam", augment=("random_crop",)
    )
    whole, broken, rest = (small(tiny, dropout=0.5) for _ in range(3))
    one, two = Run.create("one", {}), Run.create("two", {})
    history = fit(whole, tiny, one, recipe)
    updates, update = iter(range(survived)), loop.Trainer.update

    def until(self):
        if next(updates, None) is None:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "update", until)
        with pytest.raises(Killed):
            fit(broken, tiny, two, recipe)
    assert len(two.metrics) == 3
    assert timeless(fit(rest, tiny, two, recipe)) == timeless(history)
    assert torch.equal(weights(whole), weights(rest))
    a, b = (torch.load(run.path / "last.pt", weights_only=True) for run in (one, two))
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert all(torch.equal(v, b["average"][k]) for k, v in a["average"].items())


def test_each_epoch_says_what_it_cost(tiny) -> None:
    history = fit(small(tiny), tiny, Run.create("measured", {}), PLAIN)
    for row in history[1:]:
        assert row["lr"] > 0
        assert row["gradient_norm"] > 0
        assert row["images_per_second"] == pytest.approx(11 * 8 / row["seconds"], rel=0.1)
        assert 0 <= row["loading"] <= 1
        assert 50 < row["memory_mib"] < 64 * 2**10
    assert all(row["eval_seconds"] > 0 for row in history)


def test_progress_within_an_epoch_is_shown_to_who_asks(tiny, capsys) -> None:
    recipe = replace(PLAIN, epochs=1)
    fit(small(tiny), tiny, Run.create("silent", {}), recipe)
    assert capsys.readouterr() == ("", "")
    fit(small(tiny), tiny, Run.create("watched", {}), recipe, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"epoch 1 of 1: +\d+%\|.* \d+/88 \[\d\d:\d\d<.* images/s\]", shown.err)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_as_a_cpu_does(tiny) -> None:
    on_cpu = fit(small(tiny), tiny, Run.create("cpu", {}), PLAIN, Setup(cpu=True))
    exact = fit(small(tiny), tiny, Run.create("exact", {}), PLAIN, Setup(bfloat16=False))
    run = Run.create("half", {})
    half = fit(small(tiny), tiny, run, PLAIN)
    for a, b, c in zip(on_cpu[1:], exact[1:], half[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["loss"] == pytest.approx(c["loss"], rel=5e-2)
    assert run.read_json("environment.json")["not_deterministic"]
    model = small(tiny)
    model.network.scale.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(FloatingPointError, match=r"1 gradient is NaN or infinite, starting at network\.scale\.weight"):
        fit(model, tiny, Run.create("nan", {}), PLAIN)
