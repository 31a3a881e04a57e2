"""Any model of timm as a model: built by its name, trained, tested, looked at, rebuilt, begun from timm's weights."""

import socket
from dataclasses import replace

import pytest
import timm
import torch
from loop_cases import PLAIN
from safetensors.torch import save_file
from torch import nn

import reidlib
from reidlib.models.backbones import wrapped
from reidlib.models.download import DownloadError
from reidlib.models.printed.cards import card
from reidlib.models.zoo import MODELS, canonical_name, declaration
from reidlib.plots import feature_cam, similarity_cam
from reidlib.training import fit
from reidlib.workbook.runs import Run

# A convolutional network, a transformer with class token, and one with windows and channels last.
QUICK = ["convnextv2_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
SPREAD = [
    *("convnextv2_tiny", "efficientnet_b0", "resnest26d", "mobilenetv4_conv_small", "regnety_008", "hrnet_w18_small"),
    *("resnet50", "densenet121", "repvgg_a2", "maxvit_rmlp_pico_rw_256", "coatnet_nano_rw_224", "fastvit_t8"),
    *("swinv2_tiny_window8_256", "pvt_v2_b0", "poolformer_s12", "mobilevit_s", "edgenext_xx_small", "inception_v3"),
    *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "beit_base_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "cait_xxs24_224", "mixer_s16_224", "xcit_nano_12_p16_224", "levit_128"),
    *("pit_ti_224", "hiera_tiny_224", "vit_base_patch16_siglip_224", "convit_tiny", "nest_tiny_jx"),
]
every = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SPREAD)])
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:timm")


def build(name: str, num_classes: int | None = 4, **options: object) -> reidlib.models.ReIDModel:
    return reidlib.create_model(f"timm/{name}", num_classes=num_classes, **options)


@every
def test_a_model_trains_ranks_and_shows_what_it_looks_at(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    cfg = timm.get_pretrained_cfg(name)
    assert (model.mean, model.std, model.interpolation) == (cfg.mean, cfg.std, cfg.interpolation)
    assert model.input_size in ((256, 128), cfg.input_size[1:])
    images = torch.randint(0, 256, (4, 3, *model.input_size), dtype=torch.uint8)
    outputs = model.train()(images)
    assert [tuple(y.shape) for y in (*outputs.logits, *outputs.embeddings)] == [(4, 4), (4, model.feature_dim)]
    shapes = model.output_shapes()
    assert [tuple(y.shape) for y in (*shapes.logits, *shapes.embeddings)] == [(2, 4), (2, model.feature_dim)]
    nn.functional.cross_entropy(outputs.logits[0], torch.arange(4)).backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert not idle, "parts of it are never trained"
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        feats = model(images)
        assert feats.shape == (4, model.feature_dim)
        assert feats.isfinite().all()
        torch.testing.assert_close(model(images[:1]), feats[:1], rtol=1e-3, atol=1e-3 * feats.abs().max().item())
        torch.testing.assert_close(model.fuse()(images), feats, rtol=1e-3, atol=1e-3 * feats.abs().max().item())
    seen = []
    handle = model.cam_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    feats = model(images[:2])
    handle.remove()
    cam = model.cam_map(seen[-1])
    (gradient,) = torch.autograd.grad(feats[:, :8].square().sum(), seen[-1])
    places = model.cam_map(gradient).abs().sum(1).flatten(1)
    assert (places > 0).float().mean() > 0.5, "the feature depends on less than half of the map"
    assert cam.ndim == 4
    height, width = model.input_size
    assert min(cam.shape[2:]) >= 2
    assert abs(cam.shape[2] / cam.shape[3] / (height / width) - 1) <= 0.6
    assert feature_cam(model, images[:2]).shape == (2, *cam.shape[2:])


def test_where_a_cam_is_read() -> None:
    swin, vit = build("swin_tiny_patch4_window7_224"), build("vit_tiny_patch16_224")
    assert swin.cam_layer is swin.network.backbone
    last = vit.network.backbone.net.blocks[-1]
    assert vit.cam_layer is last.norm1, "what follows reaches the class token of the features no more"
    tokens = torch.arange(2.0 * 129 * 192).view(2, 129, 192)
    assert torch.equal(vit.cam_map(tokens), tokens[:, 1:].transpose(1, 2).unflatten(2, (16, 8)))


def test_a_vision_transformer_gives_timms_own_vector_and_a_map_is_averaged() -> None:
    for name in QUICK:
        model = build(name).eval()
        net = timm.create_model(name, num_classes=0, **({"img_size": (256, 128)} if "conv" not in name else {})).eval()
        net.load_state_dict(model.network.backbone.net.state_dict())
        x = torch.rand(2, 3, 256, 128)
        with torch.no_grad():
            pooled = model.network.head.embed(model.network.backbone(x))
            # ConvNeXt's own head norms the mean; here each place is normed first, as timm does without pooling.
            same = torch.nn.functional.cosine_similarity(pooled, net(x))
        assert (same > (0.9 if "conv" in name else 1 - 1e-6)).all(), name


@pytest.mark.parametrize("name", [*QUICK[:2], pytest.param(QUICK[2], marks=pytest.mark.slow)])
def test_a_run_of_it_is_trained_and_rebuilt(name: str, tiny) -> None:
    size = (64, 64) if "swin" in name else (64, 32)
    model = build(name, tiny.num_classes, input_size=size)
    run = Run.create("timm", {"seed": 0})
    fit(model, tiny, run, replace(PLAIN, epochs=1, lr=1e-3))
    again = run.load_model("cpu")
    assert (again.name, again.input_size, again.num_classes) == (f"timm/{name}", size, tiny.num_classes)
    query, _ = run.features(again, tiny)
    assert query.feats.shape == (len(tiny.query), model.feature_dim)
    maps = similarity_cam(again, torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert maps[0].ndim == 3
    assert len(maps[0]) == 2
    assert Run.open(model=f"timm/{name}").name == "timm"


# Names


def test_names_are_timms_and_the_list_stays_the_zoos() -> None:
    assert not any(name.startswith("timm/") for name in reidlib.list_models())
    found = reidlib.list_models("timm/*convnextv2*")
    assert found == [f"timm/{name}" for name in timm.list_models("*convnextv2*")]
    assert "timm/vit_small_patch14_reg4_dinov2.lvd142m" in reidlib.list_models("timm/*dinov2.*")
    assert reidlib.list_models("osnet_x0*") == ["osnet_x0_25", "osnet_x0_5", "osnet_x0_75"]
    assert canonical_name("timm/resnet18") == "timm/resnet18"
    assert "timm/resnet18" not in MODELS
    tagged = declaration("timm/vit_base_patch16_224.mae")
    plain = declaration("timm/vit_base_patch16_224")
    assert tagged.mean != plain.mean, "mean and std are those of the weights"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("convnextv2_tinny", "timm/convnextv2_tiny"),
        ("ConvNeXtV2_tiny", "timm/convnextv2_tiny"),
        ("vit_base_patch16_224.mea", "timm/vit_base_patch16_224.mae"),
    ],
)
def test_a_misspelt_name_gives_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model 'timm/{name}': did you mean .*'{nearest}'"):
        build(name)


# Sizes


def test_a_size_is_kept_where_the_model_is_built_for_it() -> None:
    model = build("vit_tiny_patch16_224", input_size=(128, 64)).eval()
    assert model.network.backbone.net.patch_embed.img_size == (128, 64)
    with pytest.raises(ValueError, match="was built for images of 128 x 64, got 256 x 128: give input_size"):
        model(torch.rand(1, 3, 256, 128))
    assert build("convnextv2_atto").eval()(torch.rand(1, 3, 96, 64)).shape == (1, 320)


def test_a_size_that_it_cannot_take_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"timm/nest_tiny_jx takes no images of 256 x 128 \(AssertionError: Mo"):
        build("nest_tiny_jx", input_size=(256, 128))
    assert declaration("timm/nest_tiny_jx").input_size == (224, 224)


def test_building_draws_from_the_seed_alone() -> None:
    weights = []
    for _ in range(2):
        wrapped._fitted.cache_clear()
        torch.manual_seed(3)
        weights.append(build("convnextv2_atto").state_dict())
    assert all(torch.equal(weights[0][key], tensor) for key, tensor in weights[1].items())


# Weights


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """timm finds the trained weights of a model in a file: a random network of its own size."""
    create = timm.create_model

    def prepare(name: str) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            state = create(name).state_dict()
        save_file(state, tmp_path / "model.safetensors")
        overlay = {"file": str(tmp_path / "model.safetensors"), "hf_hub_id": None, "url": ""}
        monkeypatch.setattr(
            timm, "create_model", lambda *args, **options: create(*args, pretrained_cfg_overlay=overlay, **options)
        )
        return state

    return prepare


@pytest.mark.parametrize("name", [*QUICK, pytest.param("eva02_tiny_patch14_224", marks=pytest.mark.slow)])
def test_it_begins_from_timms_weights(name: str, local) -> None:
    state = local(name)
    model = build(name, weights="imagenet")
    own = model.network.backbone.net.state_dict()
    assert model.init == "imagenet"
    assert model.report.matched == len(own)
    same = {key for key in own if key in state and torch.equal(own[key], state[key])}
    differ = set(own) - same
    assert all("pos_embed" in key or "relative_position" in key or "attn_mask" in key for key in differ), differ
    assert bool(differ) == (name != "convnextv2_atto"), "of another size: resized by timm"


def test_without_a_network_it_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(DownloadError, match=r"timm/convnextv2_atto for timm/convnextv2_atto cannot be had here \(Name"):
        build("convnextv2_atto", weights="imagenet")


def test_where_timm_has_none_it_is_said() -> None:
    assert not timm.is_model_pretrained("vit_small_patch16_18x2_224")
    with pytest.raises(ValueError, match="neither torchvision nor timm has ImageNet weights for the trunk of timm/v"):
        build("vit_small_patch16_18x2_224", weights="imagenet")


# The card


def test_it_has_a_card_too() -> None:
    shown = card("timm/convnextv2_atto")
    assert (shown.family, shown.recipe, shown.feature_dim, shown.figures) == ("timm", "bot", 320, ())
    assert shown.cam_map == (320, 8, 4)
    assert shown.cost.macs > 1e8
    assert card("timm/vit_tiny_patch16_224").cam_map == (), "known once the network has weights"
