"""Loading weights: rename rules, wrappers, strictness, and files that are not what they seem."""

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from golden import draw_state, read_fixtures
from safetensors.torch import save_file

from reidlib.models import CheckpointError, create_model, load_checkpoint
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
    assert report.kept == ("network.head.classifier.weight", "network.head.classifier.bias")


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
    assert load_checkpoint(model, state).kept == load_checkpoint(other, swapped).kept == ()
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
    assert (report.matched, report.renamed, report.dropped, report.kept) == (567, 567, {}, ())
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
    assert len(report.kept) == len(state) - len(old) > 0
    assert "left as they were" in str(report)
    assert "more" in str(report)


def test_the_report_is_short_and_nothing_is_printed(state, model, capfd):
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(1041, 512), torch.zeros(1041)
    report = load_checkpoint(model, state)
    assert capfd.readouterr() == ("", "")
    assert str(report) == (
        "osnet_x0_25: 565 tensors loaded, 565 of them renamed; "
        "dropped classifier.weight (classifier (1041, 512), (751, 512) in the model), "
        "classifier.bias (classifier (1041,), (751,) in the model); "
        "not in the file, left as they were: network.head.classifier.weight, network.head.classifier.bias"
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
    ],
)
def test_what_is_no_state_dict_is_said(model, source, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, source)


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
        assert "is refused and nothing was run: it holds the Python object posix.mkdir" in str(error.value)
    assert not sprung.exists()


def test_a_whole_pickled_model_is_refused(model, tmp_path):
    torch.save(model, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"the Python object reidlib\.models\.architectures\.ReIDModel"):
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
