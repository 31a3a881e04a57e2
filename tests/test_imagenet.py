"""A start from ImageNet's weights: every library trunk takes them, and where they cannot be had it is said."""

import json
import os
import re
from functools import cache
from inspect import signature
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_weights

import reidlib
from reidlib.models import zoo
from reidlib.models.backbones import library
from reidlib.models.download import DownloadError
from reidlib.training import record
from reidlib.workbook.runs import Run

SIZE = (96, 96)


@cache
def library_state(source: str) -> dict[str, torch.Tensor]:
    """What the library has under this name, with random weights in place of the trained ones."""
    library, _, name = source.partition("/")
    if library == "torchvision":
        from torchvision.models import get_model as create
    else:
        from timm import create_model as create
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return create(name).state_dict()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked = []
    monkeypatch.setattr(library, "imagenet_state", lambda source: asked.append(source) or dict(library_state(source)))
    return asked


TRUNKS = {
    "resnet50_agw": "torchvision/resnet50",
    "resnet50_ap": "torchvision/resnet50",
    "densenet121_fc512": "torchvision/densenet121",
    "squeezenet1_1": "torchvision/squeezenet1_1",
    "bagtricks_mobilenet_v3_large_fastreid": "torchvision/mobilenet_v3_large",
    "se_resnet50_bot": "timm/legacy_seresnet50",
    "bagtricks_S50_fastreid": "timm/resnest50d",
    "bagtricks_convnext_tiny_fastreid": "timm/convnext_tiny",
    "bagtricks_inception_v3_fastreid": "timm/inception_v3",
}
BIG = {
    "bagtricks_inception_v4_fastreid": "timm/inception_v4",
    "bagtricks_inception_resnet_v2_fastreid": "timm/inception_resnet_v2",
    "se_resnext50_bot": "timm/legacy_seresnext50_32x4d",
    "senet154_bot": "timm/legacy_senet154",
    "bagtricks_R50_fastreid": "torchvision/resnet50",
}


@pytest.mark.parametrize("name", [*TRUNKS, *(pytest.param(name, marks=pytest.mark.slow) for name in BIG)])
def test_a_trunk_begins_with_the_librarys_weights(name: str, offline: list[str]) -> None:
    model = reidlib.create_model(name, weights="imagenet", num_classes=3, input_size=SIZE)
    assert offline == [(TRUNKS | BIG)[name]]
    assert model.init == "imagenet"
    theirs, own = library_state(offline[0]), model.network.backbone.state_dict()
    same = {key for key in theirs.keys() & own.keys() if torch.equal(theirs[key].reshape(own[key].shape), own[key])}
    assert model.report.matched == len(same)
    left = own.keys() - same
    assert all("non_local" in key or key.startswith(("attention", "conv.")) for key in left), left
    assert all("classifier" in why for why in model.report.dropped.values())


def test_every_copy_of_a_cut_trunk_has_them(offline: list[str]) -> None:
    mgn = reidlib.create_model("mgn_R50_fastreid", weights="imagenet", num_classes=3, input_size=SIZE)
    weight = library_state("torchvision/resnet50")["layer4.0.conv1.weight"]
    for branch in mgn.network.backbone.branches.values():
        assert torch.equal(branch[1][0].conv1.weight, weight)


@pytest.mark.parametrize("name", ["vit_transreid", "deit_transreid"])
def test_a_vision_transformer_takes_positions_of_its_own_grid(name: str, offline: list[str]) -> None:
    model = reidlib.create_model(name, weights="imagenet", num_classes=3, num_cameras=2, input_size=(64, 32))
    theirs, network = library_state(offline[0]), model.network
    assert torch.equal(network.backbone.patch.weight, theirs["patch_embed.proj.weight"])
    for last in network.last:
        assert torch.equal(last[0].mlp.fc1.weight, theirs["blocks.11.mlp.fc1.weight"])
    grid = theirs["pos_embed"][:, -196:].transpose(1, 2).unflatten(2, (14, 14))
    grid = torch.nn.functional.interpolate(grid, network.backbone.grid, mode="bilinear")
    assert torch.equal(network.backbone.pos_embed[:, 1:], grid.flatten(2).transpose(1, 2))
    assert torch.equal(network.backbone.pos_embed[:, :1], theirs["pos_embed"][:, :1])
    assert set(model.report.dropped) == {key for key in theirs if key.startswith("head") or key == "dist_token"}


def test_where_no_library_has_any_it_is_said() -> None:
    for name in ("resnet50_ibn_a_bot", "bagtricks_osnet_x1_0_fastreid", "nasnsetmobile"):
        with pytest.raises(
            ValueError, match=f"neither torchvision nor timm has ImageNet weights for the trunk of {name}"
        ):
            reidlib.create_model(name, weights="imagenet")


def test_densenets_file_has_a_dot_that_its_model_has_not(offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    state = library_state("torchvision/densenet121")
    dotted = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): t for key, t in state.items()}
    assert dotted.keys() != state.keys()
    monkeypatch.setattr(library, "imagenet_state", lambda source: dotted)
    trunk = reidlib.create_model("densenet121_fc512", weights="imagenet", input_size=SIZE).network.backbone
    own = trunk.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items() if not key.startswith("classifier"))


def test_a_file_that_was_put_into_the_cache_of_torch_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "sprung"),)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = get_model_weights("resnet50")["IMAGENET1K_V1"].url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"conv1.weight": Trap()}, tmp_path / "hub" / "checkpoints" / name)
    with pytest.raises(
        DownloadError, match=rf"\(the file of https\S*{name} in torch's cache holds more than weights: del"
    ):
        reidlib.create_model("resnet50", weights="imagenet")
    assert not (tmp_path / "sprung").exists()


def test_without_a_network_it_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", unreachable)
    with pytest.raises(
        DownloadError, match=r"torchvision/resnet50 for resnet50 cannot be had here \(Name or service not"
    ):
        reidlib.create_model("resnet50", weights="imagenet")


def test_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = dict(library_state("torchvision/resnet50")) | {"surprise": torch.zeros(1)}
    monkeypatch.setattr(library, "imagenet_state", lambda source: state)
    with pytest.raises(ValueError, match="does not fit the trunk of resnet50: surprise is not in the model"):
        reidlib.create_model("resnet50", weights="imagenet")


def test_a_run_says_what_it_began_with(tiny) -> None:
    first = reidlib.create_model("osnet_x0_25", num_classes=tiny.num_classes, input_size=(64, 32))
    run = Run.create("first", {}).begin()
    record.save_model(run, first)
    run.add_result("somewhere", {"mAP": 0.5})
    assert json.loads((run.path / "result.json").read_text())["init"] == "random"
    second = reidlib.create_model("osnet_x0_25", weights="runs/first", num_classes=7)
    assert second.init == "runs/first"
    assert (second.num_classes, second.input_size) == (7, (64, 32))
    assert torch.equal(second.network.backbone.conv1.conv.weight, first.network.backbone.conv1.conv.weight)
    assert any("classifier" in why for why in second.report.dropped.values())


@pytest.mark.slow
def test_names_of_weights_are_those_that_timm_knows() -> None:
    from timm import is_model_pretrained

    sources = set()
    for spec in zoo.MODELS.values():
        parameters = signature(spec.backbone).parameters.values()
        asked = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        with torch.device("meta"):  # trunks that depend on it take the size of images, some the number of cameras
            sources.add(getattr(spec.backbone(*(SIZE, 1)[: len(asked)]), "imagenet", ""))
    of_timm = sorted(source.removeprefix("timm/") for source in sources if source.startswith("timm/"))
    assert len(of_timm) >= 9
    assert all(map(is_model_pretrained, of_timm)), of_timm
