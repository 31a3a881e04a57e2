"""Trunks as their pretraining left them, as the start of a model: made-up files of the layouts that are published."""

import pytest
import torch
from golden import read_fixtures
from torch.nn import functional as F

from reidlib.models import CheckpointError, create_model, load_checkpoint
from reidlib.models.backbones.vit import fit_positions
from reidlib.models.checkpoints import holds_trunk

FIXTURES = read_fixtures()
CLIP_TEXT = ("transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "positional_embedding", "logit_scale")


def trunk_of(name, positions):
    """The published layout of a model without what re-identification adds, on meta; `positions` rows of the table."""
    state = {}
    for key, shape in FIXTURES[name]["layout"].items():
        key = key.removeprefix("base.").removeprefix("image_encoder.")
        if key.endswith(("pos_embed", "positional_embedding")):
            shape = [*shape[:-2], positions, shape[-1]]
        if not key.startswith(("fc.", "classifier", "bottleneck", "cv_embed", "prompt_", "text_")):
            state[key] = torch.empty(shape, dtype=torch.float16, device="meta")
    return state


def teacher(state):
    """As DINO, iBOT and SOLIDER save one."""
    return {f"backbone.{key}": t for key, t in state.items()} | {"head.mlp.0.weight": torch.empty(8, 8, device="meta")}


def openai(state):
    """CLIP's two towers."""
    text = {key: torch.empty(4, device="meta") for key in CLIP_TEXT}
    return {f"visual.{key}": tensor for key, tensor in state.items()} | text


@pytest.mark.parametrize(
    ("name", "positions", "pack"),
    [
        ("transreid_ssl_vit_small", 129, lambda state: {"student": {}, "teacher": teacher(state), "epoch": 100}),
        ("transreid_ssl_vit_small_ics", 197, lambda state: {"teacher": teacher(state)}),
        ("personvit_vit_small", 129, lambda state: {"target_encoder": {f"module.{k}": t for k, t in state.items()}}),
        ("personvit_vit_small", 129, lambda state: {"module": teacher(state)}),
        ("pass_vit_small", 128, lambda state: {"teacher": {f"module.{k}": t for k, t in teacher(state).items()}}),
        ("solider_swin_tiny", 0, lambda state: {"teacher": teacher(state)}),
        ("clipreid_vit_b16", 197, openai),
        ("clipreid_vit_b16_sie_olp", 197, openai),
        ("clipreid_rn50", 50, openai),
    ],
)
def test_a_pretrained_trunk_is_a_start_without_heads(name, positions, pack):
    with torch.device("meta"):
        model = create_model(name, num_classes=751, num_cameras=6)
    report = load_checkpoint(model, pack(trunk_of(name, positions)))
    started = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    assert started
    assert all(key.startswith("network.heads") or "head." in key or "sie_embed" in key for key in started)
    assert report.matched + len(report.missing) == len(model.state_dict())
    assert all(reason for reason in report.dropped.values())
    assert not any("classifier" in key for key in report.dropped)


@pytest.mark.slow
def test_a_trunk_file_is_complete_or_an_error():
    with torch.device("meta"):
        model = create_model("transreid_ssl_vit_small", num_classes=4)
    state = trunk_of("transreid_ssl_vit_small", 129)
    assert holds_trunk(state, model.family)
    assert not holds_trunk(model.state_dict(), model.family)
    del state["blocks.3.norm1.bias"]
    with pytest.raises(CheckpointError, match=r"blocks\.3\.norm1\.bias is missing"):
        load_checkpoint(model, {"teacher": state})


@pytest.mark.parametrize(("count", "ratio", "grid"), [(128, 2, (16, 8)), (196, 1, (14, 14)), (192, 3, (24, 8))])
def test_position_embeddings_are_resized_from_a_grid_of_the_ratio(count, ratio, grid):
    table = torch.randn(1 + count, 5, generator=torch.Generator().manual_seed(count))
    patches = table[1:].reshape(1, *grid, 5).permute(0, 3, 1, 2)
    wanted = F.interpolate(patches, (21, 10), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    for given in (ratio, None):
        got = fit_positions(table, (21, 10), prefix=1, ratio=given)
        assert torch.equal(got[:, 1:], wanted)
        assert torch.equal(got[0, 0], table[0])
    assert torch.equal(fit_positions(table, grid, prefix=1), table[None])
    assert fit_positions(table, (21, 10), prefix=1, ratio=1.7) is table, "no such grid: loading it is an error"
