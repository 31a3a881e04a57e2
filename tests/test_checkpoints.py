"""Loading weights: rename rules, wrappers, strictness, and files that are not what they seem.

Files that `tests/fuzz/test_checkpoints.py` found are kept here as plain cases.
"""

import io
import json
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from golden import draw_state, read_fixtures
from safetensors.torch import save_file

from reidlib.models import CheckpointError, create_model, load_checkpoint, weight_files
from reidlib.models.checkpoints import RENAMES, Drop, read_state_dict, rename

FIXTURE = read_fixtures()["osnet_x0_25"]


@pytest.fixture
def state():
    """An upstream state dict of osnet_x0_25 with 751 classes."""
    return draw_state(FIXTURE)


@pytest.fixture
def model():
    return create_model("osnet_x0_25", num_classes=751).eval()


def weights(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


# Rules


@pytest.mark.parametrize(
    ("family", "upstream", "ours"),
    [
        ("torchreid", "conv1.conv.weight", "network.backbone.conv1.conv.weight"),
        ("torchreid", "conv2.0.conv2a.conv1.weight", "network.backbone.conv2.0.streams.0.0.conv1.weight"),
        ("torchreid", "conv3.1.conv2d.3.bn.bias", "network.backbone.conv3.1.streams.3.3.bn.bias"),
        ("torchreid", "conv2.2.0.conv.weight", "network.backbone.conv2.2.0.conv.weight"),
        ("torchreid", "conv4.1.conv2.3.layers.2.bn.weight", "network.backbone.conv4.1.streams.3.2.bn.weight"),
        ("torchreid", "pool3.0.bn.running_var", "network.backbone.conv3.2.0.bn.running_var"),
        ("torchreid", "layer4.0.conv2.weight", "network.backbone.layer4.0.conv2.weight"),
        ("torchreid", "fc.0.weight", "network.head.embedding.0.weight"),
        ("torchreid", "classifier.bias", "network.head.classifier.bias"),
        ("torchreid", "fc.weight", Drop("the library's ImageNet classifier")),
        ("torchreid", "last_linear.bias", Drop("the library's ImageNet classifier")),
        ("torchreid", "fc_fusion.0.weight", "network.head.embedding.0.weight"),
        ("torchreid", "fc_s.1.bias", "network.head.embeddings.1.1.bias"),
        ("torchreid", "fc_local.0.weight", "network.heads.1.embedding.0.weight"),
        ("torchreid", "classifier_global.bias", "network.heads.0.classifier.bias"),
        ("torchreid", "cell_stem_1.path_1.conv.weight", "network.backbone.cells.cell_stem_1.path_1.conv.weight"),
        ("torchreid", "conv2.0.conv1.conv.weight", "network.backbone.conv2.0.conv1.conv.weight"),  # MobileNetV2
        (
            "torchreid",
            "features.denseblock1.denselayer2.norm.1.weight",
            "network.backbone.features.denseblock1.denselayer2.norm1.weight",
        ),
        ("torchreid-2018", "base.5.0.downsample.1.bias", "network.backbone.layer2.0.downsample.1.bias"),
        ("torchreid-2018", "layers2.1.2.conv1.weight", "network.backbone.layer1.2.conv1.weight"),
        ("torchreid-2018", "layers5b.bn3.bias", "network.backbone.layer4.1.bn3.bias"),
        ("torchreid-2018", "base.norm5.weight", "network.backbone.features.norm5.weight"),
        ("torchreid-2018", "block8.conv3.0.weight", "network.backbone.conv8.0.conv3.0.weight"),
        ("torchreid-2018", "block4.2.conv1.bn.bias", "network.backbone.conv4.2.conv1.bn.bias"),
        ("torchreid-2018", "fire2.expand.conv11.bn.bias", "network.backbone.fire2.conv11.bn.bias"),
        ("torchreid-2018", "conv10.weight", "network.head.scores.weight"),
        ("reid-strong-baseline", "base.layer0.conv1.weight", "network.backbone.layer0.conv1.weight"),
        ("reid-strong-baseline", "base.fc.bias", Drop("the library's ImageNet classifier")),
        ("AGW", "base.NL_3.2.W.1.bias", "network.backbone.layer3.non_local2.W.1.bias"),
        ("AGW", "global_pool.p", "network.head.pool.p"),
        ("fast-reid", "heads.weight", "network.head.classifier.weight"),
        ("fast-reid", "heads.bottleneck.0.bias", "network.head.neck.bias"),
        ("fast-reid", "backbone.layer2.1.se.fc.2.weight", "network.backbone.layer2.1.se.fc2.weight"),
        ("fast-reid", "backbone.conv2.0.conv2d.1.bn.bias", "network.backbone.conv2.0.streams.3.1.bn.bias"),
        ("fast-reid", "backbone.repeat.0.conv2d.bias", "network.backbone.repeat.0.conv2d.bias"),  # Inception-ResNet
        ("fast-reid", "backbone.6.downsample.0.weight", "network.backbone.common.6.downsample.0.weight"),  # MGN
        ("fast-reid", "b3.1.0.conv1.weight", "network.backbone.branches.b3.1.0.conv1.weight"),
        ("fast-reid", "b21_head.bottleneck.0.weight", "network.heads.3.embedding.weight"),
        ("fast-reid", "b33_head.weight", "network.heads.7.classifier.weight"),
        ("APNet", "base_4.0.5.bn1.bias", "network.backbone.layer3.5.bn1.bias"),
        ("APNet", "BN1.bottleneck2.weight", "network.backbone.attention0.norm.weight"),
        ("APNet", "att_s5.fc1.bias", "network.backbone.attention4.split.fc1.bias"),
        ("APNet", "att2.fc.0.weight", "network.backbone.attention1.se.fc1.weight"),
        ("ABD-Net", "common_branch.shallow_cam._cam_module.gamma", "network.backbone.attention.gamma"),
        ("ABD-Net", "branches.1.1.pam_module.attention_module.gamma", "network.heads.1.streams.pam.1.gamma"),
        ("ABD-Net, branches swapped", "branches.0.1.sum_conv.1.bias", "network.heads.1.merge.1.bias"),
        ("TransReID", "base.blocks.11.mlp.fc2.bias", "network.last.0.0.mlp.fc2.bias"),
        ("TransReID with JPM", "base.norm.weight", Drop("upstream runs its copies b1 and b2 instead")),
        ("TransReID with JPM", "b2.1.weight", "network.last.1.1.weight"),
        ("TransReID with JPM", "bottleneck_4.running_var", "network.heads.4.neck.running_var"),
    ],
)
def test_rename_rules(family, upstream, ours):
    assert rename(upstream, RENAMES[family]) == ours


def test_torchvision_imagenet_weights_load_without_their_classifier():
    model = create_model("resnet50", num_classes=10)
    trunk = {key.removeprefix("network.backbone."): t for key, t in model.state_dict().items() if "backbone" in key}
    report = load_checkpoint(model, trunk | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert report.missing == ("network.head.classifier.weight", "network.head.classifier.bias")


def test_a_trunk_that_is_in_the_file_twice_comes_from_the_later_entries():
    fixture = read_fixtures()["resnet50_ap"]
    state = draw_state(fixture)
    state["base.conv1.weight"] = torch.zeros_like(state["base.conv1.weight"])
    model = create_model("resnet50_ap", num_classes=751)
    report = load_checkpoint(model, state)
    assert set(report.dropped) == set(fixture["aliases"].values())
    assert "base_1.0.weight is the same tensor" in report.dropped["base.conv1.weight"]
    assert torch.equal(model.network.backbone.conv1.weight, state["base_1.0.weight"])
    once = {key: tensor for key, tensor in state.items() if key not in fixture["aliases"]}
    assert load_checkpoint(model, once).dropped == {}
    assert not model.network.backbone.conv1.weight.any()
    del state["base_5.0.2.bn3.bias"], state["base.layer4.2.bn3.bias"]
    with pytest.raises(CheckpointError, match=r"layer4\.2\.bn3\.bias is missing"):
        load_checkpoint(model, state)


def test_branches_are_told_apart_by_what_is_in_them():
    state = draw_state(read_fixtures()["densenet121_abd"])
    swap = {"branches.0.": "branches.1.", "branches.1.": "branches.0."}
    swapped = {swap.get(key[:11], key[:11]) + key[11:]: tensor for key, tensor in state.items()}
    model, other = (create_model("densenet121_abd", num_classes=751) for _ in range(2))
    assert load_checkpoint(model, state).missing == load_checkpoint(other, swapped).missing == ()
    assert same(model.state_dict(), other.state_dict())


def test_a_linear_layer_on_channels_is_a_1x1_convolution():
    state = draw_state(read_fixtures()["bagtricks_SeR50_fastreid"])
    model = create_model("bagtricks_SeR50_fastreid", num_classes=751)
    load_checkpoint(model, state)
    fc = model.network.backbone.layer1[0].se.fc1.weight
    assert torch.equal(fc[:, :, 0, 0], state["backbone.layer1.0.se.fc.0.weight"])
    state["backbone.layer1.0.se.fc.0.weight"] = state["backbone.layer1.0.se.fc.0.weight"].T
    with pytest.raises(CheckpointError, match=r"se\.fc\.0\.weight is \(256, 16\), \(16, 256, 1, 1\) in the model"):
        load_checkpoint(model, state)


def test_an_embedding_is_never_taken_for_a_classifier(state, model):
    del state["fc.0.weight"]
    with pytest.raises(CheckpointError, match=r"network\.head\.embedding\.0\.weight is missing"):
        load_checkpoint(model, state)


def test_scores_of_another_size_are_an_error_as_they_are_the_feature():
    model = create_model("v2018_SqueezeNet", num_classes=7)
    with pytest.raises(CheckpointError, match=r"head\.scores\.weight is \(9, 512, 1, 1\), \(7, 512, 1, 1\)"):
        load_checkpoint(model, create_model("v2018_SqueezeNet", num_classes=9).state_dict())


def test_networks_that_are_the_same_are_all_named():
    hacnn = create_model("hacnn").state_dict()
    with pytest.raises(CheckpointError, match=r"; it fits hacnn, v2018_HACNN$"):
        load_checkpoint(create_model("osnet_x0_25"), hacnn)


# Wrappers and types


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes(state, model, wrapper, prefix, tmp_path):
    torch.save({wrapper: {prefix + key: t for key, t in state.items()}, "epoch": 60}, tmp_path / "weights.pth")
    report = load_checkpoint(model, tmp_path / "weights.pth")
    assert (report.matched, report.renamed, report.dropped, report.missing) == (567, 567, {}, ())
    assert torch.equal(model.state_dict()["network.head.classifier.weight"], state["classifier.weight"])


def test_half_precision_weights_come_in_as_float32(state, model):
    half = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    load_checkpoint(model, half)
    loaded = model.state_dict()["network.head.embedding.0.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, state["fc.0.weight"].half().float())


def test_files_older_than_the_batch_counters_load(state, model):
    old = {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")}
    report = load_checkpoint(model, old)
    assert len(report.missing) == len(state) - len(old) > 0
    assert "missing, left unchanged: " in str(report)
    assert "more" in str(report)


def test_the_report_is_short_and_nothing_is_printed(state, model, capfd):
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(1041, 512), torch.zeros(1041)
    report = load_checkpoint(model, state)
    assert capfd.readouterr() == ("", "")
    assert str(report) == (
        "osnet_x0_25: 565 keys matched, 565 of them renamed; "
        "dropped: classifier.weight (classifier (1041, 512), (751, 512) in the model), "
        "classifier.bias (classifier (1041,), (751,) in the model); "
        "missing, left unchanged: network.head.classifier.weight, network.head.classifier.bias"
    )


# Strictness


def test_every_kind_of_misfit_is_listed_and_nothing_is_loaded(state, model):
    state["conv1.extra"] = torch.zeros(3)
    state["conv1.bn.weight"] = torch.zeros(17)
    del state["conv5.bn.bias"]
    before = weights(model)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, state)
    assert str(error.value) == (
        "the state dict does not fit osnet_x0_25: conv1.bn.weight is (17,), (16,) in the model, "
        "conv1.extra is not in the model, network.backbone.conv5.bn.bias is missing"
    )
    assert same(before, model.state_dict())


def test_many_misfits_are_counted_not_listed(state, model):
    state |= {f"extra.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(CheckpointError, match=r"extra\.7 is not in the model and 42 more"):
        load_checkpoint(model, state)


def test_two_entries_for_one_tensor_are_an_error(state, model):
    state["conv2.0.streams.0.0.conv1.weight"] = state["conv2.0.conv2a.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"and conv2\.0\.conv2a\.conv1\.weight are both network\.backbone"):
        load_checkpoint(model, state)


def test_another_models_weights_are_recognised(state):
    with pytest.raises(CheckpointError, match=r"does not fit resnet50: .* and .* more; it fits osnet_x0_25$"):
        load_checkpoint(create_model("resnet50"), state)
    del state["conv5.bn.bias"]
    with pytest.raises(CheckpointError, match=r"; closest is osnet_x0_25$"):
        load_checkpoint(create_model("osnet_ibn_x1_0"), state)


def test_our_own_weights_of_another_model_are_recognised():
    own = create_model("osnet_x0_5", num_classes=9).state_dict()
    with pytest.raises(CheckpointError, match=r"it fits osnet_x0_5$"):
        load_checkpoint(create_model("osnet_x0_25"), own)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "holds dict, not a dict of tensors"),
        ({"state_dict": None}, "holds NoneType, not a dict of tensors"),
        ({"conv1.weight": torch.zeros(1), "epoch": 3}, r"entries that are not tensors: epoch \(int\)"),
        ({"conv1.weight": torch.zeros(2, 2).to_sparse()}, r"entries that are not tensors: conv1\.weight \(Tensor\)"),
        ({7: torch.zeros(1)}, "keys that name no tensor: 7$"),
        ({"a\n\x1b[31mb": torch.zeros(1)}, r"keys that name no tensor: 'a\\n\\x1b\[31mb'$"),
        ({"a" * 10**6: torch.zeros(1)}, r"keys that name no tensor: 'a{79}$"),
    ],
)
def test_what_is_no_state_dict_is_said(model, source, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, source)


def test_a_dict_that_holds_itself_is_said(model):
    loop: dict = {}
    loop["state_dict"] = loop
    with pytest.raises(CheckpointError, match=r"entries that are not tensors: state_dict \(dict\)"):
        load_checkpoint(model, loop)
    loop["state_dict"] = {"model": loop}
    with pytest.raises(CheckpointError, match="entries that are not tensors"):
        load_checkpoint(model, loop)


# Values


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t.to(torch.int8), r"does not fit osnet_x0_25: {key} is int8, float32 in the model$"),
        (lambda t: t.to(torch.complex64), "{key} is complex64, float32 in the model"),
        (lambda t: t.bool(), "{key} is bool, float32 in the model"),
        (lambda t: t.long(), "{key} is int64, float32 in the model"),
        (lambda t: t.to(torch.float8_e4m3fn), "{key} is float8_e4m3fn, float32 in the model"),
        (lambda t: t * torch.nan, r"{key} has 65,536 of 65,536 values that are NaN or infinite$"),
        (lambda t: t.index_fill(0, torch.tensor([3]), torch.inf), r"{key} has 128 of 65,536 values that are NaN"),
        (lambda t: t.double() * 1e300, r"{key} has .* values that are NaN or infinite"),  # in float32
        (lambda t: t.to("meta"), r"{key} has no values \(it is on the meta device\)"),
    ],
)
def test_values_that_cannot_be_weights_are_refused_by_key(state, model, broken, message):
    key, before = "fc.0.weight", weights(model)
    assert state[key].shape == (512, 128)
    state[key] = broken(state[key])
    with pytest.raises(CheckpointError, match=message.format(key=r"network\.head\.embedding\.0\.weight")):
        load_checkpoint(model, state)
    assert same(before, model.state_dict())


def test_counters_are_numbers_of_any_type(state, model):
    key = next(key for key in state if key.endswith("num_batches_tracked"))
    for value in (torch.tensor(7, dtype=torch.int32), torch.tensor(7.0)):  # a float: averages of whole state dicts
        load_checkpoint(model, state | {key: value})
        assert 7 in [int(t) for k, t in model.state_dict().items() if k.endswith("num_batches_tracked")]
    with pytest.raises(CheckpointError, match=r"num_batches_tracked has 1 of 1 values that are NaN or infinite"):
        load_checkpoint(model, state | {key: torch.tensor(torch.inf)})


# Files


def test_a_training_checkpoint_with_optimizer_and_numpy_score_is_read(state, model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {"state_dict": OrderedDict(state), "optimizer": optimizer.state_dict(), "rank1": np.float64(0.94)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "model.pth.tar-60", _use_new_zipfile_serialization=zipped)
        assert load_checkpoint(model, tmp_path / "model.pth.tar-60").matched == 567


def test_a_python_2_file_with_latin_1_strings_is_read(state, model, tmp_path):
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": state, "note": "PLACEHOLDER"}, path, _use_new_zipfile_serialization=False)
    written = b"X\x0b\x00\x00\x00PLACEHOLDER"  # how Python 3 pickles the text; Python 2 wrote bytes of any value
    assert path.read_bytes().count(written) == 1
    path.write_bytes(path.read_bytes().replace(written, b"U\x0bPL\xc4CEHOLD\xcaR"))
    assert load_checkpoint(model, path).matched == 567


class Trap:
    """Unpickled without care, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(model, tmp_path, how):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    content = {"state_dict": model.state_dict(), "bonus": Trap(sprung)}
    if how == "bare":
        path.write_bytes(pickle.dumps(content["bonus"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError, match=r"weights\.pth") as error:
        load_checkpoint(model, path)
    assert "\n" not in str(error.value)
    if how != "bare":
        assert "is refused: it holds the Python object posix.mkdir" in str(error.value)
    assert not sprung.exists()


def test_a_whole_pickled_model_is_refused(model, tmp_path):
    torch.save(model, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"the Python object reidlib\.models\.\w+\.ReIDModel"):
        load_checkpoint(model, tmp_path / "model.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.98])
def test_a_truncated_file_is_one_sentence(state, model, tmp_path, kind, part):
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    before = weights(model)
    with pytest.raises(CheckpointError, match=r"cut off|cannot be read") as error:
        load_checkpoint(model, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", "is a web page, not weights"),
        (b"", "is empty"),
        (b"just some text", "cannot be read as weights"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read as weights"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(model, tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(model, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_zip_that_is_no_checkpoint_is_one_sentence(model, tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("resnet50/model.pth.tar-60", "weights")
    with pytest.raises(CheckpointError, match=r"is a zip archive of resnet50/model\.pth\.tar-60: unpack it"):
        load_checkpoint(model, tmp_path / "weights.zip")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_oldest_torch_format_a_tar_with_pickles_is_refused_and_nothing_runs(model, tmp_path, form):
    path, sprung = tmp_path / "model.pth.tar", tmp_path / "sprung"
    with tarfile.open(path, "w", format=form) as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Trap(sprung), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(CheckpointError, match=r"model\.pth\.tar is a tar archive: .*torch before 0\.1\.10"):
        load_checkpoint(model, path)
    assert not sprung.exists()


def test_a_missing_file_is_said(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(model, tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        load_checkpoint(model, tmp_path)


def test_safetensors_are_known_by_content_not_by_name(state, tmp_path):
    save_file(state, tmp_path / "weights.bin")
    assert same(state, read_state_dict(tmp_path / "weights.bin"))


# Files that lie. All are made from a small good one, so that what they cost beyond it is the attack.


SMALL = {"a.weight": torch.arange(24.0).reshape(2, 3, 4), "b": torch.full((5,), 2.0)}


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip file of torch with changed entries, and right checksums: `change(name, content)`, None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            if content is not None:
                archive.writestr(name, content)


def saved(path: Path, content: object = SMALL, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def with_pickle(path: Path, pickled: bytes) -> Path:
    """A file of torch, right in all but its pickle."""
    rewrite(saved(path), lambda name, content: pickled if name.endswith("data.pkl") else content)
    return path


def refused(path: Path, reason: str, *, most: float = 4.0) -> None:
    """Reading `path` raises one printable sentence that names it, before torch reads it, in at most `most` MiB."""
    tracemalloc.start()
    try:
        with mock.patch("torch.load") as load, pytest.raises(CheckpointError, match=reason) as error:
            read_state_dict(path)
        assert not load.called
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert "weights_only" not in str(error.value)
    assert peak < most * 2**20, f"{peak / 2**20:.1f} MiB"


@pytest.mark.parametrize("legacy", [False, True])
def test_what_passes_is_what_torch_reads(tmp_path, legacy):
    base = torch.arange(60.0)
    content = {
        "view": base[3:40:4],
        "other": base.view(3, 4, 5).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        **{str(t): torch.ones(3).to(t) for t in (torch.half, torch.bfloat16, torch.int8, torch.bool, torch.complex64)},
    }
    plain = [True, None, -3, 2**40, "text", 1.5, (0.9, 0.999), [], torch.Size([3]), torch.device("cuda:1"), torch.half]
    others = {"plain": plain, "step": Counter([3, 3, 5]), "score": np.float64(0.9), "n": np.int64(3), 5: {}}
    path = saved(tmp_path / "weights.pth", {"state_dict": OrderedDict(content), **others}, legacy=legacy)
    state = read_state_dict(path)
    assert list(state) == list(content)
    assert all(state[key].dtype == t.dtype and torch.equal(state[key], t) for key, t in content.items())
    assert all(state[key].stride() == t.stride() for key, t in content.items())
    assert weight_files.read_file(path) | {"state_dict": 0} == others | {"state_dict": 0}


@pytest.mark.parametrize("at", ["first value", "last value", "middle"])
def test_an_overwritten_byte_in_a_zip_is_found(tmp_path, state, model, at):
    path = saved(tmp_path / "weights.pth", state)
    whole, before = bytearray(path.read_bytes()), weights(model)
    values = state["fc.0.weight"].numpy().tobytes()
    begin = whole.find(values)
    where = {"first value": begin, "last value": begin + len(values) - 1, "middle": begin + len(values) // 2}[at]
    whole[where] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is damaged: its checksums are not those of its content"):
        load_checkpoint(model, path)
    assert same(before, model.state_dict())


def test_compressed_entries_are_refused_before_they_are_inflated(tmp_path):
    path = saved(tmp_path / "weights.pth", {"a": torch.zeros(2**26)})
    rewrite(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**19  # of 256 MiB
    refused(path, "holds compressed entries, which torch never writes")


@pytest.mark.parametrize("length", [0, 4, 95, 97, 4096])
def test_an_entry_of_another_length_than_its_tensor_is_refused(tmp_path, length):
    path = saved(tmp_path / "weights.pth")
    rewrite(path, lambda name, content: content[:length].ljust(length) if name.endswith("data/0") else content)
    refused(path, "a tensor and its storage differ in size")


def test_a_missing_doubled_or_hidden_entry_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    rewrite(saved(path), lambda name, content: None if name.endswith("data/1") else content)
    refused(path, "cannot be read as weights")
    with zipfile.ZipFile(saved(path), "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("weights/data/0", bytes(96))
    refused(path, "is damaged: its checksums")
    with zipfile.ZipFile(saved(path), "a") as archive:
        archive.writestr("elsewhere/data.pkl", b"")
    refused(path, "is damaged: its checksums")
    whole = saved(path).read_bytes()
    path.write_bytes(b"PK\3\4" + whole)
    refused(path, "is damaged: its checksums")
    path.write_bytes(whole + whole)
    refused(path, "is damaged: its checksums")
    path.write_bytes(whole + b"more")
    refused(path, "is cut off or damaged")


def test_many_entries_are_refused_before_they_are_listed(tmp_path, monkeypatch):
    path = saved(tmp_path / "weights.pth")
    monkeypatch.setattr(weight_files, "MAX_ENTRIES", 7)
    refused(path, "is refused: it holds more than 7 entries")


class Scripted(torch.nn.Module):
    """As OpenAI's archives of CLIP: modules within modules, half precision, numbers and lists among the attributes."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).half()
        self.shared = torch.nn.Parameter(torch.randn(2, 5).T)
        self.depths, self.scale, self.name = [1, 2], 0.5, "clip"
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return self.visual(x) * self.scale + len(self.depths)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_gives_its_tensors_and_is_not_run(tmp_path, monkeypatch):
    model, path = Scripted().eval(), tmp_path / "program.pt"
    torch.jit.script(model).save(str(path))
    for function in ("load", "jit.load"):
        monkeypatch.setattr(f"torch.{function}", None)
    state = read_state_dict(path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(state[key].dtype == value.dtype for key, value in model.state_dict().items())
    content = path.read_bytes()
    (data,) = (content.index(value.numpy().tobytes()) for value in [model.state_dict()["shared"].T.contiguous()])
    path.write_bytes(content[:data] + b"\1" + content[data + 1 :])
    refused(path, "cannot be read as weights")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program/constants.pkl", b"")
        archive.writestr("program/data.pkl", b"\x80\x02c__torch__.a\nB\n)\x81}(X\x01\x00\x00\x00acos\nsystem\nub.")
    refused(path, "is refused: it holds the Python object os.system")


FLOATS = b"ctorch\nFloatStorage\n"
STORAGE = b"(X\x07\x00\x00\x00storage" + FLOATS + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"%s%s%s\x89)tR"


PARAMETER = b"ctorch.nn.parameter\nParameter\n"


def long(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def a_tensor(numel: int = 24, offset: int = 0, size: tuple = (24,), stride: tuple = (1,), hooks: bytes = b")") -> bytes:
    shapes = [b"(" + b"".join(map(long, shape)) + b"t" for shape in (size, stride)]
    return TENSOR.replace(b")tR", hooks + b"tR") % (long(numel), long(offset), *shapes)


def key_of(depth: int) -> bytes:
    """A tuple of two tuples of two tuples: a few bytes each, whose hash takes 2 ** depth steps."""
    return b")" + b"q\x00h\x00\x86" * depth


PICKLES = {
    "a tensor with more values than its storage": (a_tensor(24, 0, (25,)), "lies outside its storage"),
    "a tensor that begins in its storage": (a_tensor(24, 20, (5,)), "lies outside its storage"),
    "a tensor with giant steps": (a_tensor(24, 0, (3,), (2**60,)), "lies outside its storage"),
    "one value a billion times": (a_tensor(24, 0, (10**9,), (0,)), "lies outside its storage"),
    "a negative offset": (a_tensor(24, -1), "lies outside its storage"),
    "a negative size": (a_tensor(24, 0, (-1,)), "lies outside its storage"),
    "a negative step": (a_tensor(24, 23, (24,), (-1,)), "lies outside its storage"),
    "steps for another shape": (a_tensor(24, 0, (24,), (1, 1)), "lies outside its storage"),
    "hooks": (a_tensor(hooks=b"(ctorch\nSize\nt"), "it calls what no tensor needs"),
    "a terabyte": (a_tensor(2**40, 0, (2**40,)), "a tensor and its storage differ in size"),
    "a negative storage": (a_tensor(-1), "names no storage where one must be"),
    "bytes by the billion": (b"cbuiltins\nbytearray\n" + long(10**10) + b"\x85R", "Python object builtins.bytearray"),
    "a storage that is called": (FLOATS + long(10**10) + b"\x85R", "it calls what no tensor needs"),
    "a tensor type called": (b"ctorch\nFloatTensor\n" + long(10**10) + b"\x85R", "it calls what no tensor needs"),
    "an old tensor outside its storage": (
        b"ctorch\nFloatTensor\n)R(" + STORAGE % long(24) + b"K\0(K\x19t(K\1ttb", "lies outside its storage",
    ),
    "a parameter that is set like a tensor": (
        PARAMETER + b")\x81(" + STORAGE % long(24) + b"K\0(K\x18t(K\1ttb", "it sets attributes of an object",
    ),
    "a parameter of something else": (PARAMETER + b")\x85\x81", "it calls what no tensor needs"),
    "text that doubles": (b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R", "it calls what no tensor needs"),
    "a dtype of records": (b"cnumpy\ndtype\nX\x06\x00\x00\x00V99999\x85R", "it calls what no tensor needs"),
    "attributes of a dict": (b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsNsb", "it sets attributes of an object"),
    "keys that take for ever": (b"}" + key_of(60) + b"Ns", "it holds a dict with a tuple for a key"),
    "pairs that take for ever": (
        b"ccollections\nOrderedDict\n](" + key_of(60) + b"N\x86e\x85R", "it holds a dict with a tuple for a key",
    ),
    "numbers with one hash": (b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns", "dict with a int for a key"),
    "a tensor of a hundred dimensions": (a_tensor(24, 0, (1,) * 100, (1,) * 100), "lies outside its storage"),
    "text that is not there": (b"X\xff\xff\xff\x7fabc", "cannot be read as weights"),
    "nothing to take": (b"0u", "cannot be read as weights"),
    "a memo that is not there": (b"h\x07", "cannot be read as weights"),
    "an instruction of newer pickles": (b"\x8c\x01a\x94", "torch writes no SHORT_BINUNICODE into its pickles"),
    "a persistent module": (b"(X\x06\x00\x00\x00moduleNNNtQ", "it names no storage where one must be"),
    "a name with line breaks": (b"cos\nsystem\x1b[31m\n", r"it holds the Python object os\.system\\x1b\[31m,"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_lies_is_refused(tmp_path, name, legacy):
    body, reason = PICKLES[name]
    path, pickled = tmp_path / "weights.pth", b"\x80\x02}X\x01\x00\x00\x00a" + body + b"s."
    if legacy:
        whole = saved(path, {}, legacy=True).read_bytes()
        one = pickle.dumps({}, protocol=2)
        begin = whole.index(one, whole.index(b"type_sizes"))
        path.write_bytes(whole[:begin] + pickled + whole[begin + len(one) :])
    else:
        with_pickle(path, pickled)
    reason = "it is a pickle, but not as torch writes them" if legacy and "differ in size" in reason else reason
    refused(path, reason)


def test_the_pickle_that_those_are_made_from_is_good(tmp_path):
    path = with_pickle(tmp_path / "weights.pth", b"\x80\x02}X\x01\x00\x00\x00a" + a_tensor() + b"s.")
    assert torch.equal(read_state_dict(path)["a"], torch.arange(24.0))


@pytest.mark.parametrize(
    "body",
    [
        PARAMETER + a_tensor() + b"\x85\x81(\x89\x89Ntb",
        PARAMETER + a_tensor() + b"\x88\x86\x81(\x88\x89Ntb",
        PARAMETER + b")\x81(" + a_tensor() + b"\x88N\x88\x89tb",
        b"ctorch\nFloatTensor\n)R(" + STORAGE % long(24) + b"K\0(K\x18t(K\1ttb",
    ],
)
def test_tensors_and_parameters_as_torch_0_1_wrote_them_are_read(tmp_path, body):
    path = with_pickle(tmp_path / "weights.pth", b"\x80\x02}X\x01\x00\x00\x00a" + body + b"s.")
    assert torch.equal(read_state_dict(path)["a"], torch.arange(24.0))


def test_a_pickle_of_a_dict_that_holds_itself_is_said(tmp_path):
    path = with_pickle(tmp_path / "weights.pth", b"\x80\x02}q\0X\x05\0\0\0modelh\0s.")
    with pytest.raises(CheckpointError, match=r"weights\.pth has entries that are not tensors: model \(dict\)"):
        read_state_dict(path)


def test_two_types_for_one_storage_are_refused(tmp_path):
    halves = a_tensor(48, 0, (48,)).replace(b"FloatStorage", b"HalfStorage")
    pickled = b"\x80\x02}X\x01\0\0\0a" + a_tensor() + b"sX\x01\0\0\0b" + halves + b"s."
    refused(with_pickle(tmp_path / "weights.pth", pickled), "a tensor has no storage of its own type")


def test_objects_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_STEPS", 1000)
    pickled = b"\x80\x02}X\x01\0\0\0a](" + b"]" * 2000 + b"es."
    refused(with_pickle(tmp_path / "weights.pth", pickled), "is refused: it holds more than 1,000 objects")
    pairs = b"](" + b"](X\1\0\0\0aNe" * 50 + b"eq\0"
    copies = b"](" + b"ccollections\nOrderedDict\nh\0\x85R" * 20 + b"e"  # of the same fifty pairs
    pickled = b"\x80\x02}X\x01\0\0\0a" + pairs + b"sX\x01\0\0\0b" + copies + b"s."
    refused(with_pickle(tmp_path / "weights.pth", pickled), "is refused: it holds more than 1,000 objects")
    texts = b"X\xc8\0\0\0" + b"a" * 200 + b"q\0](" + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 9 + b"e"
    refused(with_pickle(tmp_path / "weights.pth", b"\x80\x02}X\x01\0\0\0a" + texts + b"s."), "more than 1,000 objects")
    monkeypatch.setattr(weight_files, "MAX_PICKLE", 100)
    refused(tmp_path / "weights.pth", "is refused: its pickle has more than 0 MiB")


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: whole[: -8 * 4 - 24 * 4] + whole[-24 * 4 :],
        lambda whole: whole.replace(struct.pack("<q", 24), struct.pack("<q", 25)),
        lambda whole: whole.replace(struct.pack("<q", 24), struct.pack("<q", -1)),
        lambda whole: whole[: whole.index(b"storage")] + whole[whole.index(b"storage") + 1 :],
    ],
)
def test_a_legacy_file_of_another_length_is_refused(tmp_path, change):
    path = saved(tmp_path / "weights.pth", {"a": torch.arange(24.0), "b": torch.zeros(5)}, legacy=True)
    path.write_bytes(change(path.read_bytes()))
    refused(path, "cut off or damaged|cannot be read as weights")


def test_a_legacy_file_without_a_storage_that_it_names_is_refused(tmp_path):
    path = saved(tmp_path / "weights.pth", {"a": torch.arange(24.0)}, legacy=True)
    whole = path.read_bytes()
    begin = whole.rindex(b"\x80\x02]")
    path.write_bytes(whole[:begin] + pickle.dumps([], protocol=2))
    refused(path, "it is a pickle, but not as torch writes them")


def test_legacy_views_of_torch_0_3_are_read_and_checked(tmp_path):
    path = saved(tmp_path / "weights.pth", {"a": torch.arange(24.0)}, legacy=True)
    whole = path.read_bytes()
    assert whole.count(b"K\x18Nt") == 1  # 24 values, no view

    def with_view(offset: int, length: int) -> None:
        view = b"(X\x01\x00\x00\x00vK" + bytes([offset]) + b"K" + bytes([length]) + b"t"
        path.write_bytes(whole.replace(b"K\x18Nt", b"K\x18" + view + b"t"))

    with_view(0, 24)
    assert torch.equal(read_state_dict(path)["a"], torch.arange(24.0))
    with_view(1, 24)
    refused(path, "lies outside its storage")
    with_view(0, 23)
    refused(path, "lies outside its storage")


def safetensors(header: object, values: bytes = bytes(96), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


ENTRY = {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": ENTRY}, length=2**62),
        safetensors({"a": ENTRY}, length=7),
        safetensors({"a": ENTRY}, bytes(95)),
        safetensors({"a": ENTRY}, bytes(97)),
        safetensors({"a": ENTRY | {"shape": [25]}}),
        safetensors({"a": ENTRY | {"shape": [2**62, 2**62]}}),
        safetensors({"a": ENTRY | {"shape": [-24]}}),
        safetensors({"a": ENTRY | {"dtype": "F64"}}),
        safetensors({"a": ENTRY | {"dtype": "text"}}),
        safetensors({"a": ENTRY | {"data_offsets": [96, 0]}}),
        safetensors({"a": ENTRY | {"data_offsets": [0, 2**63]}}),
        safetensors({"a": ENTRY, "b": ENTRY}),  # the same bytes
        safetensors({"a": ENTRY, "b": ENTRY | {"shape": [12], "data_offsets": [48, 96]}}),
        safetensors(b'{"a": ' + json.dumps(ENTRY).encode() + b', "a": ' + json.dumps(ENTRY).encode()),
        safetensors(b"{" * 100_000),
        safetensors(b'{"a":' * 100_000),
        safetensors({"\x1b[31m\n": ENTRY | {"shape": [7]}}),  # found by fuzzing: the name went to the terminal
        safetensors({"a": 3}),
        safetensors({"__metadata__": {"a": 3}}),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    refused(tmp_path / "weights.safetensors", r"is cut off or damaged \(.+\); download it again$")


def test_weights_for_more_classes_than_the_file_holds_take_no_memory(tmp_path):
    state = create_model("osnet_x0_25").state_dict()
    state["network.head.classifier.weight"] = torch.zeros(10**9, 0)
    path = saved(tmp_path / "weights.pth", state)
    assert create_model("osnet_x0_25", weights=path).num_classes is None


def test_the_security_page_names_files_that_exist():
    root = Path(__file__).resolve().parents[1]
    named = set(re.findall(r"`((?:tests|reidlib)/[\w/.]+\.py)`", (root / "docs" / "SECURITY.md").read_text()))
    assert len(named) >= 6
    assert all((root / name).is_file() for name in named), named
