"""Published weights into our models: read safely, rename by rule, load strictly, report.

A family's files are led to our own keys by one ordered list of rules (`RENAMES`), each a regular expression and what
takes its place; a `Drop` in that place leaves the entry out and says why. Besides those, only two kinds of entry may
differ between file and model: classifiers, whose size is the data set's, and `num_batches_tracked`, which files older
than torch 0.4.1 lack. Anything else that is missing, left over or of another shape is an error that names it.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A file that cannot be read as weights, or weights that do not fit the model."""


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

_TORCHREID: Rules = (
    (r"^(fc|last_linear)\.(weight|bias)$", Drop("the library's ImageNet classifier")),
    (r"^classifier\.", "head.classifier."),
    (r"^fc\.", "head.embedding."),
    (r"^fc_(fusion|fuse)\.", "head.embedding."),  # mid-level ResNet
    (r"^fc_x\.", "head.embeddings.0."),  # MLFN
    (r"^fc_s\.", "head.embeddings.1."),
    (r"^classifier_global\.", "heads.0.classifier."),  # HACNN
    (r"^classifier_local\.", "heads.1.classifier."),
    (r"^fc_global\.", "heads.0.embedding."),
    (r"^fc_local\.", "heads.1.embedding."),
    (r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),  # torchvision before 0.2.1 put a dot there
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

_TRANSREID: Rules = (
    _IMAGENET,
    (r"^base\.patch_embed\.proj\.", "backbone.patch."),
    (r"^base\.", "backbone."),
    (r"^b1\.", "last.0."),
    (r"^b2\.", "last.1."),
    (r"^(bottleneck|classifier)\.", r"heads.0.\1."),
    (r"^(bottleneck|classifier)_(\d)\.", r"heads.\2.\1."),
    (r"\.bottleneck\.", ".neck."),
    (r"^", "network."),
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
    "TransReID": ((r"^base\.blocks\.11\.", "last.0.0."), (r"^base\.norm\.", "last.0.1."), *_TRANSREID),
    "TransReID with JPM": (
        (r"^base\.(?:blocks\.11|norm)\.", Drop("upstream runs its copies b1 and b2 instead")),
        *_TRANSREID,
    ),
    # A trunk of torchvision's or timm's, as trained on ImageNet; keys that the trunk has stay as they are.
    "imagenet": (
        (r"^(?:fc|classif(?:ier)?|last_linear|head(?:_dist)?|AuxLogits)\.", Drop("the library's ImageNet classifier")),
        (r"^dist_token$", Drop("DeiT's second token")),
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
}

# Files of a family that have a key like this follow other rules.
VARIANTS = {
    # Upstream orders the branches by iterating over a set: global first, or attentive first.
    "ABD-Net": (r"^branches\.0\.1\.reduction\.", "ABD-Net, branches swapped"),
    "TransReID": (r"^b1\.", "TransReID with JPM"),
}

# Files of a family may hold a tensor twice, under a key like this too. That entry wins: upstream loads it later.
TWINS = {"APNet": r"^base_\d\."}  # its trunk, registered as a whole and in pieces

_WRAPPERS = ("state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_CLASSIFIER = re.compile(r"\bclassifiers?\.")
_SCORES = re.compile(r"\b(classifiers?|scores)\.(.+\.)?weight$")
_CAMERAS = re.compile(r"\bsie_embed$")
_OWN_PREFIX = "network."  # the keys of a ReIDModel's own state dict


@dataclass(frozen=True)
class Report:
    """What a load did. Keys in `dropped` and `kept` are the file's and the model's."""

    model: str
    matched: int  # entries copied into the model
    renamed: int  # of these, under another key
    dropped: dict[str, str] = field(default_factory=dict)  # key in the file: why it was left out
    kept: tuple[str, ...] = ()  # keys of the model that no file entry filled: classifiers, num_batches_tracked

    def __str__(self) -> str:
        text = f"{self.model}: {self.matched} tensors loaded, {self.renamed} of them renamed"
        if self.dropped:
            text += "; dropped " + _listed([f"{key} ({why})" for key, why in self.dropped.items()])
        if self.kept:
            text += "; not in the file, left as they were: " + _listed(self.kept)
        return text


class Layout(NamedTuple):
    """What of a model decides whether weights fit."""

    name: str
    family: str
    shapes: Mapping[str, tuple[int, ...]]  # by key of the state dict

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        return cls(model.name, model.family, {key: tuple(value.shape) for key, value in model.state_dict().items()})


class Match(NamedTuple):
    """How a state dict fits a model: the report, the tensors to load, and one line for each thing wrong."""

    report: Report
    tensors: dict[str, Tensor]
    problems: list[str]


def read_state_dict(source: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a file (torch or safetensors, told apart by content) or of a mapping, without wrapper and prefix.

    No code from the file is run. Raises FileNotFoundError, or CheckpointError with the reason.
    """
    if isinstance(source, Mapping):
        where, loaded = "the state dict", source
    else:
        where, loaded = str(source), _read(Path(source))
    while isinstance(loaded, Mapping) and (wrapper := next((k for k in _WRAPPERS if k in loaded), None)):
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{where} holds {type(loaded).__name__}, not a dict of tensors; save model.state_dict()")
    others = [f"{key} ({type(value).__name__})" for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{where} has entries that are not tensors: {_listed(others)}; put the weights under 'state_dict'"
        )
    state = dict(loaded)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def match(state: Mapping[str, Tensor], layout: Layout, targets: Mapping[str, str | Drop]) -> Match:
    """Compare `state`, led to `targets` (see `lead`), with a model. Nothing is loaded."""
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
        elif target in own and _plain(shape) == _plain(own[target]):
            origin[target] = key
        elif _CLASSIFIER.search(target):
            dropped[key] = f"classifier {shape}, {own.get(target, 'none')} in the model"
        else:
            problems.append(
                f"{key} is {shape}, {own[target]} in the model" if target in own else f"{key} is not in the model"
            )
    left = [key for key in own if key not in origin]
    kept = tuple(key for key in left if _CLASSIFIER.search(key) or key.endswith(".num_batches_tracked"))
    problems += [f"{key} is missing" for key in sorted(set(left) - set(kept) - set(targets.values()))]
    renamed = sum(target != key for target, key in origin.items())
    report = Report(layout.name, len(origin), renamed, dropped, kept)
    return Match(report, {target: state[key].reshape(own[target]) for target, key in origin.items()}, problems)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A linear layer on channels is a 1x1 convolution, and its weight the same numbers: their shapes count as equal."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def lead(state: Mapping[str, Tensor], family: str) -> dict[str, str | Drop]:
    """Every key of `state` to a model's own key, by the rules of `family`; our own keys stay as they are."""
    if all(key.startswith(_OWN_PREFIX) for key in state):
        return {key: key for key in state}
    pattern, variant = VARIANTS.get(family, ("(?!)", family))
    rules = RENAMES[variant if any(re.search(pattern, key) for key in state) else family]
    targets = {key: rename(key, rules) for key in state}
    twins = {target: key for key, target in targets.items() if re.search(TWINS.get(family, "(?!)"), key)}
    for key, target in targets.items():
        if (twin := twins.get(target, key)) != key:
            targets[key] = Drop(f"{twin} is the same tensor, and upstream loads it later")
    return targets


def rename(key: str, rules: Rules) -> str | Drop:
    """One upstream key to ours."""
    for pattern, replacement in rules:
        if isinstance(replacement, Drop):
            if re.search(pattern, key):
                return replacement
        else:
            key = re.sub(pattern, replacement, key)
    return key


def trained_for(state: Mapping[str, Tensor], family: str) -> tuple[int | None, int | None]:
    """How many classes and cameras weights of `family` know, by their shapes; None where nothing shows it."""
    counts = [None, None]
    for key, target in lead(state, family).items():
        for at, pattern in enumerate((_SCORES, _CAMERAS)):
            if not isinstance(target, Drop) and pattern.search(target):
                counts[at] = len(state[key])
    return tuple(counts)


def load(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    where: str = "",
    candidates: Callable[[], Iterable[Layout]] = tuple,
) -> Report:
    """Load strictly, all or nothing. CheckpointError lists what does not fit, and which of `candidates` fits best.

    `where` the tensors of a mapping came from is part of that sentence.
    """
    state = read_state_dict(source)
    found = match(state, Layout.of(model), lead(state, model.family))
    if found.problems:
        where = where or ("the state dict" if isinstance(source, Mapping) else str(source))
        better = _better_fit(state, len(found.problems), candidates())
        raise CheckpointError(f"{where} does not fit {model.name}: {_listed(found.problems)}{better}")
    model.load_state_dict({**model.state_dict(), **found.tensors})
    return found.report


def _better_fit(state: Mapping[str, Tensor], problems: int, candidates: Iterable[Layout]) -> str:
    led = cache(partial(lead, state))  # many models share a family
    fits: dict[int, list[str]] = {}
    for layout in candidates:
        fits.setdefault(len(match(state, layout, led(layout.family)).problems), []).append(layout.name)
    best = min(fits, default=problems)
    if best >= problems:
        return ""
    return f"; {'it fits' if best == 0 else 'closest is'} {_listed(fits[best], 3)}"


def _listed(items: list[str] | tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


# What numpy's scalars need: torchreid files keep the score of their epoch as one. Plain data, no code.
_NUMPY_SCALARS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty; download it again")
    if head.lstrip().startswith(b"<"):
        raise CheckpointError(f"{path} is a web page, not weights; download the file itself, past the page before it")
    try:
        if head[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
            return load_file(path)
        if head[:2] == b"PK":
            _check_zip(path)
        if head[257:262] == b"ustar":
            raise CheckpointError(
                f"{path} is a tar archive: unpack it and load what is in it; or, if torch before 0.1.10 wrote it, save "
                "it again with a torch of that time, as reading it would run code"
            )
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch doubts `encoding`, which Python-2 files need
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(f"{path} is cut off or damaged ({error}); download it again") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} is refused and nothing was run: it holds the Python object {code[1]}, weights are tensors only"
            ) from None
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} cannot be read as weights ({reason}); is it whole, and a state dict?") from error


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):  # its table of contents comes last
        raise CheckpointError(f"{path} is cut off ({path.stat().st_size:,} bytes); download it again")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        inside = _listed(names, 3) or "nothing"
        raise CheckpointError(f"{path} is a zip archive of {inside}: unpack it and load the weights in it")
