"""The model zoo: build a model by its name, load published weights into it, count what it costs."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from reidlib.models import checkpoints
from reidlib.models.backbones.wrapped import timm_names
from reidlib.models.checkpoints import CheckpointError, Layout, Report
from reidlib.models.complexity import Complexity, complexity
from reidlib.models.heads import Head, Outputs, RetrievalModule
from reidlib.models.imagenet import with_imagenet
from reidlib.models.weights import find_weights, published_weights
from reidlib.models.wirings import ReIDModel, Sizes
from reidlib.models.zoo import MODELS, TIMM, Model, canonical_name, declaration

__all__ = [
    "MODELS",
    "CheckpointError",
    "Complexity",
    "Head",
    "Model",
    "Outputs",
    "ReIDModel",
    "Report",
    "RetrievalModule",
    "complexity",
    "create_model",
    "list_models",
    "load_checkpoint",
]


def list_models(pattern: str = "") -> list[str]:
    """List the names that `create_model` takes, sorted; nothing is built.

    Args:
        pattern: With "*" and "?" in it, such as "osnet*"; "timm/*convnext*" lists timm's, "timm/*convnext*.*" with the
            tags of their weights. Empty for all but timm's.
    """
    if pattern.startswith(TIMM):
        return sorted(fnmatch.filter([TIMM + name for name in timm_names(tags="." in pattern)], pattern))
    return sorted(fnmatch.filter(MODELS, pattern or "*"))


def create_model(
    name: str,
    *,
    weights: str | Path = "",
    num_classes: int | None = None,
    num_cameras: int | None = None,
    input_size: tuple[int, int] | None = None,
) -> ReIDModel:
    """Build a model with new weights, as its paper initialises them, or with `weights`.

    Args:
        name: One of `list_models()`, an older spelling of it (`zoo.ALIASES`), or "timm/" and a name of timm's.
        weights: A dataset that some were published for ("market1501", "torchreid-2019-03:msmt17-combineall": see
            `weights.py`), "drawn" (in the package, of small OSNets), "imagenet" (torchvision's or timm's for the
            trunk, if no others were published), a file, or a run. They are downloaded if they are not here yet; nothing
            is otherwise.
        num_classes: Identities in training; 0 for a model that only gives features.
        num_cameras: For the models that embed the camera. Both are those of the weights for None, else none.
        input_size: (height, width) other than the published one (or the run's), 32 pixels or more each (75 for the
            Inception networks).

    Returns:
        The model, whose `init` says what it began with and `report` what was loaded and dropped.

    Raises:
        ValueError: The name is unknown (the nearest ones are given), or a size is impossible.
        FileNotFoundError: The weights are not there, or their link needs a browser.
        DownloadError: They cannot be fetched.
        CheckpointError: They do not fit.
    """
    name = canonical_name(name)
    for argument, value in (("num_classes", num_classes), ("num_cameras", num_cameras)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"{argument} is a count of 0 or more, or None; got {value!r}")
    reports: list[Report] = []
    spec, state = declaration(name), None
    if str(weights) == "imagenet" and not any(key.endswith(":imagenet") for key in published_weights(name)):
        spec = replace(spec, backbone=with_imagenet(spec.backbone, name, reports))
    elif weights:
        found = find_weights(name, weights)
        state, file, digest = found.read()
        shapes_at = lambda size: _shapes(replace(spec, family="", input_size=size))  # noqa: E731
        trained = checkpoints.trained_for(state, spec.family, shapes_at, spec.input_size)
        trained = trained._replace(input_size=found.input_size or trained.input_size)
        num_classes = trained.num_classes if num_classes is None else num_classes
        num_cameras = trained.num_cameras if num_cameras is None else num_cameras
        given, input_size = input_size, trained.input_size if input_size is None else input_size
    size = spec.input_size if input_size is None else input_size
    sides = size if isinstance(size, Sequence) and len(size) == 2 else ()
    least = 32
    if sides and all(isinstance(side, int) and side >= least for side in sides):
        model = _build(name, spec, Sizes(num_classes or None, num_cameras or None, tuple(size)))
        least = getattr(model.network, "min_size", least)
        if min(sides) >= least:
            if state is not None:
                report = checkpoints.load(model, state, where=str(file), candidates=_layouts)
                model.report = report.at(model.input_size, trained.input_size, given is not None)
                found.accept(file, digest)
            model.report = reports[0] if reports else model.report
            model.init = str(weights) or model.init
            return model
    raise ValueError(f"input_size is (height, width), {least} or more, such as {spec.input_size}; got {input_size!r}")


def _build(name: str, spec: Model, sizes: Sizes) -> ReIDModel:
    network = spec.wiring(spec.backbone, spec.head, sizes)
    fields = ("family", "mean", "std", "interpolation", "mirrored", "unit_parts")
    return ReIDModel(network, name=name, sizes=sizes, **{field: getattr(spec, field) for field in fields})


def load_checkpoint(model: ReIDModel, source: str | Path | Mapping[str, Tensor]) -> Report:
    """Load weights as the upstream projects publish them, or our own, into a model; strictly, all or nothing.

    Args:
        model: Gets the weights, and the report as its attribute `report`.
        source: A torch or safetensors file, or a state dict; plain or under state_dict, model or net; with or without
            `module.`; of any floating dtype. No code in it is executed.

    Returns:
        What was loaded; classifiers of another size are dropped and named in it.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: It does not fit; the sentence says why, and which models it would fit.
    """
    report = model.report = checkpoints.load(model, source, candidates=_layouts)
    return report


def _layouts() -> Iterator[Layout]:
    """Every model that files are published for, as names and shapes."""
    for name in MODELS:
        spec = declaration(name)
        if checkpoints.RENAMES[spec.family]:
            yield Layout(name, spec.family, _shapes(replace(spec, family="")))


@cache
def _shapes(spec: Model) -> Mapping[str, tuple[int, ...]]:
    """Built once for all models that differ in family only, on the meta device: no memory, no random numbers."""
    sizes = Sizes(751, 6, spec.input_size)
    try:
        with torch.device("meta"):
            return Layout.of(_build("", spec, sizes)).shapes
    except ValueError:  # a network of a user's own that looks at values
        with torch.random.fork_rng():
            return Layout.of(_build("", spec, sizes)).shapes
