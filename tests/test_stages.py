"""Training in stages, and CLIP-ReID's two: what they compute, that they resume exactly, what is refused."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from loop_cases import PLAIN, small, timeless, weights
from torch import nn
from torch.nn import functional as F

from reidlib import paths
from reidlib.models import zoo
from reidlib.models.backbones.clip_text import read_text_encoder
from reidlib.models.heads import Outputs
from reidlib.models.weights import find_weights
from reidlib.training import RECIPES, Recipe, fit, loop
from reidlib.training.job import Job
from reidlib.training.losses import LOSSES, Criterion
from reidlib.training.prompts import AFTER, BEFORE, _text_file
from reidlib.workbook.runs import Run

PROMPTS = {"epochs": 2, "trained": "losses", "losses": ["prompts"], "cross_entropy_weight": 0.0, "lr": 0.1}
PROMPTS |= {"optimizer": "adam", "pk": False}


def write_clip(path: Path, project: int = 16) -> Path:
    """A file of CLIP's, both towers, with texts of `project` numbers and one block of width 64."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"positional_embedding": (77, 64), "text_projection": (64, project), "token_embedding.weight": (49408, 64)}
    shapes |= {"ln_final.weight": (64,), "ln_final.bias": (64,), "logit_scale": (), "visual.proj": (64, 16)}
    block = {"attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,), "ln_1.weight": (64,), "ln_1.bias": (64,)}
    block |= {"attn.out_proj.weight": (64, 64), "attn.out_proj.bias": (64,), "ln_2.weight": (64,), "ln_2.bias": (64,)}
    block |= {"mlp.c_fc.weight": (256, 64), "mlp.c_fc.bias": (256,)}
    block |= {"mlp.c_proj.weight": (64, 256), "mlp.c_proj.bias": (64,)}
    shapes |= {f"transformer.resblocks.0.{name}": shape for name, shape in block.items()}
    state = {key: (0.2 * torch.randn(shape, generator=draw)).half() for key, shape in shapes.items()}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip.pt")


# What a recipe of stages is


def test_a_stage_has_its_own_settings_and_the_last_stage_the_recipes() -> None:
    recipe = Recipe(epochs=10, warmup=2, lr=0.1, stages=[{"epochs": 3, "lr": 0.5, "milestones": [1], "warmup": 0.0}])
    first, last = recipe.in_stages()
    assert (first.epochs, first.lr, first.milestones, first.people) == (3, 0.5, (1,), recipe.people)
    assert last == replace(recipe, stages=(), epochs=7)
    assert PLAIN.in_stages() == [PLAIN]


@pytest.mark.parametrize("epochs", [2, 5, 7, 90])
def test_stages_are_scaled_together(epochs: int) -> None:
    recipe = RECIPES["clipreid"]
    small = recipe.scaled(epochs)
    assert small.epochs == epochs
    assert Recipe(**{**vars(small), "stages": list(small.stages)}) == small
    for stage, whole in zip(small.in_stages(), recipe.in_stages(), strict=True):
        length = stage.epochs
        assert length == pytest.approx(whole.epochs * epochs / 180, abs=1)
        assert set(stage.changed(whole.scaled(length))) <= {"eval_every", "milestones"}
        assert stage.milestones == whole.scaled(length).milestones or stage.schedule == "cosine"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"epochs": 8}], "take 8 of 8 epochs: raise epochs"),
        ([{"lr": 0.1}], "stage 1 of the recipe has no number of epochs"),
        ([{"epochs": 1, "lrr": 0.1}], "unknown setting of stage 1 'lrr': did you mean 'lr'"),
        ([{"epochs": 1, "height": 32}], "unknown setting of stage 1 'height'"),
        ([{"epochs": 1}, {"epochs": 1, "lr": -1.0}], "stage 2: lr must be above 0"),
        ([{"epochs": 1, "trained": "prompts"}], "stage 1: unknown trained 'prompts'"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(stages=stages, warmup=0)


# They resume exactly


class Killed(Exception):
    """Stands for a kill."""


def killed_after(monkeypatch: pytest.MonkeyPatch, updates: int, train) -> None:
    left, update = iter(range(updates)), loop.Trainer.update

    def until(self):
        if next(left, None) is None:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "update", until)
        with pytest.raises(Killed):
            train()


_WHOLE: list[tuple] = []  # of `in_two_stages`, which all tests of this file look at


@pytest.fixture
def in_two_stages(tiny, clip_file):
    """The recipe, the history, the model and the last checkpoint of a run that nothing interrupted."""
    if _WHOLE:
        return _WHOLE[0]
    recipe = replace(PLAIN, epochs=4, losses=("image_to_text",), stages=(PROMPTS,), text_weights=str(clip_file))
    run, model = Run.create("in-two-stages", {}), small(tiny, dropout=0.5)
    history = fit(model, tiny, run, recipe)
    _WHOLE.append((recipe, history, model, torch.load(run.path / "last.pt", weights_only=True)))
    return _WHOLE[0]


# Of 11 updates an epoch: in the first stage, after it, before the second has ended an epoch, and then.
@pytest.mark.parametrize("updates", [15, 22, 26, 36])
def test_a_run_in_stages_resumes_exactly(tiny, in_two_stages, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    recipe, history, whole, last = in_two_stages
    run, model = Run.create(f"killed-{updates}", {}), small(tiny, dropout=0.5)
    killed_after(monkeypatch, updates, lambda: fit(small(tiny, dropout=0.5), tiny, run, recipe))
    assert len(run.metrics) == 1 + updates // 11
    assert timeless(fit(model, tiny, run, recipe)) == timeless(history)
    assert torch.equal(weights(model), weights(whole))
    resumed = torch.load(run.path / "last.pt", weights_only=True)
    assert torch.equal(
        resumed["criterion"]["learned.image_to_text.texts"], last["criterion"]["learned.image_to_text.texts"]
    )


def test_the_first_stage_learns_prompts_and_the_second_the_network(tiny, in_two_stages, tmp_path) -> None:
    recipe, history, model, last = in_two_stages
    first, second = history[1:3], history[3:]
    assert [row["stage"] for row in history[1:]] == [1, 1, 2, 2]
    assert first[1]["loss"] < first[0]["loss"] - 0.01
    assert {"cross_entropy", "image_to_text"} <= second[0].keys()
    assert not any("mAP" in row for row in first)
    assert all("mAP" in row for row in second)
    assert list(last["criterion"]) == ["learned.image_to_text.texts"]
    assert last["criterion"]["learned.image_to_text.texts"].shape == (tiny.num_classes, 16)
    assert last["criterion"]["learned.image_to_text.texts"].std(0).mean() > 1e-3  # people have texts of their own
    assert not torch.equal(weights(model), weights(small(tiny)))
    run, model = Run.create("first-only", {}), small(tiny, dropout=0.5)
    with pytest.raises(Killed):
        fit(model, tiny, run, recipe, on_epoch=lambda history: stop_at(history, 2))
    assert torch.equal(weights(model), weights(small(tiny)))
    checkpoint = torch.load(run.path / "last.pt", weights_only=True)
    assert list(checkpoint["criterion"]) == ["learned.prompts.vectors"]  # not the text encoder


def stop_at(history, epoch: int) -> None:
    if history[-1]["epoch"] == epoch:
        raise Killed


class Remembers(nn.Module):
    """A loss with a number that it learns."""

    def __init__(self, model) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))

    def forward(self, outputs, labels):
        self.seen.append(float(self.number))
        return (self.number - 3) ** 2


def test_stages_of_any_kind_hand_on_what_was_learned(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "remembers", Remembers)
    recipe = replace(PLAIN, losses=("remembers",), lr=0.01, stages=({"epochs": 1, "lr": 0.02},))
    seen = Remembers.seen = []
    fit(small(tiny), tiny, Run.create("handed-on", {}), recipe)
    assert len(seen) == 22
    assert seen[0] == 0
    assert abs(seen[11] - seen[10]) < 0.2 < seen[10]  # goes on where it was


@pytest.mark.slow
def test_two_processes_train_in_stages(tiny, world, tmp_path) -> None:
    """Both have the same prompts, as gradients are averaged, and the second stage compares with the same texts."""
    settings = {"people": 3, "images": 2, "epochs": 2, "height": 64, "width": 32, "losses": ["image_to_text"]}
    settings |= {"text_weights": str(write_clip(tmp_path / "clip.pt", 512)), "stages": [PROMPTS | {"epochs": 1}]}
    params = {"model": "osnet_x0_25", "recipe": "toy", "dataset": "synthetic-tiny", "run": "pair", "cpu": True}
    history = Job.from_params(params | settings | {"num_processes": 2}).train()
    assert [row.get("stage") for row in history] == [None, 1, 2]
    assert 0 < history[-1]["mAP"] <= 1


# What CLIP-ReID's losses compute


def test_the_text_encoder_equals_torchs_layer_on_77_tokens(clip_file) -> None:
    """What follows the end of a text changes nothing, as nothing attends to what is behind it."""
    encoder, tokens = read_text_encoder(clip_file)
    state = {key: value.float() for key, value in torch.load(clip_file).items()}
    layer = nn.TransformerEncoderLayer(
        64, 1, 256, 0.0, lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
    )
    names = {"attn.in_proj_": "self_attn.in_proj_", "attn.out_proj": "self_attn.out_proj", "ln_1": "norm1"}
    names |= {"ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
    own = {key.removeprefix("transformer.resblocks.0."): value for key, value in state.items() if ".0." in key}
    for old, new in names.items():
        own = {key.replace(old, new): value for key, value in own.items()}
    layer.load_state_dict(own)
    ids = torch.tensor([[*BEFORE, 343, 343, 343, 343, *AFTER] + [0] * 65])
    with torch.no_grad():
        x = tokens[ids] + state["positional_embedding"]
        x = layer(x, nn.Transformer.generate_square_subsequent_mask(77), is_causal=True)
        x = F.layer_norm(x[:, 11], (64,), state["ln_final.weight"], state["ln_final.bias"])
        torch.testing.assert_close(encoder(tokens[ids[:, :12]]), x @ state["text_projection"], rtol=1e-5, atol=1e-5)


def test_the_losses_equal_plain_loops(tiny, in_two_stages) -> None:
    recipe = in_two_stages[0]
    first, last = (Criterion(stage, small(tiny)) for stage in recipe.in_stages())
    prompts, labels = first.learned["prompts"], torch.tensor([0, 3, 3, 1, 0])
    images = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = prompts(Outputs([], [images]), labels)
        texts = [prompts.texts(label[None])[0] for label in labels]
    expected = 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i, row in enumerate(rows):
            total = math.log(sum(math.exp(row @ column) for column in columns))
            own = [float(row @ column) - total for j, column in enumerate(columns) if labels[i] == labels[j]]
            expected -= sum(own) / len(own) / 5
    assert found.item() == pytest.approx(expected, rel=1e-5)
    last.begin(first)
    loss = last.learned["image_to_text"]
    assert torch.equal(loss.texts[3], texts[1]) or torch.allclose(loss.texts[3], texts[1], atol=1e-6)
    expected = F.cross_entropy(images @ torch.stack(list(loss.texts)).T, labels, label_smoothing=recipe.smoothing)
    assert loss(Outputs([], [images]), labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_weights": ""}, "needs a file of CLIP with its text encoder, and none is named: save ViT-B-16.pt"),
        ({"text_weights": "no.pt"}, "and there is no no.pt: save"),
        ({"stages": ()}, "image_to_text needs a stage with the loss prompts before it"),
        ({"trained": "losses"}, "the last stage trains the network"),
    ],
)
def test_what_is_missing_is_one_sentence(tiny, in_two_stages, change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(small(tiny), tiny, Run.create("missing", {}), replace(in_two_stages[0], **change))


def test_weights_are_found_by_their_name_in_the_folder_of_weights(clip_file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "weights_root", lambda: clip_file.parent)
    assert _text_file("tiny-clip.pt") == clip_file
    assert find_weights("clipreid_vit_b16", "tiny-clip.pt").file == clip_file


def test_a_text_file_of_another_kind_is_one_sentence(tiny, in_two_stages, tmp_path, clip_file) -> None:
    path = tmp_path / "other.pt"
    torch.save({"network.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"other\.pt does not hold CLIP's text encoder as OpenAI publishes it"):
        read_text_encoder(path)
    wide = small(tiny, feature_dim=32)
    with pytest.raises(ValueError, match="have 16 numbers, the last embedding of small has 32"):
        fit(wide, tiny, Run.create("wide", {}), in_two_stages[0])


# End to end

_VIT = partial(zoo.ViT, width=64, depth=2, imagenet="")
SMALL = {
    "clipreid": ("clipreid_vit_b16", partial(_VIT, project=16, drop_path=0.0)),
    "clipreid_baseline": ("clipreid_baseline_vit_b16", partial(_VIT, project=16, drop_path=0.0)),
    "solider": ("solider_swin_tiny", None),
    "transreid_ssl": ("transreid_ssl_vit_small_ics", partial(_VIT, conv_stem=True)),
    "pass": ("pass_vit_small", partial(_VIT, part_tokens=3)),
    "lightmbn": ("lmbn_n", None),
}


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) if r != "clipreid" else r for r in SMALL])
def test_a_later_recipe_runs_end_to_end(recipe: str, tiny, clip_file, world, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trunk = SMALL[recipe]
    if trunk:
        monkeypatch.setitem(zoo.MODELS, model, replace(zoo.MODELS[model], backbone=trunk))
    params = {"recipe": recipe, "model": model, "dataset": "synthetic-tiny", "scaled": 2, "run": recipe}
    params |= {"height": 64, "width": 32} | ({"text_weights": str(clip_file)} if recipe == "clipreid" else {})
    job = Job.from_params(params)
    history = job.train()
    assert history[-1]["epoch"] == 2
    assert math.isfinite(history[-1]["loss"])
    assert 0 < history[-1]["mAP"] <= 1
    again = Job.from_params(job.run.params)  # as params.json has it, stages too
    assert again.recipe == job.recipe
    assert timeless(again.train()) == timeless(history)
