"""Published weights into our models: renamed by rule, loaded strictly, reported.

A family's files are renamed to our own keys by one ordered list of rules (`RENAMES`), each a regular expression and its
replacement; a `Drop` in that place leaves the entry out and says why. Besides those, only two kinds of entry may differ
between file and model: classifiers, whose size is the dataset's, and `num_batches_tracked`, which files older than
torch 0.4.1 lack. Anything else that is missing, left over, of another shape or not finite is an error that names it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidlib.models.weight_files import CheckpointError, read_file


class Drop(NamedTuple):
    """In a rule's second place: leave the entry out, for this reason."""

    reason: str


Rules = tuple[tuple[str, str | Drop], ...]

# OSNet: plain and IBN files name a block's four streams conv2a to conv2d, and the first has no index; AIN files have
# conv2.<stream>.layers, and keep the transitions beside the stages.
_OSNET: Rules = (
    (r"(?<=conv\d\.\d)\.conv2a\.", ".streams.0.0."),
    (r"(?<=conv\d\.\d)\.conv2b\.", ".streams.1."),
    (r"(?<=conv\d\.\d)\.conv2c\.", ".streams.2."),
    (r"(?<=conv\d\.\d)\.conv2d\.", ".streams.3."),
    (r"\.conv2\.(\d)\.layers\.", r".streams.\1."),
    (r"\bpool([23])\.", r"conv\1.2."),
)

_DENSENET = (r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.")  # torchvision before 0.2.1 put a dot there

_TORCHREID: Rules = (
    (r"^(fc|last_linear)\.(weight|bias)$", Drop("the library's ImageNet classifier")),
    (r"^classifier\.", "head.classifier."),
    (r"^fc\.", "head.embedding."),
    (r"^fc_(fusion|fuse)\.", "head.embedding."),  # mid-level ResNet
    (r"^conv5\.layers\.", "head.embedding."),  # PCB
    (r"^fc_x\.", "head.embeddings.0."),  # MLFN
    (r"^fc_s\.", "head.embeddings.1."),
    (r"^classifier_global\.", "heads.0.classifier."),  # HACNN
    (r"^classifier_local\.", "heads.1.classifier."),
    (r"^fc_global\.", "heads.0.embedding."),
    (r"^fc_local\.", "heads.1.embedding."),
    _DENSENET,
    (r"^((?:cell|reduction_cell)_)", r"cells.\1"),  # NASNet
    (r"^(?!heads?\.)", "backbone."),
    *_OSNET,
    (r"^", "network."),
)

_IMAGENET = (r"^base\.(?:fc|head)\.(?:weight|bias)$", Drop("the library's ImageNet classifier"))

# reid-strong-baseline, and what was built on it.
_STRONG: Rules = (
    _IMAGENET,
    (r"^base\.NL_(\d)\.(\d)\.", r"backbone.layer\1.non_local\2."),  # AGW
    (r"^base\.", "backbone."),
    (r"^global_pool\.", "head.pool."),
    (r"^bottleneck\.", "head.neck."),
    (r"^classifier\.", "head.classifier."),
    (r"^", "network."),
)

# MGN's heads, in the order of the feature: whole maps, then stripes.
_MGN_HEADS = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")

_ABD: Rules = (
    (r"^common_branch\.backbone1\.", "backbone.shallow."),
    (r"^common_branch\.backbone2\.", "backbone.middle."),
    (r"^common_branch\.shallow_cam\._cam_module\.", "backbone.attention."),
    (r"^branches\.(\d)\.0\.backbone\.", r"backbone.branches.\1."),
    (r"^branches\.(\d)\.1\.", r"heads.\1."),
    (r"\.fc\.", ".embedding."),
    (r"\.(before|cam|pam)_module\.", r".streams.\1."),
    (r"\.conv5c\.", ".0."),
    (r"\.attention_module\.", ".1."),
    (r"\.conv52\.", ".2."),
    (r"\.conv7\.", ".3."),
    (r"\.sum_conv\.", ".merge."),
    (r"^", "network."),
)

# Vision transformers: TransReID, TransReID-SSL, PersonViT, PASS. Files of training without labels have no `base.`.
_VIT: Rules = (
    _IMAGENET,
    (r"^base\.", ""),
    (r"^b1\.", "last.0."),
    (r"^b2\.", "last.1."),
    (r"^blocks\.11\.", "last.0.0."),
    (r"^norm\.", "last.0.1."),
    (r"^patch_embed\.proj\.", "patch."),
    (r"^patch_embed\.conv\.", "stem."),
    (r"^(bottleneck|classifier)\.", r"heads.0.\1."),
    (r"^(bottleneck|classifier)_(\d)\.", r"heads.\2.\1."),
    (r"\bbottleneck\.", "neck."),
    (r"^(?!last\.|heads\.)", "backbone."),
    (r"^", "network."),
)

# LightMBN's heads, in the order of the feature.
_LIGHTMBN_HEADS = ("0", "(?:4|drop)", "1", "2", "3", "ch_0", "ch_1")

_LIGHTMBN: Rules = (
    *((rf"^reduction_{head}\.", f"heads.{number}.") for number, head in enumerate(_LIGHTMBN_HEADS)),
    (r"^(heads\.\d)\.reduction\.", r"\1.embedding."),
    (r"^(heads\.\d)\.bn\.", r"\1.neck."),
    (r"^backone\.", "backbone.common."),
    (r"^global_branch\.", "backbone.branches.b1."),
    (r"^partial_branch\.", "backbone.branches.b2."),
    (r"^channel_branch\.", "backbone.branches.b3."),
    (r"^batch_drop_block\.drop_batch_bottleneck\.", "drop_block."),
    (r"\.conv2a\.", ".streams.0.0."),
    *((rf"\.conv2{letter}\.", f".streams.{number}.") for number, letter in enumerate("bcd", start=1)),
    (r"^", "network."),
)

_CLIP: Rules = (
    (r"^(?:prompt_learner|text_encoder)\.", Drop("the text side, which serves training only")),
    (r"^(bottleneck|classifier)\.", r"heads.0.\1."),
    (r"^(bottleneck|classifier)_proj\.", r"heads.1.\1."),
    (r"\.bottleneck\.", ".neck."),
)

CLIP_BLOCK: Rules = (  # of a transformer of either tower
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)

# Applied in order, each to the result of the one before.
RENAMES: dict[str, Rules] = {
    "torchreid": _TORCHREID,
    # Numbered where torchvision's modules had been put in a row; a stage of one block had no index.
    "torchreid-2018": (
        (r"^(?:base|layers1)\.0\.", "conv1."),
        (r"^(?:base|layers1)\.1\.", "bn1."),
        (r"^base\.4\.", "layer1."),
        (r"^base\.5\.", "layer2."),
        (r"^base\.6\.", "layer3."),
        (r"^base\.7\.", "layer4."),
        (r"^layers2\.1\.", "layer1."),
        (r"^layers3\.", "layer2."),
        (r"^layers4\.", "layer3."),
        (r"^layers5a\.", "layer4.0."),
        (r"^layers5b\.", "layer4.1."),
        (r"^layers5c\.", "layer4.2."),
        (r"^base\.", "features."),  # DenseNet
        (r"^block([28])\.", r"conv\1.0."),  # MobileNetV2
        (r"^block(\d)\.", r"conv\1."),
        (r"\.expand\.conv", ".conv"),  # SqueezeNet
        (r"^conv10\.", "head.scores."),
        *_TORCHREID,
    ),
    "reid-strong-baseline": _STRONG,
    "AGW": _STRONG,
    "APNet": (
        (r"^base_1\.0\.", "base.conv1."),
        (r"^base_1\.1\.", "base.bn1."),
        *((rf"^base_{number + 1}\.0\.", f"base.layer{number}.") for number in range(1, 5)),
        *((rf"^(BN|att_s|att){number + 1}\.", rf"backbone.attention{number}.\1.") for number in range(5)),
        (r"\.BN\.bottleneck2\.", ".norm."),
        (r"\.att_s\.", ".split."),
        (r"\.att\.fc\.0\.", ".se.fc1."),
        (r"\.att\.fc\.2\.", ".se.fc2."),
        *_STRONG,
    ),
    "ABD-Net": _ABD,
    "ABD-Net, branches swapped": (
        (r"^branches\.0\.", "branches.first."),
        (r"^branches\.1\.", "branches.0."),
        (r"^branches\.first\.", "branches.1."),
        *_ABD,
    ),
    "TransReID": _VIT,
    "TransReID with JPM": (
        (r"^base\.(?:blocks\.11|norm)\.", Drop("upstream runs its copies b1 and b2 instead")),
        *_VIT,
    ),
    "TransReID-SSL": _VIT,
    "PersonViT": _VIT,
    "PASS": (
        (r"^bottleneck\.", "heads.0.necks.0."),
        (r"^bottleneck_(?:pt)?(\d)\.", r"heads.0.necks.\1."),
        *_VIT,
    ),
    "CLIP-ReID": (
        *_CLIP,
        (r"^cv_embed$", "backbone.sie_embed"),
        (r"^image_encoder\.transformer\.resblocks\.11\.", "last.0."),
        (r"^image_encoder\.transformer\.resblocks\.", "blocks."),
        (r"^image_encoder\.ln_post\.", "last.1."),
        (r"^image_encoder\.ln_pre\.", "norm_pre."),
        (r"^image_encoder\.conv1\.", "patch."),
        (r"^image_encoder\.class_embedding$", "cls_token"),
        (r"^image_encoder\.positional_embedding$", "pos_embed"),
        (r"^image_encoder\.proj$", "proj"),
        *CLIP_BLOCK,
        (r"^(?!heads\.|backbone\.)", "backbone."),
        (r"^", "network."),
    ),
    "CLIP-ReID on ResNet": (
        *_CLIP,
        (r"^image_encoder\.attnpool\.positional_embedding$", "backbone.attention.pos_embed"),
        (r"^image_encoder\.attnpool\.c_proj\.", "backbone.attention.proj."),
        (r"^image_encoder\.attnpool\.([qkv])_proj\.", r"backbone.attention.\1."),
        (r"^image_encoder\.", "backbone.trunk."),
        (r"^", "network."),
    ),
    "SOLIDER": (
        (r"\.relative_position_index$", Drop("a table of the windows' places, which is computed here")),
        (r"^base\.norm[012]\.", Drop("the norm of a map that the feature is not made from")),
        (r"^base\.semantic_embed_[wb]\.3\.", Drop("the fourth semantic embedding, which acts on nothing")),
        (r"^base\.norm3\.", "base.norm."),
        (r"^base\.patch_embed\.projection\.", "base.patch_embed.proj."),
        (r"^base\.stages\.(\d)\.downsample\.", r"base.merges.\1."),
        (r"^base\.semantic_embed_w\.", "base.semantics.scale."),
        (r"^base\.semantic_embed_b\.", "base.semantics.shift."),
        (r"^base\.semantics\.(\w+)\.(\d)\.", r"base.semantics.\2.\1."),
        (r"\.blocks\.(\d+)\.", r".\1."),
        (r"\.attn\.w_msa\.", "."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        *_STRONG,
    ),
    "LightMBN": _LIGHTMBN,
    "LightMBN on OSNet": (
        # Upstream's branches count the blocks of the stage from the first, which is not in them.
        (r"^(global|partial|channel)_branch\.0\.1\.", r"\1_branch.0.0."),
        (r"^(global|partial|channel)_branch\.0\.2\.", r"\1_branch.0.1."),
        *_LIGHTMBN,
    ),
    # A trunk of torchvision's or timm's, as trained on ImageNet; keys that the trunk has stay as they are.
    "imagenet": (
        (r"^(?:fc|classif(?:ier)?|last_linear|head(?:_dist)?|AuxLogits)\.", Drop("the library's ImageNet classifier")),
        (r"^dist_token$", Drop("DeiT's second token")),
        _DENSENET,
        (r"^patch_embed\.proj\.", "patch."),
        (r"^blocks\.11\.", "last.0."),
        (r"^norm\.", "last.1."),
    ),
    "fast-reid": (
        (r"^backbone\.NL_(\d)\.(\d)\.", r"backbone.layer\1.non_local\2."),
        (r"\.se\.fc\.0\.", ".se.fc1."),
        (r"\.se\.fc\.2\.", ".se.fc2."),
        *((rf"^{head}_head\.", f"heads.{number}.") for number, head in enumerate(_MGN_HEADS)),
        (r"^backbone\.(\d+)\.", r"backbone.common.\1."),  # MGN
        (r"^(b\d)\.", r"backbone.branches.\1."),
        (r"^heads\.(?!\d)", "head."),
        (r"^(heads?(?:\.\d)?)\.weight$", r"\1.classifier.weight"),
        (r"^(heads?(?:\.\d)?)\.pool_layer\.", r"\1.pool."),
        (r"^head\.bottleneck\.0\.", "head.neck."),
        (r"^(heads\.\d)\.bottleneck\.0\.", r"\1.embedding."),
        (r"^(heads\.\d)\.bottleneck\.1\.", r"\1.neck."),
        *_OSNET,
        (r"^", "network."),
    ),
    # No other project publishes files of these.
    "timm": (),
    "own": (),
}

# A trunk as its pretraining left it: DINO's, iBOT's and SOLIDER's teachers, CLIP's two towers in OpenAI's layout.
_TAUGHT = ("TransReID-SSL", "PersonViT", "PASS", "SOLIDER")
_TEACHER: Rules = (
    (r"^(?:backbone\.)?(?:head|fc|pre_logits)\.", Drop("the head of the pretraining")),
    (
        r"^(?:backbone\.)?mask(?:ed)?_(?:token|embed)$",
        Drop("the token of masked patches, which serves pretraining only"),
    ),
    (r"^(?:backbone\.|base\.)?", "base."),
)
_OPENAI: Rules = (
    (r"^(?!visual\.)", Drop("CLIP's text side, scale and sizes, which the image side does not use")),
    (r"^visual\.", "image_encoder."),
)
RENAMES |= {
    **{f"{family}, trunk": (*_TEACHER, *RENAMES[family]) for family in _TAUGHT},
    "CLIP-ReID, trunk": (*_OPENAI, *RENAMES["CLIP-ReID"]),
    "CLIP-ReID on ResNet, trunk": (*_OPENAI, *RENAMES["CLIP-ReID on ResNet"]),
}

# Files of a family in whose keys, one a line, this is found follow other rules; the first of them that is.
_NO_NECK = r"\A(?!(?s:.*)\bbottleneck)"
VARIANTS = {
    # Upstream orders the branches by iterating over a set: global first, or attentive first.
    "ABD-Net": ((r"^branches\.0\.1\.reduction\.", "ABD-Net, branches swapped"),),
    "TransReID": ((r"^b1\.", "TransReID with JPM"),),
    "CLIP-ReID": (
        (r"^image_encoder\.layer1\.", "CLIP-ReID on ResNet"),
        (r"^visual\.layer1\.", "CLIP-ReID on ResNet, trunk"),
        (r"^visual\.", "CLIP-ReID, trunk"),
    ),
    "LightMBN": ((r"^backone\.0\.conv\.", "LightMBN on OSNet"),),
    **{family: ((_NO_NECK, f"{family}, trunk"),) for family in _TAUGHT},
}

# Files of a family may hold a tensor twice, under a key like this too. That entry wins: upstream loads it later.
TWINS = {"APNet": r"^base_\d\."}  # its trunk, registered as a whole and in pieces

_WRAPPERS = ("state_dict", "model", "net", "teacher", "target_encoder", "module")  # two of them: of self-supervision
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_CLASSIFIER = re.compile(r"\bclassifiers?\.")
_SCORES = re.compile(r"\b(classifiers?|scores)\.(.+\.)?weight$")
_CAMERAS = re.compile(r"\bsie_embed$")
_NOT_IN_TRUNKS = re.compile(r"^network\.heads?\.|\bsie_embed$")  # the keys that a pretrained trunk does not have
_POSITIONS = re.compile(r"\bpos_embed$")
_OWN_PREFIX = "network."  # the keys of a ReIDModel's own state dict
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Sizes (height, width) that models are trained at; each has its own number of patches, at a stride of 12 or 16.
_SIZES = ((256, 128), (384, 128), (384, 192), (224, 224), (128, 64), (224, 112), (256, 256), (384, 384))


@dataclass(frozen=True)
class Report:
    """What a load did.

    Attributes:
        model: The model's name.
        matched: Number of entries copied into the model.
        renamed: How many of these had another key in the file.
        dropped: Keys of the file that were left out, and why.
        missing: Keys of the model that no entry filled: classifiers, num_batches_tracked.
        input_size: The model's input size and where it comes from, in words; empty if not asked for.
    """

    model: str
    matched: int
    renamed: int
    dropped: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    input_size: str = ""

    def __str__(self) -> str:
        text = f"{self.model}: {self.matched} keys matched, {self.renamed} of them renamed"
        if self.dropped:
            text += "; dropped: " + _listed([f"{key} ({why})" for key, why in self.dropped.items()])
        if self.missing:
            text += "; missing, left unchanged: " + _listed(self.missing)
        return text + (f"; input size {self.input_size}" if self.input_size else "")

    def at(self, size: tuple[int, int], trained: tuple[int, int] | None, given: bool) -> "Report":
        """The report with the input size that the model was built for, and whether the weights were trained at it."""
        text = "{} × {}".format(*size)
        if trained and tuple(trained) != tuple(size):
            text += " as given, trained at {} × {}".format(*trained)
        else:
            text += " as trained" if trained else " as given" if given else " of the model, not known from the weights"
        return replace(self, input_size=text)


class Layout(NamedTuple):
    """What decides whether weights fit a model: name, family, and shapes by key of the state dict."""

    name: str
    family: str
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        return cls(model.name, model.family, {key: tuple(value.shape) for key, value in model.state_dict().items()})


class Match(NamedTuple):
    """How a state dict fits a model: the report, the tensors to load, and one line for each problem."""

    report: Report
    tensors: dict[str, Tensor]
    problems: list[str]


def read_state_dict(source: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """Read the tensors of a file or mapping, without wrapper and prefix. No code of the file is run.

    Args:
        source: A file of torch or safetensors, told apart by content; or what was saved in one.

    Returns:
        The tensors by key, not empty.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: The file is damaged, or holds something else than a dict of tensors.
    """
    if isinstance(source, Mapping):
        where, content = "the state dict", source
    else:
        where, content = str(source), read_file(Path(source))
    for _ in range(8):  # wrappers around wrappers; a dict may even hold itself
        if isinstance(content, Mapping) and (wrapper := next((k for k in _WRAPPERS if k in content), None)):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{where} holds {type(content).__name__}, not a dict of tensors; save model.state_dict()")
    if bad := [key for key in content if not isinstance(key, str) or len(key) > 200 or not key.isprintable()]:
        raise CheckpointError(f"{where} has keys that name no tensor: {_listed([ascii(key)[:80] for key in bad])}")
    if others := [f"{key} ({type(value).__name__})" for key, value in content.items() if not _is_dense(value)]:
        raise CheckpointError(
            f"{where} has entries that are not tensors: {_listed(others)}; put the weights under 'state_dict'"
        )
    state = dict(content)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def match(
    state: Mapping[str, Tensor], layout: Layout, targets: Mapping[str, str | Drop], *, trunk: bool = False
) -> Match:
    """Compare `state`, whose keys `targets` renames (see `rename_keys`), with a model. Nothing is loaded.

    `trunk`: the state dict is of a trunk alone; heads and camera embeddings may be missing.
    """
    own = layout.shapes
    origin: dict[str, str] = {}  # key of the model: key of the file
    dropped: dict[str, str] = {}
    problems: list[str] = []
    for key, target in targets.items():
        shape = tuple(state[key].shape)
        if isinstance(target, Drop):
            dropped[key] = target.reason
        elif target in origin:
            problems.append(f"{key} and {origin[target]} are both {target}")
        elif target in own and _squeezed(shape) == _squeezed(own[target]):
            origin[target] = key
        elif _CLASSIFIER.search(target):
            dropped[key] = f"classifier {shape}, {own.get(target, 'none')} in the model"
        else:
            problems.append(
                f"{key} is {shape}, {own[target]} in the model" if target in own else f"{key} is not in the model"
            )
    left = [key for key in own if key not in origin]
    missing = tuple(
        key
        for key in left
        if _CLASSIFIER.search(key) or key.endswith(".num_batches_tracked") or (trunk and _NOT_IN_TRUNKS.search(key))
    )
    problems += [f"{key} is missing" for key in sorted(set(left) - set(missing) - set(targets.values()))]
    renamed = sum(target != key for target, key in origin.items())
    report = Report(layout.name, len(origin), renamed, dropped, missing)
    return Match(report, {target: state[key].reshape(own[target]) for target, key in origin.items()}, problems)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of length 1 do not count: a linear layer on channels is a 1x1 convolution, a token a row of a table."""
    return tuple(side for side in shape if side != 1)


def rename_keys(state: Mapping[str, Tensor], family: str) -> dict[str, str | Drop]:
    """Every key of `state` with the model's own key, by the rules of `family`; our own keys stay as they are."""
    if all(key.startswith(_OWN_PREFIX) for key in state):
        return {key: key for key in state}
    rules = RENAMES[_variant(state, family)]
    targets = {key: rename(key, rules) for key in state}
    twins = {target: key for key, target in targets.items() if re.search(TWINS.get(family, "(?!)"), key)}
    for key, target in targets.items():
        if (twin := twins.get(target, key)) != key:
            targets[key] = Drop(f"{twin} is the same tensor, and upstream loads it later")
    return targets


def _variant(state: Mapping[str, Tensor], family: str) -> str:
    """The key of `RENAMES` whose rules fit a file of `family`."""
    keys = "\n".join(state)
    return next((name for pattern, name in VARIANTS.get(family, ()) if re.search(pattern, keys, re.M)), family)


def holds_trunk(state: Mapping[str, Tensor], family: str) -> bool:
    """Whether a file of `family` holds a trunk as its pretraining left it, not a model of re-identification."""
    own = all(key.startswith(_OWN_PREFIX) for key in state)
    return not own and _variant(state, family).endswith(", trunk")


def rename(key: str, rules: Rules) -> str | Drop:
    """One upstream key with its replacement."""
    for pattern, replacement in rules:
        if isinstance(replacement, Drop):
            if re.search(pattern, key):
                return replacement
        else:
            key = re.sub(pattern, replacement, key)
    return key


class Training(NamedTuple):
    """What weights were trained for, as far as their shapes say; None where they do not."""

    num_classes: int | None = None
    num_cameras: int | None = None
    input_size: tuple[int, int] | None = None  # height, width


def trained_for(
    state: Mapping[str, Tensor],
    family: str,
    shapes_at: Callable[[tuple[int, int]], Mapping[str, tuple[int, ...]]],
    input_size: tuple[int, int],
) -> Training:
    """Read off the shapes of weights what a model must be built for so that all of them fit.

    Args:
        state: The weights, of `family`.
        family: A key of `RENAMES`.
        shapes_at: The shapes of the model's state dict, with any classes and cameras, at an input size.
        input_size: The model's own, tried before the usual ones.

    Returns:
        Classes and cameras; the input size of weights with a position embedding.
    """
    own, found = shapes_at(input_size), Training()
    if holds_trunk(state, family):
        return found
    for key, target in rename_keys(state, family).items():
        shape = tuple(state[key].shape)
        if isinstance(target, Drop) or target not in own:
            continue
        if _squeezed(shape[1:]) == _squeezed(own[target][1:]):  # a classifier of other features says nothing
            found = found._replace(num_classes=shape[0]) if _SCORES.search(target) else found
            found = found._replace(num_cameras=shape[0]) if _CAMERAS.search(target) else found
        if _POSITIONS.search(target):
            sizes = (size for size in (input_size, *_SIZES) if _squeezed(shapes_at(size)[target]) == _squeezed(shape))
            found = found._replace(input_size=next(sizes, None))
    return found


def load(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    where: str = "",
    candidates: Callable[[], Iterable[Layout]] = tuple,
) -> Report:
    """Load weights strictly, all or nothing: a model that they do not fit stays as it is, bit for bit.

    Args:
        model: A `ReIDModel`.
        source: What `read_state_dict` takes.
        where: The file that a mapping came from, for the error.
        candidates: Gives the models that the error compares with.

    Returns:
        What was matched, dropped and missing.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Lists what does not fit, and which of `candidates` fits best; or what `read_state_dict` says.
    """
    state = read_state_dict(source)
    targets, trunk = rename_keys(state, model.family), holds_trunk(state, model.family)
    for key in [key for key, target in targets.items() if isinstance(target, str) and _POSITIONS.search(target)]:
        if trunk and hasattr(model.network.backbone, "fit_positions"):
            state[key] = model.network.backbone.fit_positions(state[key])
    found = match(state, Layout.of(model), targets, trunk=trunk)
    own = model.state_dict()
    if problems := found.problems or [
        f"{key} {wrong}" for key, tensor in found.tensors.items() if (wrong := _wrong_values(tensor, own[key]))
    ]:
        where = where or ("the state dict" if isinstance(source, Mapping) else str(source))
        misfits = len(found.problems) if len(state) < 10 * len(own) else 0  # to compare more would take for ever
        better = _better_fit(state, misfits, candidates()) if misfits else ""
        raise CheckpointError(f"{where} does not fit {model.name}: {_listed(problems)}{better}")
    model.load_state_dict(own | found.tensors)
    return found.report


def _wrong_values(tensor: Tensor, own: Tensor) -> str:
    """Why the values of `tensor` cannot be those of `own`; empty if they can."""
    if tensor.dtype not in (_FLOATS if own.is_floating_point() else _FLOATS + _INTEGERS):
        return f"is {str(tensor.dtype).removeprefix('torch.')}, {str(own.dtype).removeprefix('torch.')} in the model"
    if own.is_meta:
        return ""
    if tensor.is_meta:
        return "has no values (it is on the meta device)"
    finite = tensor.isfinite() & tensor.to(own.dtype).isfinite()
    return "" if finite.all() else f"has {int((~finite).sum()):,} of {finite.numel():,} values that are NaN or infinite"


def _better_fit(state: Mapping[str, Tensor], problems: int, candidates: Iterable[Layout]) -> str:
    renamed = cache(partial(rename_keys, state))  # many models share a family
    fits: dict[int, list[str]] = {}
    for layout in candidates:
        fits.setdefault(len(match(state, layout, renamed(layout.family)).problems), []).append(layout.name)
    best = min(fits, default=problems)
    if best >= problems:
        return ""
    return f"; {'it fits' if best == 0 else 'closest is'} {_listed(fits[best], 3)}"


def _listed(items: list[str] | tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
