"""The model zoo: build a model by its name, load published weights into it, count what it costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from reidlib.models import checkpoints
from reidlib.models.checkpoints import CheckpointError, Layout, Report
from reidlib.models.complexity import Complexity, complexity
from reidlib.models.heads import Outputs
from reidlib.models.imagenet import with_imagenet
from reidlib.models.weights import find_weights, published_weights
from reidlib.models.wirings import ReIDModel, Sizes
from reidlib.models.zoo import MODELS, Model, canonical_name

__all__ = [
    "CheckpointError",
    "Complexity",
    "Outputs",
    "ReIDModel",
    "Report",
    "complexity",
    "create_model",
    "list_models",
    "load_checkpoint",
]


def list_models() -> list[str]:
    """The names that `create_model` knows, sorted; nothing is built."""
    return sorted(MODELS)


def create_model(
    name: str,
    *,
    weights: str | Path = "",
    num_classes: int | None = None,
    num_cameras: int | None = None,
    input_size: tuple[int, int] | None = None,
) -> ReIDModel:
    """Build a model with fresh weights, as its paper initialises them, or with `weights`.

    `name`: one of `list_models()`, or an older spelling of it (`zoo.ALIASES`). `weights`: a data set that some were
    published for ("market1501", "torchreid-2019-03:msmt17-combineall": see `weights.py`), "imagenet" (torchvision's
    and timm's for the trunk, where no others were published), a file, or a run; they are downloaded where they are not
    here yet, nothing is otherwise. `num_classes`: identities in training; 0 for a model that only gives features.
    `num_cameras`: for the models that embed the camera. Both are those of the weights where None is given, else none.
    `input_size`: (height, width) other than the published one (or the run's), 32 pixels or more each (75 for the
    Inception networks). `model.init` says what it began with, `model.report` what was loaded and dropped.

    ValueError for an unknown name (with the nearest ones) or impossible sizes, FileNotFoundError for weights that are
    not there or ask for a person, DownloadError, or CheckpointError where they do not fit.
    """
    name = canonical_name(name)
    for argument, value in (("num_classes", num_classes), ("num_cameras", num_cameras)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"{argument} is a count of 0 or more, or None; got {value!r}")
    spec, state, reports = MODELS[name], None, []
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
        least = model.network.min_size
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
    return ReIDModel(network, name=name, family=spec.family, sizes=sizes, mean=spec.mean, std=spec.std)


def load_checkpoint(model: ReIDModel, source: str | Path | Mapping[str, Tensor]) -> Report:
    """Load weights as the upstream projects publish them, or our own, into `model`; strictly, all or nothing.

    `source`: a torch or safetensors file, or a state dict; plain or under state_dict, model or net; with or without
    `module.`; of any floating dtype. Classifiers of another size are dropped and named in the report. Raises
    FileNotFoundError, or CheckpointError that lists what does not fit and the models that would. No code in it is run.
    """
    model.report = checkpoints.load(model, source, candidates=_layouts)
    return model.report


def _layouts() -> Iterator[Layout]:
    """Every model in turn, as names and shapes."""
    for name, spec in MODELS.items():
        yield Layout(name, spec.family, _shapes(replace(spec, family="")))


@cache
def _shapes(spec: Model) -> Mapping[str, tuple[int, ...]]:
    """Built once for all models that differ in family only, on the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return Layout.of(_build("", spec, Sizes(751, 6, spec.input_size))).shapes
