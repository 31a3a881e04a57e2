"""Every model of the zoo against what the upstream networks were measured to do. New models are covered as they are."""

import copy
import random
import re
import shutil
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from golden import draw_input, draw_state, golden_error, read_fixtures
from safetensors.torch import save_file
from torch.nn import functional as F

from reidlib.models import complexity, create_model, list_models, load_checkpoint
from reidlib.models.backbones.hacnn import HACNN
from reidlib.models.checkpoints import RENAMES
from reidlib.models.heads import Outputs, RetrievalModule
from reidlib.models.layers import NonLocal, stripes
from reidlib.models.printed.costs import IDENTITIES, measured
from reidlib.models.wirings import jigsaw
from reidlib.models.zoo import ALIASES, MODELS

FIXTURES = read_fixtures()
SIZES = {"market1501": (751, 6), "dukemtmcreid": (702, 8), "msmt17": (1041, 15)}  # identities, cameras
SMALL = (128, 64)  # where the size does not matter
# One of each trunk and each wiring. The fast tests load the layouts of all models, and compute with these alone.
REPRESENTATIVES = {
    *("osnet_x0_25", "osnet_ain_x1_0", "mlfn", "hacnn", "resnet50mid", "densenet121_fc512", "mobilenetv2_x1_0"),
    *("shufflenet", "squeezenet1_0_fc512", "nasnsetmobile", "v2018_SqueezeNet", "se_resnet50_fc512", "resnet50_bot"),
    *("sbs_R50_ibn_fastreid", "bagtricks_SeR50_fastreid", "bagtricks_S50_fastreid", "resnet50_ap", "resnet50_abd"),
    *("bagtricks_mobilenet_v3_large_fastreid", "bagtricks_inception_v3_fastreid", "bagtricks_convnext_tiny_fastreid"),
    *("mgn_agw_R50_ibn_fastreid", "vit_base_transreid", "vit_transreid"),
    *("solider_swin_tiny", "lmbn_n"),
}
# Of those, one of each way to hold weights: plain, several branches, shared or frozen parts, tokens.
FEW = {
    "osnet_x0_25",
    "hacnn",
    "mgn_agw_R50_ibn_fastreid",
    "resnet50_abd",
    "vit_base_transreid",
    "solider_swin_tiny",
    "lmbn_n",
}
# Multiply-adds that upstream computes and throws away.
WASTE = dict.fromkeys(
    ("nasnsetmobile", "v2018_NasnetMobile"),
    "pads by a row and a column more before its strided convolutions, and cuts the first of each off again",
) | {"mudeep": "runs its classifier at test time, too"}
# One model of each family that was added last: the fast tests load its layout and compute its golden feature. The
# family's others are for the slow tests alone.
FIRST_OF_FAMILY = {
    *("clipreid_rn50", "transreid_ssl_vit_small_ics", "personvit_vit_small", "pass_vit_small"),
    *("resnet18", "resnet50_ibn_b", "shufflenet_v2_x0_5", "osnet_ain_x0_25", "pcb_p4"),
}
_LATER = (
    "(clipreid|solider|transreid_ssl|personvit|pass|lmbn|pcb|shufflenet_v2|osnet_ain_x0)_.*",
    r"(se_)?resnet(18|34|101|152)|resnet50_ibn_[ab]|se_resnet50|(se_)?resnext\d+_32x[48]d|senet154",
    "densenet(161|169|201)|inceptionv4|inceptionresnetv2|xception|mudeep",
)
SLOW = {name for name in MODELS if any(re.fullmatch(pattern, name) for pattern in _LATER)}
SLOW -= REPRESENTATIVES | FIRST_OF_FAMILY
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def build(name, dataset="market1501", **kwargs):
    classes, cameras = SIZES[dataset]
    return create_model(name, num_classes=classes, num_cameras=cameras, **kwargs)


def empty_state(fixture, dataset="market1501"):
    """The upstream state dict as names and shapes, without memory."""
    shapes = dict(fixture["layout"])
    for key, known in fixture["by_dataset"].items():  # where a project has no weights of a dataset, by its identities
        first = dict(zip(SIZES["market1501"], SIZES[dataset], strict=True))[shapes[key][0]]
        shapes[key] = known.get(dataset, [first, *shapes[key][1:]])
    dtypes = {key: torch.int64 if key.endswith("num_batches_tracked") else torch.float32 for key in shapes}
    return {key: torch.empty(shape, dtype=dtypes[key], device="meta") for key, shape in shapes.items()}


def slow_but(quick, fixture="loaded"):
    """Parametrise `fixture`: all models, of which those not in `quick` are slow."""
    names = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
    return pytest.mark.parametrize(fixture, names, indirect=True, scope="module")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in list_models()],
)
def name(request):
    return request.param


@pytest.fixture(
    scope="module",
    params=[
        name if name in REPRESENTATIVES | FIRST_OF_FAMILY else pytest.param(name, marks=pytest.mark.slow)
        for name in list_models()
    ],
)
def loaded(request):
    """(model in eval mode under the golden weights, its fixture); tests leave it as it is."""
    fixture = FIXTURES[request.param]
    model = build(request.param).eval()
    load_checkpoint(model, draw_state(fixture))
    return model, fixture


@pytest.fixture(scope="module")
def counted(loaded):
    """`complexity` of the loaded model by counting and dataset, each counted once."""

    @cache
    def count(counting="exact", dataset="market1501"):
        with torch.device("meta"):
            return complexity(build(loaded[0].name, dataset), counting=counting)

    return count


def small(model):
    """A size that is quick to compute and large enough for the model."""
    return SMALL if model.network.min_size <= min(SMALL) else (128, 128)


@pytest.fixture
def images(loaded):
    size = small(loaded[0])
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def camids_of(fixture):
    return None if fixture["camids"] is None else torch.tensor(fixture["camids"])


# The mechanism


def test_names_are_sorted_and_declared():
    assert list_models() == sorted(MODELS)
    assert {spec.family for spec in MODELS.values()} <= set(RENAMES)
    assert set(MODELS) <= set(FIXTURES), "every model has its fixture"


@pytest.mark.parametrize(("older", "name"), ALIASES.items())
def test_older_spellings_build_the_model_but_are_not_listed(older, name):
    with torch.device("meta"):
        assert create_model(older).name == name
    assert older not in list_models()


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'osnet_1_0': did you mean 'osnet_x1_0'"):
        create_model("osnet_1_0")


@pytest.mark.parametrize(
    "wrong",
    [{"num_classes": -1}, {"num_classes": 7.0}, {"num_cameras": "six"}, {"input_size": 256}, {"input_size": (31, 64)}],
)
def test_impossible_sizes_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        create_model("osnet_x0_25", **wrong)


def test_building_has_no_side_effect(name, capfd, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a model was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    seed, numpy_state, python_state = torch.initial_seed(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with torch.device("meta"):
        build(name)
    assert capfd.readouterr() == ("", "")
    assert torch.initial_seed() == seed
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert random.getstate() == python_state


BUILD_ALL = """
import resource, time
from reidlib.models import create_model, list_models
start = time.perf_counter()
for name in list_models():
    create_model(name, num_classes=751, num_cameras=6)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_all_models_are_built_in_one_process(capsys):
    out = subprocess.run([sys.executable, "-c", BUILD_ALL], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, out.stdout.split())
    with capsys.disabled():
        print(f"\n{len(list_models())} models built one after another in {seconds:.0f} s, {gigabytes:.2f} GiB at most")
    assert gigabytes < 3
    assert out.stderr == ""


# Layouts


@pytest.mark.parametrize("dataset", ["market1501", pytest.param("dukemtmcreid", marks=pytest.mark.slow), "msmt17"])
def test_the_published_layout_loads_strictly(name, dataset):
    fixture = FIXTURES[name]
    state = empty_state(fixture, dataset)
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    with torch.device("meta"):
        model = build(name, dataset)
    for source in (state, {"state_dict": parallel, "epoch": 60, "optimizer": {}}):
        report = load_checkpoint(model, source)
        assert all("classifier" in key for key in report.missing)
        assert report.missing == () or not any("classifier" in key for key in state)  # TransReID's files have none
        assert set(report.dropped) <= {*fixture["unused"], *fixture["aliases"].values()}
        assert report.matched + len(report.dropped) == len(state)
        assert report.matched + len(report.missing) == len(model.state_dict())


def test_a_classifier_of_another_size_is_dropped_and_named(name):
    fixture = FIXTURES[name]
    classifier = [key for key in fixture["by_dataset"] if key in fixture["unused"] and "classifier" in key]
    if not classifier:
        pytest.skip("the published files hold no classifier apart from the feature")
    with torch.device("meta"):
        model, bare = create_model(name, num_classes=751, num_cameras=15), create_model(name, num_cameras=6)
    report = load_checkpoint(model, empty_state(fixture, "msmt17"))
    assert [key for key in report.dropped if key in fixture["by_dataset"] and "classifier" in key] == classifier
    assert len(report.missing) == len(classifier)
    assert all(key in str(report) for key in classifier)
    assert set(classifier) <= set(load_checkpoint(bare, empty_state(fixture)).dropped)


@slow_but(FEW)
def test_own_weights_come_back_bit_equal_through_safetensors(loaded, tmp_path):
    model, _ = loaded
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = copy.deepcopy(model)
    for tensor in again.state_dict().values():
        tensor.zero_()
    report = load_checkpoint(again, tmp_path / "model.safetensors")
    assert (report.matched, report.renamed, report.dropped, report.missing) == (len(model.state_dict()), 0, {}, ())
    loaded_back = again.state_dict()
    assert all(torch.equal(loaded_back[key], tensor) for key, tensor in model.state_dict().items())


# Features


def test_the_golden_feature_is_reproduced(loaded):
    model, fixture = loaded
    x, camids = draw_input(*fixture["input"]), camids_of(fixture)
    assert list(model.input_size) == fixture["input"]
    cut = model.branches["projected"].start if "projected" in model.branches else 0  # CLIP's, fourteen times larger
    with torch.no_grad():
        feats = model.network(x, camids)
        assert feats.shape == (2, fixture["feature_dim"]) == (2, model.feature_dim)
        assert golden_error(feats, fixture["golden"], cut=cut) <= 5e-5
        model = copy.deepcopy(model).double()
        assert golden_error(model.network(x.double(), camids), fixture["golden"], cut=cut) <= 1e-9
        for other in fixture.get("others", ()):  # at another input size
            x = draw_input(*other["input"]).double()
            assert golden_error(model.network(x, camids), other) <= 1e-9


def test_regions_are_cut_as_the_published_weights_mean_or_as_torch_cuts_today(monkeypatch):
    fixture = FIXTURES["hacnn"]
    monkeypatch.setitem(MODELS, "hacnn", replace(MODELS["hacnn"], backbone=partial(HACNN, align_corners=False)))
    model = build("hacnn").double().eval()
    load_checkpoint(model, draw_state(fixture))
    with torch.no_grad():
        feats = model.network(draw_input(*fixture["input"]).double())
    assert golden_error(feats, fixture["golden_unaligned"]) <= 1e-9
    assert golden_error(feats, fixture["golden"]) > 1e-2


def test_the_feature_of_class_scores_needs_classes():
    with pytest.raises(ValueError, match="feature is its class scores: give num_classes"):
        create_model("v2018_SqueezeNet")


def test_the_feature_reaches_the_parameters_that_upstream_reaches(loaded, counted, images):
    model, fixture = loaded
    parameters = [p.requires_grad_() for p in model.parameters()]  # necks' shifts too
    feats = model(images, camids_of(fixture))
    grads = torch.autograd.grad(feats.sum(), parameters, allow_unused=True)
    reached = sum(p.numel() for p, grad in zip(parameters, grads, strict=True) if grad is not None)
    assert reached == fixture["params_reached"] == counted().params


def test_counts_are_those_of_upstream_and_those_kept_as_data(loaded, counted):
    model, fixture = loaded
    counts = fixture["counts"]
    if "macs_complexity" in counts:
        count = counted("torchreid")
        called = model.network.head.classifier.parameters() if model.name == "mudeep" else ()  # see WASTE
        assert count.params + sum(p.numel() for p in called) == counts["params_eval"]
        assert (count.macs == counts["macs_complexity"]) is (model.name not in WASTE)
    for line in (line for (name, *_), line in measured().items() if name == model.name):
        (dataset,) = (name for name, classes in IDENTITIES.items() if classes == line.classes)
        assert counted(line.counting, dataset) == line[-2:], "run `make zoo`"
        assert model.feature_dim == line.feature


@slow_but(FEW)
def test_normalisation_is_inside(loaded, images):
    model, _ = loaded
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    with torch.no_grad():
        feats = model(images)
        assert feats.dtype == torch.float32
        torch.testing.assert_close(model.network((images / 255 - mean) / std), feats)
        torch.testing.assert_close(model(images / 255), feats)
        torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), feats, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images.transpose(2, 3).contiguous().transpose(2, 3)), feats)
        torch.testing.assert_close(model(images[:1]), feats[:1], rtol=1e-4, atol=1e-4)


@slow_but(FEW)
def test_folded_norms_leave_the_feature_as_it_is(loaded, images):
    model, fixture = loaded
    fused, camids = model.fuse(), camids_of(fixture)
    assert len(fused.state_dict()) < len(model.state_dict()) or not any(
        type(module) is torch.nn.BatchNorm2d for module in model.modules()
    )
    with torch.no_grad():
        feats = model(images, camids)
        torch.testing.assert_close(fused(images, camids), feats, rtol=1e-4, atol=1e-5 * feats.abs().max().item())


@slow_but(REPRESENTATIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_autocast_gives_finite_float_feats(loaded, images, dtype):
    model, _ = loaded
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        feats = model(images)
    assert feats.dtype == torch.float32
    assert feats.isfinite().all()


@slow_but(REPRESENTATIVES)
def test_the_cam_layer_gives_a_map_that_the_feature_depends_on(loaded, images):
    model, fixture = loaded
    assert model.cam_layer in set(model.modules())
    seen = []
    handle = model.cam_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    feats = model(images, camids_of(fixture))
    handle.remove()
    (grad,) = torch.autograd.grad(feats.sum(), seen[-1])
    assert grad.any()
    cam = model.cam_map(seen[-1])
    assert cam.ndim == 4
    assert cam.shape[0] == 2
    assert min(cam.shape[2:]) >= 2


@slow_but({"hacnn", "vit_transreid"})
def test_it_exports_for_any_batch(loaded, images):
    model, _ = loaded
    one = images[:1]
    with torch.no_grad():
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(exported.module()(images), model(images))
        torch.testing.assert_close(exported.module()(one), model(one))


@slow_but({"shufflenet"})
def test_it_compiles_to_one_graph(loaded, images):
    model, _ = loaded
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler behind torch.compile is missing")
def test_it_compiles_to_machine_code():
    torch.compiler.reset()
    model, images = create_model("shufflenet").eval(), torch.rand(2, 3, *SMALL)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(images), model(images), rtol=1e-4, atol=1e-5)


# Training


@slow_but(FEW)
def test_features_and_outputs_are_had_in_either_mode(loaded, images):
    model, fixture = loaded
    network, camids = model.network, camids_of(fixture)
    x = model.normalise(images)
    with torch.no_grad():
        feats, outputs = network(x, camids), network.outputs(x, camids)
        assert torch.equal(network.features(x, camids), feats)
        assert isinstance(outputs, Outputs)
        containers = [module for module in model.modules() if isinstance(module, RetrievalModule)]
        for module in containers:  # norms and dropout stay as they are in eval mode
            module.training = True
        in_training = network(x, camids)
        feats_in_training = network.features(x, camids)
        for module in containers:
            module.training = False
    assert torch.equal(feats_in_training, feats)
    for mine, called in zip(outputs, in_training, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, called, strict=True))
    assert model.feature_dim == feats.shape[1]


@slow_but(FEW)
def test_the_shapes_of_training_are_told_without_computing(loaded):
    model, fixture = loaded
    before = [module.training for module in model.modules()]
    shapes = model.output_shapes()
    assert [module.training for module in model.modules()] == before
    assert all(tensor.is_meta for each in shapes for tensor in each)
    images = torch.zeros(2, 3, *model.input_size, dtype=torch.uint8)
    with torch.no_grad():
        outputs = model.network.outputs(model.normalise(images), camids_of(fixture))
    assert [[y.shape for y in ys] for ys in shapes] == [[y.shape for y in ys] for ys in outputs]


@slow_but(FEW, "name")
def test_training_lowers_the_loss_and_reaches_what_the_feature_reaches(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, num_cameras=2).train()
    images = torch.rand(4, 3, *small(model))
    pids, camids = torch.arange(4), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(20):
        out = model(images, camids)
        assert all(logits.shape == (4, 4) for logits in out.logits)
        assert all(embedding.shape[0] == 4 and embedding.ndim == 2 for embedding in out.embeddings)
        loss = sum(F.cross_entropy(logits, pids) for logits in out.logits) / len(out.logits)
        losses.append(loss.item())
        if losses[-1] < 0.9 * losses[0]:
            break
        optimizer.zero_grad()
        (loss + 1e-6 * sum(embedding.square().sum() for embedding in out.embeddings)).backward()
        trained = {key for key, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0], losses
    model.eval().zero_grad()
    model(images, camids).sum().backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()} <= trained


@pytest.fixture(scope="module")
def sie():
    """TransReID that knows three cameras."""
    return create_model("vit_transreid", num_cameras=3, input_size=(64, 32)).eval()


@pytest.fixture
def two():
    return torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(5))


def test_a_camera_never_seen_takes_the_mean_embedding_with_one_warning(sie, two):
    backbone = sie.network.backbone
    backbone.warned = False
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"camids \[-1, 7\] are not in 0 to 2: .* mean camera embedding"):
            feats = sie(two, torch.tensor([7, -1]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it was said once
            torch.testing.assert_close(sie(two), feats)
            mixed = sie(two, torch.tensor([1, 7]))
        torch.testing.assert_close(mixed[1], feats[1])
        assert (mixed[0] - feats[0]).abs().max() > 1e-4
        mean = backbone.sie_embed.mean(0, keepdim=True)
        with patched(backbone, sie_embed=torch.nn.Parameter(mean)):
            torch.testing.assert_close(sie(two, torch.tensor([0, 0])), feats)


def test_a_camera_never_seen_is_an_error_if_so_declared(sie, two):
    with patched(sie.network.backbone, unseen_camera="error"), torch.no_grad():
        with pytest.raises(ValueError, match=r"nothing for these images: camids \[3\] are not in 0 to 2"):
            sie(two, torch.tensor([3, 0]))
        with pytest.raises(ValueError, match="no camids are given"):
            sie(two)


@contextmanager
def patched(module, **values):
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    yield
    for name, value in before.items():
        setattr(module, name, value)


@pytest.mark.parametrize("count", [4, 15, 210])
def test_patches_are_shifted_by_four_and_interleaved_as_by_hand(count):
    patches = torch.arange(float(count)).view(1, count, 1).expand(2, -1, 3)
    order = [(i + 4) % count for i in range(count)]
    order += [order[-2]] if count % 2 else []
    half = len(order) // 2
    order = [number for pair in zip(order[:half], order[half:], strict=True) for number in pair]
    length = count // 4
    runs = jigsaw(patches, 4)
    assert runs.shape == (2, 4, length, 3)
    assert runs[1, :, :, 2].tolist() == [order[i * length : (i + 1) * length] for i in range(4)]


@pytest.mark.parametrize(
    ("rows", "count", "cut"), [(16, 3, [6, 6, 4]), (16, 2, [8, 8]), (15, 2, [8, 7]), (2, 3, [1] * 3)]
)
def test_stripes_are_cut_as_torch_chunks_and_never_empty(rows, count, cut):
    x = torch.arange(float(rows)).view(1, 1, rows, 1)
    parts = stripes(x, count)
    assert [part.shape[2] for part in parts] == cut
    if rows >= count:
        assert all(torch.equal(a, b) for a, b in zip(parts, x.chunk(count, dim=2), strict=True))


def test_the_non_local_block_is_the_sum_over_all_pairs():
    torch.manual_seed(1)
    block = NonLocal(6).double().eval()
    torch.nn.init.ones_(block.W[1].weight)
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    g, theta, phi = (conv(x).flatten(1) for conv in (block.g, block.theta, block.phi))
    y = torch.stack([(theta[:, i, None] * phi * g).sum(1) / 6 for i in range(6)], dim=1)
    torch.testing.assert_close(block(x), x + block.W(y.view(2, 1, 3, 2)))


def test_without_classes_there_are_embeddings_only():
    out = create_model("osnet_x0_25").train()(torch.rand(2, 3, 64, 32))
    assert out.logits == []
    assert out.embeddings[0].shape == (2, 512)


# Input


def test_another_input_size_is_recorded():
    model = create_model("osnet_x0_25", input_size=(128, 64))
    assert model.input_size == (128, 64)
    assert complexity(model).macs == pytest.approx(complexity(create_model("osnet_x0_25")).macs / 4, rel=1e-2)


@slow_but(REPRESENTATIVES)
@pytest.mark.parametrize("size", [(32, 32), (101, 67)])
def test_other_input_sizes_work(loaded, size):
    model, fixture = loaded
    size = [max(side, model.network.min_size) for side in size]
    with torch.no_grad():
        feats = model(torch.rand(2, 3, *size), camids_of(fixture))
    assert feats.shape == (2, model.feature_dim)
    assert feats.isfinite().all()


def test_an_image_too_small_is_one_sentence():
    with pytest.raises(ValueError, match="osnet_x0_25 takes images of 32 x 32 or more, got 64 x 16: enlarge them"):
        create_model("osnet_x0_25")(torch.rand(1, 3, 64, 16))


@pytest.mark.parametrize("shape", [(3, 256, 128), (2, 256, 128, 3), (2, 1, 256, 128)])
def test_a_wrong_shape_is_one_sentence(shape):
    with pytest.raises(ValueError, match=r"osnet_x0_25 takes RGB images of shape \(B, 3, H, W\), got \("):
        create_model("osnet_x0_25")(torch.zeros(shape))


def test_a_wrong_dtype_is_one_sentence():
    with pytest.raises(TypeError, match=r"uint8 or as float in \[0, 1\], got torch.int64"):
        create_model("osnet_x0_25")(torch.zeros(1, 3, 256, 128, dtype=torch.int64))


# Counting


def test_counting_leaves_the_model_as_it_was():
    model = create_model("osnet_x0_25", num_classes=5).train()
    model.network.backbone.conv1.eval()  # a frozen part stays frozen
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    complexity(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_exact_counting_agrees_with_arithmetic():
    model = create_model("resnet50_fc512")
    bias = model.network.head.embedding[
        0
    ].bias.numel()  # torchreid counts one an output for it, exact counting does not
    assert complexity(model, counting="torchreid").macs - complexity(model).macs == bias
    assert complexity(create_model("resnet50_fc512", input_size=(128, 128))).macs == pytest.approx(
        complexity(model).macs / 2, rel=1e-3
    )


def test_an_unknown_counting_is_named():
    with pytest.raises(ValueError, match="unknown counting 'thump': known are exact, total, torchreid, thop"):
        complexity(create_model("osnet_x0_25"), counting="thump")
