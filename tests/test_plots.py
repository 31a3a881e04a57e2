"""The figures say what they should and leave nothing behind; a CAM is the gradient that it claims to be."""

import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from reidlib import plots

Sample = namedtuple("Sample", "path pid camid")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Five people in three cameras, one unseen in camera 3, and a junk and a distractor picture at the end."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
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


def images(count, seed=0):
    return torch.rand(count, 3, 32, 16, generator=torch.Generator().manual_seed(seed))


def model(**kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny(**kwargs)


def explicit_cam(net, pictures, directions):
    """Grad-CAM by the book: mean gradient as weights, rectified sum, scaled to [0, 1] before it is enlarged."""
    net = net.eval()
    maps = net.cam_layer(pictures * 2 - 1).detach().requires_grad_()
    (net.neck(maps.mean((2, 3))) * directions).sum().backward(inputs=[maps])
    cam = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()
    cam = cam - cam.amin((1, 2), keepdim=True)
    cam = cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)
    cam = nn.functional.interpolate(cam[:, None], size=pictures.shape[2:], mode="bilinear")[:, 0]
    cam = cam - cam.amin((1, 2), keepdim=True)
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM"])
def test_similarity_cam_is_the_gradient_towards_the_partner(method):
    """Both ways: they are one after average pooling."""
    net, query, gallery = model(), images(5, 1), images(5, 2)
    got = plots.similarity_cam(net, query, gallery, method=method, batch_size=2)
    with torch.no_grad():
        to_gallery, to_query = normalize(net.eval()(gallery)), normalize(net(query))
    for cam, pictures, directions in zip(got, (query, gallery), (to_gallery, to_query), strict=True):
        want = explicit_cam(net, pictures, directions)
        assert cam.shape == (5, 32, 16)
        assert cam.dtype == torch.float32
        assert want.amax() > 0.99
        torch.testing.assert_close(cam, want, atol=2e-4, rtol=0)


def test_contributions_add_up_to_the_cosine():
    """What holding the norm fixed means: with average pooling and no bias the weights times maps sum to the cosine."""
    net, query, gallery = model().eval(), images(3, 1), images(3, 2)
    maps = net.cam_layer(query * 2 - 1).detach().requires_grad_()
    feats = net.neck(maps.mean((2, 3)))
    cosine = (feats / feats.norm(dim=1, keepdim=True).detach() * normalize(net(gallery)).detach()).sum(1)
    (grad,) = torch.autograd.grad(cosine.sum(), maps)
    torch.testing.assert_close((grad * maps).sum((1, 2, 3)), cosine)


def test_cam_shows_the_half_that_the_feature_sees():
    net = model(left=True)
    for cam in (plots.feature_cam(net, images(4)), *plots.similarity_cam(net, images(4), images(4, 1))):
        assert cam[..., :8].sum() > 0.8 * cam.sum() > 0
        assert not cam[..., 10:].any()  # past the blur of enlarging
    assert plots.feature_cam(net, images(4), method="GradCAM")[..., 10:].any()  # why it is not the default


def test_a_picture_with_itself_has_the_cam_of_its_feature():
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


def test_cam_without_contrast_is_zero():
    net = model()
    nn.init.zeros_(net.neck.weight)
    assert not plots.feature_cam(net, images(2)).any()
    assert not plots.similarity_cam(net, images(2), images(2, 1))[1].any()


def test_cam_of_a_similarity_that_rests_on_an_offset():
    """Every place speaks against, the bias for: the places that speak least against are shown, not a blank."""
    net, pictures = model().eval(), images(3)
    net.neck = nn.Linear(8, 1)
    nn.init.constant_(net.neck.weight, -1)
    nn.init.constant_(net.neck.bias, 20)
    with torch.no_grad():
        against = net.cam_layer(pictures * 2 - 1).sum(1)
        low, high = against.amin((1, 2), keepdim=True), against.amax((1, 2), keepdim=True)
        want = nn.functional.interpolate(((high - against) / (high - low))[:, None], size=(32, 16), mode="bilinear")
    for cam in (plots.feature_cam(net, pictures), *plots.similarity_cam(net, pictures, pictures.flip(0))):
        assert cam.amax() > 0.9
    got = plots.feature_cam(net, pictures)
    want = want[:, 0] - want[:, 0].amin((1, 2), keepdim=True)
    torch.testing.assert_close(got, want / want.amax((1, 2), keepdim=True), atol=1e-4, rtol=0)


def test_cam_errors():
    with pytest.raises(ValueError, match="Linear has no cam_layer"):
        plots.feature_cam(nn.Linear(2, 2), images(1))
    with pytest.raises(ValueError, match="unknown CAM method 'GradCam': did you mean 'GradCAM'"):
        plots.feature_cam(model(), images(1), method="GradCam")
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 16\), \(1, 3, 32, 16\)"):
        plots.similarity_cam(model(), images(2), images(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cam_on_gpu():
    want = plots.similarity_cam(model(), images(3), images(3, 1))
    got = plots.similarity_cam(model().cuda(), images(3).cuda(), images(3, 1).cuda())
    for one, other in zip(want, got, strict=True):
        assert other.is_cuda
        torch.testing.assert_close(one, other.cpu(), atol=1e-3, rtol=0)


def test_overlay_lights_up_where_the_map_is_high():
    picture, cam = np.full((40, 20, 3), 90, np.uint8), np.zeros((4, 2), np.float32)
    cam[0, 0] = 1
    laid = plots.overlay(picture, torch.from_numpy(cam))
    assert laid.shape == picture.shape
    assert laid.dtype == np.uint8
    assert laid[0, 0].mean() > laid[-1, -1].mean() + 50


RANKED = np.array([[1, 4, 14], [0, 15, -1]])


def test_rank_list_rows(samples):
    queries = [samples[0], samples[4]]  # pid 1 in camera 1, pid 2 in camera 2
    rows = plots.rank_list_rows(queries, samples, torch.from_numpy(RANKED), RANKED / 20, ap=[0.5, np.nan])
    assert [row["right"] for row in rows] == [True, False, None, False, False]
    assert [row["rank"] for row in rows] == [1, 2, 3, 1, 2]
    assert rows[0]["path"] == str(samples[1].path)
    assert rows[1]["similarity"] == pytest.approx(0.2)
    own = plots.rank_list_rows([samples[0]], samples, [[0]], [[1.0]])
    assert own[0]["right"] is None  # the query's own person in its own camera


def test_rank_list_says_it_in_words_and_lines(samples):
    figure = plots.rank_list([samples[0], samples[4]], samples, RANKED, RANKED / 20, ap=[0.5, np.nan], title="2 chosen")
    said = texts(figure)
    for text in ("2 chosen", "AP 50 %", "no match", "✓ 0.05", "✗ 0.20", "⊘ 0.70", "1 · c2"):
        assert text in said
    assert len(figure.axes[0].images) == 2 + 5
    looks = {(str(patch.get_linestyle()), patch.get_edgecolor()) for patch in figure.axes[0].patches}
    assert len(looks) == len({style for style, _ in looks}) == len({colour for _, colour in looks}) == 3


def test_rank_list_errors(samples, tmp_path):
    with pytest.raises(ValueError, match=r"1 queries need ranked and similarity of shape \(1, k\)"):
        plots.rank_list(samples[:1], samples, RANKED, RANKED)
    with pytest.raises(ValueError, match="gallery item 15, but the gallery has 2"):
        plots.rank_list_rows(samples[:2], samples[:2], RANKED, RANKED)
    bad = Sample(tmp_path / "bad.jpg", 1, 1)
    bad.path.write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot read image .*bad\.jpg: the file is empty"):
        plots.rank_list([bad], samples, [[0]], [[1.0]])


def test_cam_figure(samples):
    cams = np.random.default_rng(0).random((2, 3, 32, 16), np.float32)
    figure = plots.cam_figure(
        [samples[0], samples[4]], samples, RANKED, RANKED / 20, cams[:, 0], cams, cams, title="why"
    )
    assert len(figure.axes[0].images) == 2 * 2 + 5
    assert "✓ 0.05  1 · c2" in texts(figure)


def test_contact_sheet(samples):
    figure = plots.contact_sheet(samples, people=9, title="all")
    assert len(figure.axes[0].images) == 14
    assert len(figure.axes[0].patches) == 1  # pid 2 in camera 3
    assert [t for t in texts(figure) if t.startswith("pid")] == [f"pid {pid}" for pid in range(1, 6)]
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
    assert lines["market1501/rank1"] == [[2, 50]]
    assert [x for x, _ in lines["loss"]] == [1, 2, 4]
    assert not {"seconds", "rank10"} & set(lines)
    assert len(plots.training_curves(epochs[:1]).axes) == 3
    with pytest.raises(ValueError, match="no loss"):
        plots.training_curves([])


def test_cmc_ap_and_camera_pairs():
    assert "a: Rank-1 62.5 %" in texts(plots.cmc_curves({"a": torch.tensor([0.625, 1.0]), "b": [0.1, 0.2]}))
    said = texts(plots.ap_histogram([0.5, np.nan, 1.0, 0.0], worst=2))
    assert "mAP 50.0 %" in said
    assert "the 2 worst (up to 50.0 %)" in said
    said = texts(plots.score_matrix(torch.tensor([[np.nan, 0.25], [0.5, np.nan]]), torch.tensor([3, 7]), [3, 7]))
    assert {"25.0", "50.0", "–", "3", "7"} <= set(said)
    with pytest.raises(ValueError, match="2 rows and 2 columns do not fit"):
        plots.score_matrix(np.zeros((2, 3)), [1, 2], [1, 2])
    with pytest.raises(ValueError, match="no query has a match"):
        plots.ap_histogram([np.nan])


def test_tsne_map_keeps_groups_together():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 15)
    feats = rng.normal(size=(6, 80))[labels] + 0.1 * rng.normal(size=(90, 80))
    points = plots.tsne_map(torch.from_numpy(feats), seed=1)
    assert points.shape == (90, 2)
    np.testing.assert_array_equal(points, plots.tsne_map(feats, seed=1))
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(90, np.inf))
    assert (labels[gaps.argmin(1)] == labels).all()


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 1), (4, 8), (7, 3), (6, 200)])
def test_tsne_map_of_few_points(shape):
    points = plots.tsne_map(np.random.default_rng(0).normal(size=shape), perplexity=500)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


def test_tsne_figures(samples):
    points = np.random.default_rng(0).normal(size=(16, 2))
    pids = [sample.pid for sample in samples]
    said = texts(plots.tsne_figure(points, pids, title="by identity", grey=(-1, 0)))
    assert [t for t in said if t.startswith(("pid", "others"))] == [*(f"pid {pid}" for pid in range(1, 6)), "others"]
    figure = plots.tsne_images(points, [sample.path for sample in samples])
    boxes = np.array([image.get_extent() for image in figure.axes[0].images])
    assert len(boxes) > 8
    for i, (left, right, low, high) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[1] <= left or high <= other[2] or other[3] <= low
    plots.tsne_images(points[:1], [samples[0].path])
    with pytest.raises(ValueError, match="row 1"):
        plots.tsne_map([[1.0, 2.0], [np.nan, 1.0]])


def test_every_look_is_its_own():
    from reidlib.plots.style import label_styles

    known = label_styles(list(range(30)) * 2, 21)
    assert len(set(known.values())) == len(known) == 21
    values = list(known.values())
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(values))


def test_save_and_preview(samples, tmp_path):
    figure = plots.rank_list(samples[:3] * 3, samples, [[3, 4, 5, 6, 7]] * 9, np.ones((9, 5)))
    with Image.open(plots.save(figure, tmp_path / "figures" / "a.png", dpi=50)) as picture:
        assert picture.size == tuple((figure.get_size_inches() * 50).astype(int))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["a.png"]
    plots.save(figure, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    shown = figure._repr_mimebundle_()
    assert list(shown) == ["image/png"]
    assert len(shown["image/png"]) <= 300_000
    assert Image.open(BytesIO(shown["image/png"])).width >= int(60 * figure.get_figwidth())
    assert plots.save(figure, tmp_path / "b.png", small=True).read_bytes() == shown["image/png"]


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
