"""The figures say what they should and leave nothing behind; a CAM is the gradient that it claims to be."""

import gc
import subprocess
import sys
import warnings
import weakref
from collections import namedtuple
from contextlib import nullcontext
from io import BytesIO
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.functional import normalize

from reidlib import plots

Sample = namedtuple("Sample", "path pid camid")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Five people in three cameras, one unseen in camera 3, and a junk and a distractor image at the end."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    wanted = [(pid, camid) for pid in range(1, 6) for camid in (1, 2, 3) if (pid, camid) != (2, 3)]
    found = []
    for pid, camid in [*wanted, (-1, 1), (0, 2)]:
        pixels = np.clip(rng.normal(rng.integers(60, 200, 3), 20, (64, 32, 3)), 0, 255).astype(np.uint8)
        found.append(Sample(root / f"{pid}_c{camid}.png", pid, camid))
        Image.fromarray(pixels).save(found[-1].path)
    return found


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


class Tiny(nn.Module):
    """A network as the zoo makes them, as far as a CAM can tell; `left` pools the left half alone."""

    def __init__(self, left=False, tokens=False, cameras=0):
        super().__init__()
        self.cam_layer = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU())
        if tokens:
            self.cam_layer.append(nn.Flatten(2))  # (B, C, N): as good as tokens
            self.cam_map = lambda x: x.unflatten(2, (8, 4))
        self.neck, self.left = nn.Linear(8, 6, bias=False), left
        self.cameras = nn.Embedding(cameras, 6) if cameras else None

    def forward(self, images, camids=None):
        maps = self.cam_layer(images * 2 - 1).flatten(2).unflatten(2, (8, 4))
        feats = self.neck(maps[..., : 2 if self.left else 4].mean((2, 3)))
        return feats if self.cameras is None else feats + self.cameras(camids)


class Vector(nn.Module):
    """A network whose layer gives no map."""

    def __init__(self, cam_layer, trunk=None):
        super().__init__()
        self.cam_layer, self.trunk = cam_layer, trunk or cam_layer

    def forward(self, images):
        return self.trunk(images).flatten(1)


def images(count, seed=0):
    return torch.rand(count, 3, 32, 16, generator=torch.Generator().manual_seed(seed))


def model(**kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny(**kwargs)


def held(x, shape, weight, bias, eps):
    """A layer norm over the last dimension, token by token, each divided by a number."""
    assert len(shape) == 1
    rows = [row - row.mean() for row in x.flatten(0, -2)]
    return torch.stack([r / (r.square().mean().item() + eps) ** 0.5 * weight + bias for r in rows]).view_as(x)


def held_unit(x, dim):
    assert dim == 1
    return torch.stack([row / row.norm().item() for row in x])


def naive_cam(net, image, partner, method, camid=None, columns=slice(None)):
    """One map (h, w) by the book, position by position and channel by channel; lists of Python floats."""
    outputs = []
    handle = net.cam_layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.enable_grad():
        with mock.patch.object(functional, "normalize", held_unit), mock.patch.object(functional, "layer_norm", held):
            feat = net(image[None], camid)[0]
        handle.remove()
        with torch.no_grad():
            other = net(partner[None], camid)[0]
        cosine = (feat * other)[columns].sum() / (feat.norm().detach() * other.norm())
        (gradient,) = torch.autograd.grad(cosine, outputs[0])
    as_map = getattr(net, "cam_map", lambda output: output)
    a, g = (as_map(x.detach())[0].double().tolist() for x in (outputs[0], gradient))
    channels, height, width = len(a), len(a[0]), len(a[0][0])
    means = [sum(map(sum, g[c])) / (height * width) for c in range(channels)]
    weight = {
        "gradcam": lambda c, i, j: means[c],
        "hirescam": lambda c, i, j: g[c][i][j],
        "layercam": lambda c, i, j: max(g[c][i][j], 0),
    }[method]
    return [
        [max(sum(weight(c, i, j) * a[c][i][j] for c in range(channels)), 0) for j in range(width)]
        for i in range(height)
    ]


# One small model of each kind of wiring, and where branches split; the rest is in the slow sweep.
WIRINGS = {
    "osnet_x0_25": (128, 64),
    "deit_transreid": (64, 40),
    "densenet121_abd": (64, 32),
    "hacnn": (160, 64),
    "mgn_R50_fastreid": (64, 32),
}
SWEEP = dict.fromkeys(("osnet_x0_25", "resnet50_bot", "mgn_R50_fastreid", "resnet50_abd", "vit_transreid"), (128, 64))


@pytest.fixture(scope="module")
def of_the_zoo(request):
    """An untrained network in float64, and a pair of images of its size."""
    from reidlib import create_model

    name, size = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = create_model(name, num_classes=4, num_cameras=2, input_size=size).double().eval()
        pair = torch.rand(2, 3, *size)
    return net, pair


def assert_cams_are_naive(net, pair, method):
    """Both images of a pair, and an image alone."""
    camid = torch.zeros(1, dtype=torch.int64)
    got = plots.similarity_cam(net, pair[:1], pair[1:], camid, camid, method=method)
    alone = plots.feature_cam(net, pair[:1], camid, method=method)
    for cam, (image, partner) in zip((*got, alone), (pair, pair.flip(0), pair[[0, 0]]), strict=True):
        want = torch.tensor(naive_cam(net, image, partner, method, camid), dtype=torch.float64)
        assert cam.dtype == torch.float32
        assert want.amax() > 0
        torch.testing.assert_close(cam[0].double(), want, atol=1e-5 * want.amax().item(), rtol=0)


@pytest.mark.parametrize("of_the_zoo", WIRINGS.items(), indirect=True, ids=WIRINGS)
def test_cams_of_each_kind_of_wiring_are_those_of_the_naive_loop(of_the_zoo):
    assert_cams_are_naive(*of_the_zoo, "hirescam")


@pytest.mark.parametrize("method", ["hirescam", "gradcam", "layercam"])
def test_cams_of_a_small_network_are_those_of_the_naive_loop(method):
    assert_cams_are_naive(model(cameras=2).double().eval(), images(2).double(), method)


@pytest.mark.slow
def test_every_model_of_the_zoo_has_maps_of_images_and_pairs():
    from reidlib import create_model, list_models

    for name in list_models():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = create_model(name, num_classes=16, num_cameras=2).eval()  # 16: of 4 scores a ReLU may leave none
            pair = torch.rand(2, 3, *net.input_size)
        camid = torch.zeros(1, dtype=torch.int64)
        for cam in (
            plots.feature_cam(net, pair[:1], camid),
            *plots.similarity_cam(net, pair[:1], pair[1:], camid, camid),
        ):
            assert cam.isfinite().all(), name
            assert cam.shape[0] == 1, name
            assert min(cam.shape[1:]) > 1, name
            assert cam.amax() > 1e-6, name  # a sum of about 1 over a map, no rounding error


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hirescam", "gradcam", "layercam"])
@pytest.mark.parametrize("of_the_zoo", SWEEP.items(), indirect=True, ids=SWEEP)
def test_cams_of_the_zoo_are_those_of_the_naive_loop(of_the_zoo, method):
    assert_cams_are_naive(*of_the_zoo, method)


BRANCHED = {name: WIRINGS[name] for name in ("densenet121_abd", "mgn_R50_fastreid")}


@pytest.mark.parametrize("of_the_zoo", BRANCHED.items(), indirect=True, ids=BRANCHED)
def test_a_map_counts_what_every_branch_contributes(of_the_zoo):
    net, pair = of_the_zoo
    image, partner = pair.double().chunk(2)
    branches = net.network.backbone.branches
    outputs = []
    hooks = [
        branch.register_forward_hook(lambda module, args, output: outputs.append(output))
        for branch in (branches.values() if isinstance(branches, nn.ModuleDict) else branches)
    ]
    with torch.no_grad():
        other = net(partner)
    outputs.clear()
    feat = net(image)
    cosine = (feat * other).sum() / (feat.norm().detach() * other.norm())
    gradients = torch.autograd.grad(cosine, outputs)
    for hook in hooks:
        hook.remove()
    parts = [(g * a).sum(1) for g, a in zip(gradients, outputs, strict=True)]
    want = sum(parts).clamp(min=0).detach()
    got = plots.similarity_cam(net, image, partner)[0].double()
    torch.testing.assert_close(got, want, atol=1e-5 * want.amax().item(), rtol=0)
    assert not torch.allclose(want, parts[0].clamp(min=0), rtol=0.1)


SEVERAL = {name: size for name, size in WIRINGS.items() if name != "osnet_x0_25"}


@pytest.mark.parametrize("of_the_zoo", SEVERAL.items(), indirect=True, ids=SEVERAL)
def test_a_branch_has_the_map_of_its_own_columns(of_the_zoo):
    net, pair = of_the_zoo
    camid = torch.zeros(2, dtype=torch.int64)
    assert (
        set(net.branches)
        == {
            "osnet_x0_25": set(),
            "deit_transreid": {"whole", "part 1", "part 2", "part 3", "part 4"},
            "densenet121_abd": {"global", "attentive"},
            "hacnn": {"global", "local"},
            "mgn_R50_fastreid": {
                f"{part} {i}" for part, n in (("whole", 3), ("half", 2), ("third", 3)) for i in range(1, n + 1)
            },
        }[net.name]
    )
    assert sorted(i for columns in net.branches.values() for i in range(*columns.indices(net.feature_dim))) == [
        *range(net.feature_dim)
    ]
    *_, (last, columns) = net.branches.items()
    own = plots.feature_cam(net, pair, camid, branch=last)
    want = torch.tensor(naive_cam(net, pair[0], pair[0], "hirescam", camid[:1], columns), dtype=torch.float64)
    torch.testing.assert_close(own[0].double(), want, atol=1e-5 * want.amax().item(), rtol=0)
    assert own.any() == (last != "local"), "HACNN's local branch leaves the network before the map"
    feats = net(pair, camid).detach()
    share = feats[:, columns].norm(dim=1) ** 2 / feats.norm(dim=1) ** 2
    if net.name.startswith("mgn"):  # average pooling and a linear layer follow: the map sums to the share, or more
        assert (own.sum((1, 2)) >= 0.999 * share).all()
        assert not own[:, :2].any(), "the last third does not see the head"
    with pytest.raises(ValueError, match=f"unknown branch '{last}x': did you mean .*'{last}'"):
        plots.feature_cam(net, pair, camid, branch=last + "x")


def test_lengths_that_a_network_divides_by_are_held_fixed():
    """An image with itself: without it the gradient is zero wherever the feature has one length whatever the image."""

    class Scaled(Tiny):
        def forward(self, images, camids=None):
            feats = super().forward(images, camids)
            return self.last(feats)

    want = plots.feature_cam(model(), images(3))
    assert want.amax((1, 2)).min() > 0
    for last in (normalize, lambda x: functional.layer_norm(x, (6,), eps=0)):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = Scaled()
        net.neck.weight.data -= net.neck.weight.data.mean(0)  # a layer norm takes the mean away
        plain = Tiny()
        plain.load_state_dict(net.state_dict())
        net.last = last
        torch.testing.assert_close(plots.feature_cam(net, images(3)), plots.feature_cam(plain, images(3)))


@pytest.mark.parametrize("name", ["deit_transreid", "timm/vit_tiny_patch16_224"])
def test_blocks_and_attention_rollout_of_transformers(name):
    from reidlib import create_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = create_model(name, num_classes=4, num_cameras=2, input_size=(80, 48)).eval()
    x, camid = torch.rand(2, 3, 80, 48), torch.zeros(2, dtype=torch.int64)
    assert len(net.cam_blocks) in (11, 12)
    first, fifth = (plots.feature_cam(net, x, camid, block=block) for block in (1, 5))
    assert first.shape == fifth.shape == (2, *plots.feature_cam(net, x, camid).shape[1:])
    assert not torch.equal(first, fifth)
    with pytest.raises(
        ValueError, match=rf"there is no block 13: {name} has blocks 1 to {len(net.cam_blocks)}; block 0"
    ):
        plots.feature_cam(net, x, camid, block=13)
    attention = next(module for module in net.modules() if hasattr(module, "attn_drop"))
    qkv = []
    hook = attention.qkv.register_forward_hook(lambda module, args, output: qkv.append(output))
    with torch.no_grad():
        net(x, camid)
    hook.remove()
    q, k, _ = qkv[0].unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3).mean(1)
    one = plots.feature_cam(net, x, camid, method="rollout", block=1)
    torch.testing.assert_close(one.flatten(1), weights[:, 0, 1:] / 2, atol=1e-5, rtol=1e-4)
    every = plots.feature_cam(net, x, camid, method="rollout")
    assert (every.sum((1, 2)) < 1).all()  # the class token keeps the rest
    assert every.mean() > one.mean()
    assert attention.fused_attn
    assert not any(module._forward_hooks for module in net.modules())
    assert plots.cam_note(net, "rollout").startswith("Attention rollout (Abnar and Zuidema")
    if net.branches:
        with pytest.raises(ValueError, match="'rollout' does not tell branches apart"):
            plots.cam_note(net, "rollout", branch="whole")


def test_a_plain_network_has_no_branches_blocks_or_rollout():
    with pytest.raises(ValueError, match="no branch 'whole': Tiny is of one branch; leave branch empty"):
        plots.feature_cam(model(), images(1), branch="whole")
    with pytest.raises(ValueError, match="no block 2: Tiny is no transformer with blocks to choose from; block 0"):
        plots.feature_cam(model(), images(1), block=2)
    with pytest.raises(ValueError, match="Tiny has no attention over all its patches: method 'rollout' is for vision"):
        plots.feature_cam(model(), images(1), method="rollout")


def test_the_rank_correlation_of_maps_is_that_of_scipy():
    from scipy.stats import spearmanr

    one, other = torch.rand(3, 4, 2), torch.rand(3, 4, 2)
    one[0, :2], other[1] = 0, 0.5
    got = plots.cam_correlation(one, other)
    for i in (0, 2):
        assert got[i].item() == pytest.approx(spearmanr(one[i].flatten(), other[i].flatten()).statistic)
    assert got[1].isnan()
    torch.testing.assert_close(plots.cam_correlation(one, one), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_contributions_add_up_to_the_cosine(method):
    """What holding the norm fixed means: with average pooling, no bias and nothing negative they sum to the cosine."""
    net, query, gallery = model().eval(), images(3, 1), images(3, 2)
    with torch.no_grad():
        net.neck.weight.abs_()
        cosine = (normalize(net(query)) * normalize(net(gallery))).sum(1)
    for cam in plots.similarity_cam(net, query, gallery, method=method, batch_size=2):
        assert cam.shape == (3, 8, 4)
        torch.testing.assert_close(cam.sum((1, 2)), cosine)


def test_every_method_is_named_explained_and_drawn():
    from reidlib.plots.cam import METHODS

    net, query, gallery = model(), images(2, 1), images(2, 2)
    methods = [method for method in METHODS if method != "rollout"]  # needs attention
    maps = {method: plots.similarity_cam(net, query, gallery, method=method)[0] for method in methods}
    for method, cam in maps.items():
        assert cam.isfinite().all()
        assert cam.amin() >= 0
        assert cam.amax() > 0
        note = plots.cam_note(net, method)
        assert note.startswith("Read at cam_layer. ")
        assert note.endswith("What is negative is drawn as 0.")
    torch.testing.assert_close(maps["eigencam"], plots.feature_cam(net, query, method="eigencam"))  # whatever the match
    assert not torch.equal(maps["layercam"], maps["hirescam"])


def test_cam_shows_the_half_that_the_feature_sees():
    net = model(left=True)
    for cam in (plots.feature_cam(net, images(4)), *plots.similarity_cam(net, images(4), images(4, 1))):
        assert cam[..., :2].sum() > 0
        assert not cam[..., 2:].any()
    assert plots.feature_cam(net, images(4), method="gradcam")[..., 2:].any()  # why it is not the default


def test_an_image_with_itself_has_the_cam_of_its_feature():
    net = model()
    own = plots.feature_cam(net, images(3))
    for cam in plots.similarity_cam(net, images(3), images(3)):
        torch.testing.assert_close(cam, own)


def test_cam_of_tokens_cameras_bytes_and_frozen_or_inference_tensors():
    plain = plots.feature_cam(model(), images(3))
    torch.testing.assert_close(plots.feature_cam(model(tokens=True), images(3)), plain)
    as_bytes = (images(3) * 255).round().to(torch.uint8)
    torch.testing.assert_close(plots.feature_cam(model(), as_bytes), plots.feature_cam(model(), as_bytes / 255))
    frozen = model().requires_grad_(False)
    with torch.inference_mode():
        torch.testing.assert_close(plots.feature_cam(frozen, images(3)), plain)
    net = model(cameras=2)
    one, other = (plots.feature_cam(net, images(3), torch.full((3,), camid), batch_size=2) for camid in (0, 1))
    assert not torch.equal(one, other)


def test_cam_leaves_the_model_as_it_was():
    net = model().train()
    net.cam_layer[1].eval()
    net.neck.requires_grad_(False)
    net(images(2)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    values = {name: value.clone() for name, value in net.state_dict().items()}
    for channels in (3, 2):  # a failure, too, leaves nothing behind
        with nullcontext() if channels == 3 else pytest.raises(RuntimeError, match="channels"):
            plots.feature_cam(net, images(2)[:, :channels])
        assert net.training
        assert net.neck.training
        assert not net.cam_layer[1].training
        assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["neck.weight"]
        assert all(p.grad is grads[name] for name, p in net.named_parameters())
        assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
        assert not any(module._forward_hooks for module in net.modules())


def test_cam_of_what_comes_from_no_position_is_zero():
    """A feature that is zero, and a similarity that rests on a bias alone while every position speaks against it."""
    net = model()
    nn.init.zeros_(net.neck.weight)
    assert not plots.feature_cam(net, images(2)).any()
    assert not plots.similarity_cam(net, images(2), images(2, 1))[1].any()
    net.neck = nn.Linear(8, 1)
    nn.init.constant_(net.neck.weight, -1)
    nn.init.constant_(net.neck.bias, 20)
    for cam in (plots.feature_cam(net, images(2)), *plots.similarity_cam(net, images(2), images(2, 1))):
        assert not cam.any()


def test_cam_errors():
    with pytest.raises(ValueError, match="Linear has no maps to explain: set cam_layer to the module whose output is"):
        plots.feature_cam(nn.Linear(2, 2), images(1))
    net = model()
    net.cam_layer = nn.Sequential(net.cam_layer, nn.AdaptiveAvgPool2d(1))
    with pytest.raises(
        ValueError, match=r"Vector has no maps to explain: its cam_layer gives \(1, 8, 1, 1\), a map is"
    ):
        plots.feature_cam(Vector(net.cam_layer), images(1))
    with pytest.raises(ValueError, match="Vector has no maps to explain: its cam_layer does not take part"):
        plots.feature_cam(Vector(nn.Linear(2, 2), net.cam_layer), images(1))
    with pytest.raises(ValueError, match="unknown CAM method 'GradCam': did you mean 'gradcam'"):
        plots.feature_cam(model(), images(1), method="GradCam")
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 16\), \(1, 3, 32, 16\)"):
        plots.similarity_cam(model(), images(2), images(1))
    with pytest.raises(ValueError, match="for both the query and the gallery images, or for neither"):
        plots.similarity_cam(model(), images(2), images(2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cam_on_gpu():
    pytest.importorskip("pytorch_grad_cam")
    want = plots.similarity_cam(model(), images(3), images(3, 1))
    got = plots.similarity_cam(model().cuda(), images(3).cuda(), images(3, 1).cuda())
    for one, other in zip(want, got, strict=True):
        assert other.is_cuda
        torch.testing.assert_close(one, other.cpu(), atol=1e-3 * one.amax().item(), rtol=0)


def test_overlay_is_brighter_where_the_map_is_higher():
    """In greyscale too, over a white wall as over a black coat, with a white line at half of the scale."""
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    for shade in (0, 90, 255):
        laid = plots.overlay(np.full((8, 64, 3), shade, np.uint8), torch.from_numpy(ramp))
        assert laid.shape == (8, 64, 3)
        assert laid.dtype == np.uint8
        grey = laid[4] @ [0.299, 0.587, 0.114]
        line = np.flatnonzero((laid[4] == 255).all(1))
        assert (line == [31]).all()
        assert grey[-1] > grey[0] + 60
        if shade < 255:
            assert (np.diff(np.delete(grey, line)) > -2).all()
    half = plots.overlay(np.zeros((8, 64, 3), np.uint8), ramp, top=2)
    np.testing.assert_array_equal(half, plots.overlay(np.zeros((8, 64, 3), np.uint8), ramp / 2, top=1))
    assert not plots.overlay(np.zeros((8, 4, 3), np.uint8), np.zeros((2, 1))).any()


RANKED = np.array([[1, 4, 14], [0, 15, -1]])


def test_rank_list_rows(samples):
    queries = [samples[0], samples[4]]  # pid 1 in camera 1, pid 2 in camera 2
    rows = plots.rank_list_rows(queries, samples, torch.from_numpy(RANKED), RANKED / 20, ap=[0.5, np.nan])
    assert [row["right"] for row in rows] == [True, False, None, False, False]
    assert [row["rank"] for row in rows] == [1, 2, 3, 1, 2]
    assert rows[0]["path"] == str(samples[1].path)
    assert rows[1]["similarity"] == pytest.approx(0.2)
    assert [row["pid"] for row in rows] == [1, 2, "junk", 1, "distractor"]
    own = plots.rank_list_rows([samples[0]], samples, [[0]], [[1.0]])
    assert own[0]["right"] is None  # the query's own person in its own camera


def test_rank_list_marks_matches_by_symbol_and_line(samples):
    figure = plots.rank_list([samples[0], samples[4]], samples, RANKED, RANKED / 20, ap=[0.5, np.nan], title="2 chosen")
    found = texts(figure)
    for text in ("2 chosen", "AP 50 %", "no match", "✓ 0.05", "✗ 0.20", "⊘ 0.70", "1 · c2"):
        assert text in found
    assert len(figure.axes[0].images) == 2 + 5
    frames = {(str(patch.get_linestyle()), patch.get_edgecolor()) for patch in figure.axes[0].patches}
    assert len(frames) == len({style for style, _ in frames}) == len({colour for _, colour in frames}) == 3


def test_rank_list_errors(samples, tmp_path):
    with pytest.raises(ValueError, match=r"1 queries need ranked and similarity of shape \(1, k\)"):
        plots.rank_list(samples[:1], samples, RANKED, RANKED)
    with pytest.raises(ValueError, match="gallery item 15, but the gallery has 2"):
        plots.rank_list_rows(samples[:2], samples[:2], RANKED, RANKED)
    bad = Sample(tmp_path / "bad.jpg", 1, 1)
    bad.path.write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot read image .*bad\.jpg: the file is empty"):
        plots.rank_list([bad], samples, [[0]], [[1.0]])


def test_the_maps_of_a_row_share_a_scale(samples):
    cams = np.random.default_rng(0).random((2, 3, 32, 16), np.float32)
    cams[0, 0] /= 2
    cams[1, :2] *= 4
    cams[1, 2] = 99  # of a match that is not there
    figure = plots.cam_figure(
        [samples[0], samples[4]], samples, RANKED, RANKED / 20, cams[:, 0], cams, cams, title="why"
    )
    assert len(figure.axes[0].images) == 2 * 2 + 5 + 2  # and a colour bar for each row
    found = texts(figure)
    row_tops = [cams[0].max(), cams[1, :2].max()]
    for text in ("✓ 0.05", "1", "c2", "≤ 0", *(f"{top * share:.2g}" for top in row_tops for share in (0.5, 1))):
        assert text in found
    assert any("One scale for each row" in text.replace("\n", " ") for text in found)
    query = np.asarray(Image.open(samples[0].path).resize((128, 256), Image.Resampling.BILINEAR))
    drawn = figure.axes[0].images[1].get_array()
    np.testing.assert_array_equal(drawn, plots.overlay(query, cams[0, 0], cams[0].max()))
    assert not np.array_equal(drawn, plots.overlay(query, cams[0, 0]))


def test_the_maps_of_a_page_share_a_scale_or_each_has_its_own(samples):
    cams = np.random.default_rng(0).random((2, 3, 32, 16), np.float32)
    cams[1] *= 4
    rows = [samples[0], samples[4]], samples, RANKED[:, :2], RANKED[:, :2] / 20
    page = plots.cam_figure(*rows, cams[:, 0], cams[:, :2], cams[:, :2], scale="page")
    top = f"{cams[1, :2].max():.2g}"
    assert texts(page).count(top) == 2
    assert "One scale over the page" in " ".join(texts(page)).replace("\n", " ")
    columns = {"a": cams[:, 0], "b": cams[:, 1]}
    sheets = {scale: plots.cam_sheet(samples[:2], columns, scale=scale) for scale in ("row", "page", "map")}
    tops = {"row": cams[0, :2].max(), "page": cams[1, :2].max(), "map": cams[0, 0].max()}
    query = np.asarray(Image.open(samples[0].path).resize((128, 256), Image.Resampling.BILINEAR))
    for scale, sheet in sheets.items():
        image, first, _, bar = (each.get_array() for each in sheet.axes[0].images[:4])
        assert (np.diff(bar[:, 0] @ [0.299, 0.587, 0.114])[[10, 100]] < 0).all()  # brighter upwards
        np.testing.assert_array_equal(image, query)
        np.testing.assert_array_equal(first, plots.overlay(query, cams[0, 0], tops[scale]))
    assert f"max {cams[1, 1].max():.2g}" in texts(sheets["map"])
    with pytest.raises(ValueError, match="unknown value of scale 'rows': did you mean 'row'"):
        plots.cam_sheet(samples[:2], columns, scale="rows")
    with pytest.raises(ValueError, match="choose 'row' or 'page'"):
        plots.cam_figure(*rows, cams[:, 0], cams[:, :2], cams[:, :2], scale="map")


def test_contact_sheet(samples):
    figure = plots.contact_sheet(samples, people=9, title="all")
    assert len(figure.axes[0].images) == 14
    assert len(figure.axes[0].patches) == 1  # pid 2 in camera 3
    assert [t for t in texts(figure) if t.startswith("person")] == [f"person {pid}" for pid in range(1, 6)]
    assert {f"camera {camid}" for camid in (1, 2, 3)} <= set(texts(figure))
    assert texts(plots.contact_sheet(samples, people=2, seed=1)) == texts(
        plots.contact_sheet(samples, people=2, seed=1)
    )
    with pytest.raises(ValueError, match="no person"):
        plots.contact_sheet(samples[-2:])


def test_training_curves():
    epochs = [{"epoch": e, "loss": 3 / e, "accuracy": e / 10, "lr": 1e-4, "seconds": 3} for e in range(1, 5)]
    epochs[1] |= {"mAP": 0.25, "rank10": 0.9, "market1501/rank1": 0.5}
    epochs[2] |= {"mAP": None, "loss": float("nan")}
    figure = plots.training_curves(epochs)
    lines = {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.lines}
    assert lines["mAP"] == [[2, 25]]
    assert lines["market1501/Rank-1"] == [[2, 50]]
    assert [x for x, _ in lines["loss"]] == [1, 2, 4]
    assert not {"seconds", "rank10"} & set(lines)
    assert len(plots.training_curves(epochs[:1]).axes) == 3
    accuracy = figure.axes[1]
    assert accuracy.get_title(loc="left") == "training accuracy (%)"
    assert [axes.get_ylim() for axes in figure.axes[1:3]] == [(0, 100)] * 2
    low, high = plots.training_curves(epochs, epochs=60).axes[0].get_xlim()
    assert low < 1
    assert 60 < high < 63


@pytest.mark.parametrize(
    ("score", "values", "best"),
    [
        ("mAP", [0.9, 0.5, 0.7, 0.7], "best: 70.0 % in epoch 2"),
        ("top1", [0.1, None, 0.25], "best: 25.0 % in epoch 2"),
        ("rank1", [0.1, 0.2], None),
    ],
)
def test_the_best_epoch_is_marked(score, values, best):
    """By the score that chooses it, the earlier of equals, never the untrained network."""
    found = texts(plots.training_curves([{"epoch": e, score: v} for e, v in enumerate(values)]))
    assert [text for text in found if text.startswith("best")] == ([best] if best else [])


def test_the_best_epoch_marked_is_the_one_that_is_kept():
    from reidlib.training.record import best_row

    history = [{"epoch": e, "mAP": m} for e, m in enumerate(np.random.default_rng(0).random(30).round(1))]
    assert f"in epoch {best_row(history, 'mAP')['epoch']}" in " ".join(texts(plots.training_curves(history)))


def test_pages_are_compared_on_one_axis():
    for curve in ([0.99, 1.0], [0.01, 0.02]):
        assert plots.cmc_curves({"a": curve}).axes[0].get_ylim() == (0, 100)
    with pytest.raises(ValueError, match="no loss"):
        plots.training_curves([])


def test_cmc_ap_and_camera_pairs():
    assert "a: Rank-1 62.5 %" in texts(plots.cmc_curves({"a": torch.tensor([0.625, 1.0]), "b": [0.1, 0.2]}))
    found = texts(plots.ap_histogram([0.5, np.nan, 1.0, 0.0], worst=2))
    assert "mAP 50.0 %" in found
    assert "the 2 worst (up to 50.0 %)" in found
    found = texts(plots.score_matrix(torch.tensor([[np.nan, 0.25], [0.5, np.nan]]), torch.tensor([3, 7]), [3, 7]))
    assert {"25.0", "50.0", "–", "3", "7"} <= set(found)
    with pytest.raises(ValueError, match="2 rows and 2 columns do not fit"):
        plots.score_matrix(np.zeros((2, 3)), [1, 2], [1, 2])
    with pytest.raises(ValueError, match="no query has a match"):
        plots.ap_histogram([np.nan])


def test_tsne_map_keeps_groups_together():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 15)
    feats = rng.normal(size=(6, 80))[labels] + 0.1 * rng.normal(size=(90, 80))
    points, note = plots.tsne_map(torch.from_numpy(feats), seed=1)
    assert points.shape == (90, 2)
    assert note == "90 images, 90 different features of 80 values, perplexity 29.7"
    np.testing.assert_array_equal(points, plots.tsne_map(feats, seed=1).points)
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(90, np.inf))
    assert (labels[gaps.argmin(1)] == labels).all()


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 1), (4, 8), (7, 3), (6, 200)])
def test_tsne_map_of_few_points(shape):
    points, note = plots.tsne_map(np.random.default_rng(0).normal(size=shape), perplexity=500)
    assert points.shape == (shape[0], 2)
    assert points.dtype == np.float32
    assert np.isfinite(points).all()
    assert ("drawn by PCA" in note) == (shape[0] < 4)
    plots.tsne_figure(points, [Sample("", 1, 1)] * len(points))._repr_mimebundle_()


def test_tsne_map_of_what_cannot_be_mapped():
    """In a process of its own: scikit-learn's dies of a segmentation fault where all features are the same."""
    code = """
import warnings
import numpy as np
from collections import namedtuple
from reidlib.plots import tsne_figure, tsne_map
Sample = namedtuple("Sample", "path pid camid")
warnings.simplefilter("error")
rng = np.random.default_rng(0)
same = np.tile(rng.normal(size=(1, 16)), (60, 1))
for feats in (same, 0 * same, same + 1e-7 * rng.normal(size=(60, 16)), same * rng.uniform(1, 2, (60, 1)), same[:2]):
    points, note = tsne_map(feats)
    assert points.shape == (len(feats), 2) and not points.any(), points
    print(note)
    tsne_figure(points, [Sample("", pid, 1) for pid in range(len(feats))])._repr_mimebundle_()
for count in (2, 3, 4, 7):  # copies stay together
    kinds = np.arange(60) % count
    points, note = tsne_map(rng.normal(size=(count, 16))[kinds])
    assert np.isfinite(points).all() and len(np.unique(points, axis=0)) == count, (count, points)
    print(note)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        f"all {count} features are the same: the network has collapsed, and this map shows nothing"
        for count in (60, 60, 60, 60, 2)
    ]
    assert lines[5] == "60 images, 2 different features of 16 values: too few for t-SNE, drawn by PCA"
    assert lines[8] == "60 images, 7 different features of 16 values, perplexity 2"


@pytest.mark.parametrize(
    ("feats", "message"),
    [
        ([[1.0, 2.0], [np.nan, 1.0]], "NaN or infinite in row 1"),
        ([[np.inf, 2.0], [0.0, 1.0]], "NaN or infinite in row 0"),
        (np.zeros((0, 8)), r"there is nothing to map: feats must be \(N, D\) with N above 0, not \(0, 8\)"),
    ],
)
def test_tsne_map_refuses(feats, message):
    with pytest.raises(ValueError, match=message):
        plots.tsne_map(feats)


def legend(figure):
    (found,) = (axes.get_legend() for axes in figure.axes)
    return {text.get_text(): handle for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)}


def test_tsne_figures(samples):
    points = np.random.default_rng(0).normal(size=(16, 2))
    people = [f"person {pid}" for pid in range(1, 6)]
    entries = legend(plots.tsne_figure(points, samples, title="by person"))
    assert list(entries) == [*people, "junk", "distractor"]  # the last two are grey
    assert entries["junk"].get_color() == entries["distractor"].get_color() == "#B5B5B5"
    assert list(legend(plots.tsne_figure(points, samples, count=3)))[3:] == ["2 other people", "junk", "distractor"]
    assert list(legend(plots.tsne_figure(points, samples, by="camera"))) == ["camera 1", "camera 2", "camera 3"]
    with pytest.raises(ValueError, match="unknown grouping 'pid': known: camera, person"):
        plots.tsne_figure(points, samples, by="pid")


def test_tsne_images_are_framed_by_person_and_do_not_overlap(samples):
    points = np.random.default_rng(0).normal(size=(16, 2))
    figure = plots.tsne_images(points, samples)
    boxes = np.array([image.get_extent() for image in figure.axes[0].images])
    assert len(boxes) > 8
    for i, (left, right, low, high) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[1] <= left or high <= other[2] or other[3] <= low
    shown = {image.get_array().tobytes(): image.get_extent() for image in figure.axes[0].images}
    colours = {text: handle.get_color() for text, handle in legend(figure).items()}
    frames = {(patch.get_x(), patch.get_y()): patch.get_edgecolor()[:3] for patch in figure.axes[0].patches}
    framed = 0
    for sample in samples:
        extent = shown.get(np.asarray(Image.open(sample.path)).tobytes())
        if extent:
            wanted = colours.get(f"person {sample.pid}", "#B5B5B5")
            assert frames[extent[0], extent[2]] == pytest.approx(to_rgb(wanted))
            framed += 1
    assert framed == len(boxes)
    plots.tsne_images(points[:1], samples[:1])


def test_every_label_style_is_its_own():
    from reidlib.plots.style import label_styles

    styles = label_styles(list(range(30)) * 2, 21)
    assert len(set(styles.values())) == len(styles) == 21
    values = list(styles.values())
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(values))


def test_save_and_preview(samples, tmp_path):
    figure = plots.rank_list(samples[:3] * 3, samples, [[3, 4, 5, 6, 7]] * 9, np.ones((9, 5)))
    with Image.open(plots.save(figure, tmp_path / "figures" / "a.png", dpi=50)) as image:
        assert image.size == tuple((figure.get_size_inches() * 50).astype(int))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["a.png"]
    shown, about = figure._repr_mimebundle_()
    assert list(shown) == ["image/jpeg", "text/plain"]  # images: as a JPEG, in all colours
    assert about == {
        "image/jpeg": {"width": round(100 * figure.get_figwidth()), "height": round(100 * figure.get_figheight())}
    }
    assert len(shown["image/jpeg"]) <= 250_000
    with Image.open(BytesIO(shown["image/jpeg"])) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.width >= int(100 * figure.get_figwidth())
    assert plots.save(figure, tmp_path / "b.jpg", small=True).read_bytes() == shown["image/jpeg"]


def test_lines_are_shown_sharp_and_said_in_words():
    history = [{"epoch": e, "loss": 5 / e, "triplet": 1 / e, "mAP": e / 9} for e in range(1, 4)]
    shown, _ = (figure := plots.training_curves(history, "osnet on market1501"))._repr_mimebundle_()
    assert Image.open(BytesIO(shown["image/png"])).width == pytest.approx(200 * figure.get_figwidth(), abs=1)
    words = shown["text/plain"]
    assert words.startswith("osnet on market1501. loss, over epoch, shown: loss, triplet. retrieval (%)")


def test_every_kind_of_figure_says_what_it_shows(samples):
    words = {name: draw(samples)._repr_mimebundle_()[0]["text/plain"] for name, draw in FIGURES.items()}
    assert all(text and "figure without" not in text for text in words.values()), words
    assert words["cam_figure"] == "why. 11 images"
    assert (
        words["cmc_curves"]
        == "t. queries with a match by then (%) over rank, shown: a: Rank-1 50.0 %, b: Rank-1 10.0 %"
    )


def test_vector_formats_keep_text_as_text_and_images_sharp(samples, tmp_path):
    figure = plots.rank_list(samples[:2], samples, RANKED, RANKED / 20, title="a $name$ with_signs")
    pdf = plots.save(figure, tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    assert pdf.count(b"/Width 32") == pdf.count(b"/Height 64") == 2 + 5  # each image with its own pixels
    svg = plots.save(figure, tmp_path / "a.svg").read_text()
    assert ">a $name$ with_signs<" in svg
    assert svg.count("<image ") == 2 + 5
    assert {image.get_interpolation() for image in figure.axes[0].images} == {"auto"}  # as it was


# One line for each plot function that gives a figure.
FIGURES = {
    "pair_similarities": lambda samples: plots.pair_similarities([-1, 0, 1], [1, 5], [9, 2], {0.1: 0.5}, title="t"),
    "ap_scatter": lambda samples: plots.ap_scatter([0.5, np.nan, 1.0], [0.6, 0.1, 1.0], ("a", "b"), title="t"),
    "ap_histogram": lambda samples: plots.ap_histogram([0.5, np.nan, 1.0, 0.0]),
    "batch_sheet": lambda samples: plots.batch_sheet(np.zeros((3, 3, 8, 4), np.uint8), ["a", "b", "c"], note="note"),
    "cam_figure": lambda samples: plots.cam_figure(
        samples[:2], samples, RANKED, RANKED / 20, *(np.ones((2, *k, 4, 2)) for k in ((), (3,), (3,))), title="why"
    ),
    "cam_sheet": lambda samples: plots.cam_sheet(
        samples[:2], {"a": np.ones((2, 4, 2)), "b": np.zeros((2, 4, 2))}, captions={"b": ["x", "y"]}, scale="map"
    ),
    "class_sheet": lambda samples: plots.class_sheet(samples[:5], ["no", "a", "b", "c", "d", "e"]),
    "cmc_curves": lambda samples: plots.cmc_curves({"a": [0.5, 1], "b": [0.1, 0.2]}, title="t"),
    "contact_sheet": lambda samples: plots.contact_sheet(samples),
    "cost_accuracy": lambda samples: plots.cost_accuracy({"G": [1.0]}, {"G": [True]}, [50.0], ["a"], ["x"]),
    "found_images": lambda samples: plots.found_images(
        [samples[0].path], [[(samples[1].path, 0.9), (samples[2].path, 0.1)]], title="t", threshold=0.5
    ),
    "group_sheet": lambda samples: plots.group_sheet([[s.path for s in samples[:3]], [samples[3].path]], title="t"),
    "image_counts": lambda samples: plots.image_counts(
        {"a": ([[1, 0], [1, 1]], [3, 4], [1, 2]), "b": ([[1]], [3], [2])}
    ),
    "image_sizes": lambda samples: plots.image_sizes([(128, 64)]),
    "learning_curves": lambda samples: plots.learning_curves({"a": [{"epoch": 1, "mAP": 0.5}], "b": []}, title="t"),
    "pair_sheet": lambda samples: plots.pair_sheet([(samples[0], samples[1], "0.9")]),
    "rank_list": lambda samples: plots.rank_list(samples[:2], samples, RANKED, RANKED / 20, title="long " * 40),
    "row_sheet": lambda samples: plots.row_sheet([samples[:2], samples[2:3]], ["a", "b"], [["x", "y"], ["z"]], "t"),
    "score_matrix": lambda samples: plots.score_matrix([[0.5, np.nan]], ["a"], ["c", "d"], "t", ("x", "y")),
    "score_spread": lambda samples: plots.score_spread({"mAP": {"lr 1": [0.1, 0.2], "lr 2": [0.3]}}, title="t"),
    "training_curves": lambda samples: plots.training_curves([{"loss": 1.0, "mAP": 0.5}], title="long " * 60),
    "tsne_figure": lambda samples: plots.tsne_figure(np.eye(2), samples[:2], title="t"),
    "tsne_images": lambda samples: plots.tsne_images(np.eye(2), samples[:2]),
}
OTHERS = {
    *(
        "cam_correlation",
        "cam_note",
        "camera_name",
        "feature_cam",
        "overlay",
        "person_name",
        "rank_list_rows",
        "save",
        "similarity_cam",
    ),
    "tsne_map",
}


def test_every_public_plot_is_in_the_table():
    assert set(plots.__all__) == set(FIGURES) | OTHERS


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_warns_of_nothing_and_leaves_nothing_open(name, samples):
    import matplotlib
    from matplotlib import pyplot

    matplotlib.rcParams["font.size"] = 17
    before = dict(matplotlib.rcParams.copy())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure = FIGURES[name](samples)
            kind, shown = next(iter(figure._repr_mimebundle_()[0].items()))
        assert dict(matplotlib.rcParams.copy()) == before
    finally:
        matplotlib.rcParams["font.size"] = 10
    assert pyplot.get_fignums() == []
    assert kind in ("image/png", "image/jpeg")
    assert Image.open(BytesIO(shown)).width == pytest.approx(200 * figure.get_figwidth(), abs=1)
    assert max(text.get_size() for text in figure.findobj(Text)) < 13  # the user's setting did not leak in
    gc.collect()
    gc.freeze()  # what is older is not gone through: collecting it all takes a second
    try:
        figure = FIGURES[name](samples)
        drawn = weakref.ref(figure)
        figure = FIGURES[name](samples)  # seaborn may keep the last one
        for _ in range(2):  # what the finalizers of the first collection held is freed by the second
            gc.collect()
        assert drawn() is None, "something keeps the figure"
    finally:
        gc.unfreeze()


def luminance(colours, deuteranopia=False):
    """Relative luminance (WCAG) of sRGB colours (N, 3); as seen without green cones (Machado et al., 2009)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    if deuteranopia:
        simulated = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
        linear = (linear @ np.transpose(simulated)).clip(0, 1)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_right_and_wrong_differ_for_every_eye():
    """In greyscale and with deuteranopia, from each other and from the white page (WCAG: 3 to 1 for graphics)."""
    from reidlib.plots.style import VERDICTS

    colours = np.array([to_rgb(VERDICTS[verdict][0]) for verdict in (True, False)])
    for deuteranopia in (False, True):
        right, wrong = luminance(colours, deuteranopia)
        assert (wrong + 0.05) / (right + 0.05) > 2
        assert 1.05 / (max(right, wrong) + 0.05) > 3
    assert len({VERDICTS[verdict][1] for verdict in VERDICTS}) == len({v[2] for v in VERDICTS.values()}) == 3


def bars(figure):
    return [mesh.colorbar for axes in figure.axes for mesh in axes.collections if getattr(mesh, "colorbar", None)]


@pytest.mark.parametrize("name", ["score_matrix", "image_counts", "image_sizes"])
def test_heat_maps_have_a_bar_and_an_even_lightness(name, samples):
    """Legible in greyscale and with deuteranopia: lightness alone orders the values, and tells them from no value."""
    (bar,) = bars(FIGURES[name](samples))
    assert bar.ax.get_ylabel()
    colours = bar.cmap(np.linspace(0, 1, 32))[:, :3]
    for deuteranopia in (False, True):
        light = luminance(colours, deuteranopia)
        steps = np.diff(light) * np.sign(light[-1] - light[0])
        assert (steps > 0).all()
        assert abs(light[-1] - light[0]) > 0.4
        if name != "score_matrix":  # an empty cell is white
            assert 1.05 / (light.max() + 0.05) > 1.6


def test_scores_are_legible_in_their_cells_on_a_fixed_scale():
    for matrix in ([[0.0, 0.25, 0.5, 0.75, 1.0, np.nan]], [[0.31, 0.32, 0.33, 0.34, 0.35, np.nan]]):
        figure = plots.score_matrix(matrix, ["a"], list("bcdefg"))
        (bar,) = bars(figure)
        assert (bar.vmin, bar.vmax) == (0, 100)
        cells = bar.cmap(bar.norm(100 * np.array(matrix[0][:5])))[:, :3]
        inks = {text.get_text(): to_rgb(text.get_color()) for text in figure.axes[0].texts}
        assert list(inks) == [*(f"{100 * x:.1f}" for x in matrix[0][:5]), "–"]
        for cell, ink in zip(luminance(cells), luminance(np.array(list(inks.values())[:5])), strict=True):
            assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 4.5  # WCAG AA


def test_the_spread_shows_every_run_its_mean_and_its_deviation():
    runs = {"lr 1": [0.10, 0.11, 0.15], "lr 2": [0.2]}
    axes = plots.score_spread({"rank1": runs}).axes[0]
    assert axes.get_title(loc="left") == "Rank-1 (%)"
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [(10, 0), (11, 0), (15, 0), (20, 1)])
    (means,) = (line.get_xdata() for line in axes.lines if line.get_marker() == "D")
    assert means == pytest.approx([12, 20])
    deviation = np.std([10, 11, 15], ddof=1)
    (bars,) = (c.get_segments() for c in axes.collections if isinstance(c, LineCollection))
    assert bars[0][:, 0] == pytest.approx([12 - deviation, 12 + deviation])
    assert not bars[1].size  # a single run has no deviation


def test_nothing_is_left_behind():
    """In a process of its own: no pyplot, no backend, no changed setting; and importing the room is cheap."""
    code = """
import sys
from reidlib import plots
assert not {"matplotlib", "torch", "sklearn", "PIL"} & set(sys.modules), "heavy import"
import matplotlib
matplotlib.rcParams["font.size"] = 17
before = dict(matplotlib.rcParams.copy())
figure = plots.cmc_curves({"a": [0.5, 1]})
figure._repr_mimebundle_()
assert dict(matplotlib.rcParams.copy()) == before
assert figure.axes[0].xaxis.label.get_size() < 12, "the user's setting leaked in"
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Names and lengths

LONG = "agw_R50_ibn_fastreid on market1501+msmt17-combineall"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A CSV dataset whose people and cameras are text, with a distractor and junk in its gallery."""
    from reidlib.data.tables import read_table

    root, rng = tmp_path_factory.mktemp("named"), np.random.default_rng(0)
    people, cameras, rows = ("anna13", "bruno", "王小明"), ("door", "lift"), ["path,pid,camid,split"]
    wanted = [(pid, camid, split) for split in ("train", "query", "gallery") for pid in people for camid in cameras]
    for i, (pid, camid, split) in enumerate([*wanted, ("distractor", "door", "gallery"), ("junk", "lift", "gallery")]):
        Image.fromarray(rng.integers(0, 255, (64, 32, 3), np.uint8)).save(root / f"{i}.png")
        rows.append(f"{i}.png,{pid},{camid},{split}")
    (root / "own.csv").write_text("\n".join(rows), encoding="utf-8")
    return read_table("own", root / "own.csv", "test")


def every_figure_of(data):
    """Figure or table → what it shows of `data`, with all that its people and cameras are called."""
    from reidlib.data import check

    queries, gallery = list(data.query[:2]), data.gallery
    ranked = np.tile(np.arange(len(gallery)), (2, 1))
    maps = [np.ones((2, *k, 4, 2)) for k in ((), (len(gallery),), (len(gallery),))]
    points = np.random.default_rng(0).normal(size=(len(gallery), 2))
    cameras = [plots.camera_name(camid, data) for camid in sorted(data.cameras)]
    pairs = [(gallery[i], gallery[i - 1], "0.99") for i in range(len(gallery))]
    tables = {name: check.people_by_camera(split) for name, split in data.splits.items()}
    rows = plots.rank_list_rows(queries, gallery, ranked, ranked / 9, dataset=data)
    return {
        "rank list": texts(plots.rank_list(queries, gallery, ranked, ranked / 9, title=LONG, dataset=data)),
        "rows": [str(row[key]) for row in rows for key in ("query_pid", "query_camid", "pid", "camid")],
        "Grad-CAM": texts(plots.cam_figure(queries, gallery, ranked, ranked / 9, *maps, title=LONG, dataset=data)),
        "contact sheet": texts(plots.contact_sheet(data.train, title=LONG, dataset=data)),
        "pair sheet": texts(plots.pair_sheet(pairs, title=LONG, dataset=data)),
        "t-SNE by person": texts(plots.tsne_figure(points, gallery, title=LONG, dataset=data)),
        "t-SNE by camera": texts(plots.tsne_figure(points, gallery, by="camera", dataset=data)),
        "t-SNE images": texts(plots.tsne_images(points, gallery, title=LONG, dataset=data)),
        "camera pairs": texts(plots.score_matrix(np.ones((2, 2)), cameras, cameras, LONG)),
        "passport": texts(plots.image_counts(tables, title=LONG, dataset=data)),
    }


@pytest.mark.filterwarnings("ignore:Glyph")  # of a name that no font here has
def test_people_and_cameras_have_the_names_of_the_users_own_table(named):
    people, cameras, nobody = {"anna13", "bruno", "王小明"}, {"door", "lift"}, {"distractor", "junk"}
    shown = {
        **dict.fromkeys(("rank list", "rows", "Grad-CAM", "pair sheet"), people | cameras | nobody),
        **dict.fromkeys(("contact sheet", "passport"), people | cameras),
        **dict.fromkeys(("t-SNE by person", "t-SNE images"), people | nobody),
        **dict.fromkeys(("t-SNE by camera", "camera pairs"), cameras),
    }
    for figure, found in every_figure_of(named).items():
        words = {word for text in found for word in text.replace(" · ", "\n").split("\n")}
        assert shown[figure] <= words, figure
        internal = {f"{prefix}{i}" for i in (-1, 0, 1, 2, 3) for prefix in ("person ", "camera ", "pid ", "c", "cam ")}
        assert not internal & words, figure
        assert not {"-1", "0"} & (words - ({"0"} if figure == "Grad-CAM" else set())), figure  # 0 of its colour bar


def assert_nothing_leaves(figure):
    """What is drawn lies inside the figure, but for half a line's width."""
    figure.canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    legends = [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
    drawn = Bbox.union([figure.get_tightbbox().transformed(figure.dpi_scale_trans), *legends])
    assert drawn.x0 > -2
    assert drawn.y0 > -2
    assert drawn.x1 < figure.bbox.x1 + 2
    assert drawn.y1 < figure.bbox.y1 + 2


@pytest.mark.parametrize(
    "title", [LONG, f"{LONG}: what is asked of this figure, in more words than any page is wide " * 2]
)
def test_titles_stay_on_one_line_inside_the_figure(samples, title):
    points, counts = np.random.default_rng(0).normal(size=(16, 2)), {"train": ([[3, 0], [1, 2]], [3, 4], [1, 2])}
    epochs = [{"epoch": e, "loss": 1.0, "mAP": 0.5, f"{LONG}/mAP": 0.2, "accuracy": 1.0, "lr": 1} for e in range(3)]
    figures = [
        plots.ap_histogram([0.5, 1.0], title=title),
        plots.cmc_curves({LONG: [0.5, 1], LONG * 3: [0.1, 0.2]}, title=title),
        plots.contact_sheet(samples, title=title),
        plots.cost_accuracy({"G": [1.0]}, {"G": [True]}, [50.0], ["a"], ["x"], title),
        plots.image_counts(counts, title=title),
        plots.image_sizes([(128, 64)], title=title),
        plots.pair_sheet([(samples[0], samples[1], "0.9")], title=title),
        plots.rank_list(samples[:1], samples, RANKED[:1], RANKED[:1], title=title),
        plots.score_matrix([[0.5]], [LONG], [LONG], title),
        plots.training_curves(epochs, title=title),
        plots.tsne_figure(points, samples, title=title),
    ]
    for figure in figures:
        (shown,) = [text for text in texts(figure) if text.startswith("agw_R50_ibn") and text.endswith(title[-8:])][:1]
        assert "\n" not in shown
        assert_nothing_leaves(figure)
        assert figure.get_figwidth() < 10.81


def test_captions_of_twenty_matches_can_be_read_on_a_page(samples):
    from reidlib.plots.style import PAGE

    ranked = np.tile(np.arange(20) % 16, (2, 1))
    figure = plots.rank_list(samples[:1] * 2, samples, ranked, ranked / 20, ap=[0.5] * 2, title=LONG)
    assert figure.get_figwidth() < PAGE + 0.01
    captions = [
        text
        for text in figure.axes[0].texts
        if text.get_text()[:2] in ("✓ ", "✗ ", "⊘ ") or text.get_text() == "distractor"
    ]
    assert len(captions) == 1 + 2 * (20 + 1)  # the note, and in each row a distractor
    assert min(text.get_size() for text in figure.axes[0].texts) >= 7
    assert "dist…" not in " ".join(texts(figure))
    assert_nothing_leaves(figure)
