"""The card of a model: its parts, what it sees and gives, where its CAM is read, what it costs, what was published.

Everything is read off the model itself, built and run on the meta device: no memory, no weights, no download.
"""

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidlib.models import Complexity, complexity, create_model
from reidlib.models.heads import RetrievalModule
from reidlib.models.printed.costs import CAMERAS, IDENTITIES, Figure, figures
from reidlib.models.printed.published import SOURCES, Published, published
from reidlib.models.weights import Weights, published_weights
from reidlib.models.zoo import MODELS, declaration


class Part(NamedTuple):
    """A module of the network, or several alike in a row: `params` are those of all.

    `output` is the shape for one image, () where it is called by its parts only.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    params: int


class Card(NamedTuple):
    """What there is to know of a model, for Market-1501's people and cameras; sizes are (height, width)."""

    name: str
    family: str
    same_network: tuple[str, ...]  # the names that differ in weights only
    recipe: str  # the training settings that it was published with
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feature_dim: int
    cost: Complexity
    cam_layer: str
    cam_map: tuple[int, ...]  # channels, height, width; () if it is found only once the network has weights
    parts: tuple[Part, ...]
    figures: tuple[Figure, ...]
    results: tuple[Published, ...]
    weights: tuple[Weights, ...]  # newest table first


def card(name: str) -> Card:
    """The card of one of `list_models()`, or of an older spelling; ValueError for an unknown name."""
    with torch.device("meta"):
        model = create_model(name, num_classes=IDENTITIES["market1501"], num_cameras=CAMERAS).eval()
    shapes, cam_name, cam_map = _shapes(model)
    return Card(
        *(model.name, model.family, same_network(model.name), declaration(model.name).recipe),
        *(model.input_size, model.mean, model.std, model.feature_dim, complexity(model)),
        *(cam_name, cam_map, tuple(_parts(model.network, shapes))),
        *(figures(model.name), published(model.name), tuple(sorted(published_weights(model.name).values(), key=_age))),
    )


def _age(weights: Weights) -> int:
    return -list(SOURCES).index(weights.row.table)


def same_network(name: str) -> tuple[str, ...]:
    """The other names that are declared with the same trunk, head and wiring, whatever the project and its weights."""

    def network(key: str) -> object:
        spec = declaration(key)
        return _declared((spec.wiring, spec.backbone, spec.head, spec.input_size))

    return tuple(other for other in MODELS if other != name and network(other) == network(name))


def _declared(value: object) -> object:
    """Partial functions as what they hold, since two of them are never equal; where weights start from is left out."""
    if isinstance(value, partial):
        named = sorted((key, _declared(entry)) for key, entry in value.keywords.items() if key != "imagenet")
        return value.func, _declared(value.args), tuple(named)
    return tuple(map(_declared, value)) if isinstance(value, tuple) else value


def _shapes(model: nn.Module) -> tuple[dict[nn.Module, tuple[int, ...]], str, tuple[int, ...]]:
    """The output of every module that runs for one image, without the batch; where a CAM is read, and its map."""
    outputs: dict[nn.Module, object] = {}
    handles = [module.register_forward_hook(lambda m, _, out: outputs.update({m: out})) for module in model.modules()]
    model(torch.zeros(1, 3, *model.input_size, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    for handle in handles:
        handle.remove()
    shapes = {module: tuple(out.shape[1:]) for module, out in outputs.items() if isinstance(out, Tensor)}
    layer = model.network.cam_layer
    if layer is None:  # it is found by gradients, which have no values here
        return shapes, "", ()
    name = next(key for key, module in model.named_modules() if module is layer)
    return shapes, name, tuple(model.cam_map(outputs[layer]).shape[1:])


def _parts(network: nn.Module, shapes: dict[nn.Module, tuple[int, ...]]) -> Iterator[Part]:
    """The network's modules, each with its own; those without parameters are left out."""
    for name, module in network.named_children():
        inner = [(f"{name}.{key}", part) for key, part in module.named_children()]
        named = [(key, _part(part, shapes)) for key, part in ((name, module), *inner)]
        for (kind, output, params), group in groupby(named, key=lambda entry: entry[1]):
            keys = [key for key, _ in group]
            if params:
                last = f" … {keys[-1].rpartition('.')[2]}" if len(keys) > 1 else ""
                times = f"{len(keys)} × " if len(keys) > 1 else ""
                yield Part(keys[0] + last, times + kind, output, len(keys) * params)


def _part(module: nn.Module, shapes: dict[nn.Module, tuple[int, ...]]) -> tuple[str, tuple[int, ...], int]:
    kind = type(module).__name__.lstrip("_")
    width = (
        (module.feature_dim,) if isinstance(module, RetrievalModule) else ()
    )  # a head is not called: its methods are
    return kind, shapes.get(module, width), sum(p.numel() for p in module.parameters())
