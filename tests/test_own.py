"""A user's own network: what may be put into MODELS, what becomes of it, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from loop_cases import PLAIN
from torch import nn

import reidlib
from reidlib.models import MODELS, Head, Model, Outputs, RetrievalModule, load_checkpoint
from reidlib.models.zoo import as_model, declaration
from reidlib.plots import feature_cam, similarity_cam
from reidlib.training import fit, record
from reidlib.workbook.runs import Run

SIZE = (64, 32)


# What a page of a paper would have: under 15 lines each.
class TinyCNN(nn.Module):
    def __init__(self, num_classes, input_size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, stride=4, padding=3)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv2(self.conv1(x).relu()).relu()


def tiny_mlp(num_classes, input_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * input_size[0] * input_size[1], 24), nn.ReLU())


def pooled_cnn(num_classes, input_size):
    conv = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU())
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12))


class TwoHeads(RetrievalModule):
    """The whole contract: two heads of its own, and a word about the camera."""

    def __init__(self, num_classes, input_size):
        super().__init__()
        self.conv, self.feature_dim = nn.Conv2d(3, 8, 5, stride=4, padding=2), 16
        self.heads = nn.ModuleList(Head(8, num_classes, neck="bn", pool=pool) for pool in ("avg", "gem"))

    def features(self, x, camids=None):
        feats = torch.cat([head.features(self.conv(x)) for head in self.heads], dim=1)
        return feats if camids is None else feats + camids[:, None]

    def outputs(self, x, camids=None):
        outs = [head.outputs(self.conv(x)) for head in self.heads]
        return Outputs([out.logits[0] for out in outs if out.logits], [out.embeddings[0] for out in outs])


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., reidlib.models.ReIDModel]:
    """Put a thing into MODELS under the name "mine", and build it."""

    def build(thing: object, num_classes: int | None = 5, **options: object) -> reidlib.models.ReIDModel:
        monkeypatch.setitem(MODELS, "mine", thing)
        return reidlib.create_model("mine", num_classes=num_classes, **{"input_size": SIZE} | options)

    return build


@pytest.mark.parametrize(("build", "width"), [(TinyCNN, 32), (tiny_mlp, 24), (pooled_cnn, 12), (TwoHeads, 16)])
def test_a_network_of_ones_own_becomes_a_model(own: Callable, build: object, width: int) -> None:
    model = own(build)
    assert "mine" in reidlib.list_models("min*")
    images = torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8)
    outputs = model.train()(images)
    heads = 2 if build is TwoHeads else 1
    assert [tuple(y.shape) for y in outputs.logits] == [(3, 5)] * heads
    assert [y.shape[0] for y in model.output_shapes().embeddings] == [2] * heads
    feats = model.eval()(images)
    assert feats.shape == (3, width) == (3, model.feature_dim)
    assert model.scores(images).shape == (3, 5)
    assert own(build, None).train()(images).logits == []
    torch.testing.assert_close(model.fuse()(images), feats, rtol=1e-4, atol=1e-5)


def test_the_head_is_the_bnneck_of_the_strong_baseline(own: Callable) -> None:
    model = own(TinyCNN).eval()
    head, images = model.network.head, torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        pooled = model.network.backbone.net(model.normalise(images)).mean((2, 3))
        torch.testing.assert_close(model(images), head.neck(pooled))
    assert not head.neck.bias.requires_grad
    assert head.classifier.bias is None
    assert declaration("mine").recipe == "bot"


def test_it_trains_and_is_rebuilt_from_its_run(own: Callable, tiny) -> None:
    own(TinyCNN)
    model = reidlib.create_model("mine", num_classes=tiny.num_classes, input_size=SIZE)
    run = Run.create("mine", {"seed": 0})
    recipe = replace(PLAIN, epochs=1, triplet_weight=1.0)
    fit(model, tiny, run, recipe)
    again = run.load_model("cpu")
    assert again.name == "mine"
    weights = again.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    other = reidlib.create_model("mine", num_classes=tiny.num_classes + 1, input_size=SIZE)
    report = load_checkpoint(other, model.state_dict())
    assert list(report.dropped) == ["network.head.classifier.weight"]


def test_a_network_may_look_at_values(own: Callable, tiny) -> None:
    class Looks(TinyCNN):
        def forward(self, x):
            return super().forward(x if x.abs().max().item() < 1e6 else x / 255)

    model = own(Looks, tiny.num_classes)
    state = torch.random.get_rng_state()
    shapes = model.output_shapes()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [tuple(y.shape) for y in (*shapes.logits, *shapes.embeddings)] == [(2, tiny.num_classes), (2, 32)]
    assert shapes.logits[0].is_meta
    run = Run.create("looks", {}).begin()
    record.save_model(run, model)
    assert own(Looks, None, weights="runs/looks", input_size=None).num_classes == tiny.num_classes


# Grad-CAM


def test_a_cam_is_read_at_the_last_map(own: Callable) -> None:
    images = torch.rand(2, 3, *SIZE)
    model = own(TinyCNN)
    assert model.cam_layer is model.network.backbone
    assert feature_cam(model, images).shape == (2, 8, 4)
    model = own(pooled_cnn)
    assert model.cam_layer is model.network.backbone.net[0]
    before = [module.training for module in model.modules()]
    query, _ = similarity_cam(model, images, images.flip(0))
    assert query.max() > 0
    assert [module.training for module in model.modules()] == before
    model = own(TwoHeads)
    assert model.cam_layer is model.network.conv
    assert feature_cam(model, images).shape == (2, 16, 8)


def test_a_cam_layer_may_be_named(own: Callable) -> None:
    class Named(TinyCNN):
        @property
        def cam_layer(self):
            return self.conv1

    model = own(Named)
    assert model.cam_layer is model.network.backbone.net.conv1
    assert feature_cam(model, torch.rand(1, 3, *SIZE)).shape == (1, 16, 8)


def test_a_map_that_the_feature_leaves_out_is_passed_over(own: Callable) -> None:
    class Aside(nn.Module):
        def __init__(self, num_classes, input_size):
            super().__init__()
            self.used, self.unused = (nn.Conv2d(3, 8, 5, stride=4, padding=2) for _ in range(2))

        def forward(self, x):
            feats = self.used(x)
            return feats.mean((2, 3)) + 0 * self.unused(x).mean()

    model = own(Aside)
    assert model.cam_layer is model.network.backbone.net.used


def test_without_any_map_a_cam_is_refused_in_one_sentence(own: Callable) -> None:
    model = own(tiny_mlp)
    with pytest.raises(ValueError, match=r"features of mine come from no map \(B, C, h, w\).* attribute `cam_layer`"):
        feature_cam(model, torch.rand(1, 3, *SIZE))


# Folding


class Crossed(nn.Module):
    """Each norm is registered after the convolution that it does not follow."""

    def __init__(self, num_classes, input_size):
        super().__init__()
        self.conv1, self.norm2 = nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8)
        self.conv2, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))


def test_norms_that_follow_another_convolution_are_not_folded(own: Callable) -> None:
    model, images = own(Crossed), torch.rand(4, 3, *SIZE)
    model.train()(images)  # norms that are no longer identities
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.fuse()(images), model(images))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.fuse().modules()) == 2


# Declarations


def test_a_declaration_joins_as_it_is(own: Callable) -> None:
    class Trunk(nn.Conv2d):
        channels = 6

    model = own(Model(partial(Trunk, 3, 6, 4, 4), partial(Head, pool="gem", neck="bn"), recipe="agw"))
    assert model.feature_dim == 6
    assert declaration("mine").recipe == "agw"
    with pytest.raises(ValueError, match="the backbone Conv2d has no attribute `channels`"):
        own(Model(partial(nn.Conv2d, 3, 6, 4, 4), Head))
    with pytest.raises(ValueError, match="unknown family of the network mine 'torchread': did you mean 'torchreid'"):
        own(Model(Trunk, Head, family="torchread"))


def test_a_file_that_fits_nothing_names_published_models_only(own: Callable) -> None:
    model = own(TinyCNN)
    with pytest.raises(ValueError, match="does not fit mine"):
        load_checkpoint(model, {"conv9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="neither torchvision nor timm has ImageNet weights for the trunk of mine"):
        own(TinyCNN, weights="imagenet")


# Refusals


def fails(x):
    raise RuntimeError("mat1 and mat2\nshapes cannot be multiplied")


def giving(value: Callable) -> Callable:
    """A function that builds a network which gives `value(x)`."""

    class Gives(nn.Module):
        def forward(self, x):
            return value(x)

    return lambda num_classes, input_size: Gives()


REFUSED = {
    "a number": (7, r"the network mine is a int: it must be a Model, or a function or class build\(num_classes"),
    "a module": (nn.Conv2d(3, 8, 3), "the network mine is a Conv2d: it must be a Model, or a function"),
    "no arguments": (lambda: None, r"network mine is built by <lambda>\(\): it must be a function or class build\("),
    "no module": (lambda num_classes, input_size: 3, "the network mine is built as a int: return an nn.Module"),
    "an error": (
        giving(fails),
        r"network mine cannot take images of 64 x 32: RuntimeError: mat1 and mat2 shapes",
    ),
    "a tuple": (
        giving(lambda x: (x, x)),
        r"the network mine gives a tuple: it must give a map",
    ),
    "tokens": (giving(lambda x: x.flatten(2)), r"mine gives \(2, 3, 2048\) torch.float32: it"),
    "one row": (giving(lambda x: x.mean((2, 3))[:1]), r"mine gives \(1, 3\)"),
    "integers": (giving(lambda x: x.mean((2, 3)).long()), r"gives \(2, 3\) torch.int64: .* of floats"),
    "nothing": (giving(lambda x: x[:, :0]), r"mine gives \(2, 0, 64, 32\)"),
}


@pytest.mark.parametrize(("thing", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_network_is_refused_in_one_sentence(own: Callable, thing: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        own(thing)
    assert "\n" not in str(caught.value)


def changed(**methods: Callable) -> type:
    return type("Changed", (TwoHeads,), methods)


class Narrow(TwoHeads):
    def __init__(self, num_classes, input_size):
        super().__init__(num_classes, input_size)
        self.feature_dim = 0


ONES = torch.ones(2, 5)
BROKEN = {
    "feature_dim": (Narrow, "the network mine has feature_dim 0: set it to the width of its features"),
    "features": (
        changed(features=lambda self, x, camids: x),
        r"of the network mine gives shape \(2, 3, 64, 32",
    ),
    "no tensor": (changed(features=lambda self, x, camids: None), r"gives a NoneType for two images, not \(2, 16\)"),
    "outputs": (
        changed(outputs=lambda self, x, camids: x),
        r"of the network mine gives a Tensor: return",
    ),
    "a tensor": (
        changed(outputs=lambda self, x, camids: Outputs(ONES, [ONES])),
        r"gives a Outputs: return",
    ),
    "logits": (
        changed(outputs=lambda self, x, camids: Outputs([ONES[:, :4]], [ONES])),
        r"outputs\(\) of the network mine has logits of shape \(2, 4\), not \(2, 5\)",
    ),
    "embeddings": (
        changed(outputs=lambda self, x, camids: Outputs([ONES], [ONES[0]])),
        r"has embeddings of shape \(5,\), not \(2, D\)",
    ),
    "none": (changed(outputs=lambda self, x, camids: Outputs([ONES], [])), "has no embeddings: give at least the feat"),
}


@pytest.mark.parametrize(("thing", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_contract_is_refused_in_one_sentence(own: Callable, thing: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own(thing)


def test_as_model_refuses_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="the network mine is a str"):
        as_model("mine", "resnet50")
    assert as_model("mine", MODELS["resnet50"]) is MODELS["resnet50"]


def test_weights_of_a_run_go_into_another_model_of_its_kind(own: Callable, tiny) -> None:
    model = own(TinyCNN, tiny.num_classes)
    run = Run.create("first", {}).begin()
    record.save_model(run, model)
    again = own(TinyCNN, None, weights="runs/first", input_size=None)
    assert (again.num_classes, again.input_size) == (tiny.num_classes, SIZE)
    assert torch.equal(again.network.backbone.net.conv1.weight, model.network.backbone.net.conv1.weight)
