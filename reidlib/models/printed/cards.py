"""The card of a model: its parts, what it sees and gives, where its CAM is read, what it costs, what was published.

Everything is read off the model itself, built and run on the meta device: no memory, no weights, no download.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reidlib.models import Complexity, complexity, create_model
from reidlib.models.heads import RetrievalModule
from reidlib.models.printed.costs import CAMERAS, IDENTITIES, Figure, figures
from reidlib.models.printed.published import SOURCES, Published, published
from reidlib.models.weights import Weights, published_weights
from reidlib.models.wirings import ReIDModel
from reidlib.models.zoo import MODELS, declaration
from reidlib.scores import NAMES


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


class Section(NamedTuple):
    """A table of a card, for whichever way it is shown: every cell is text; a cell that is an address is a link."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sections(card: Card, recipe: str = "") -> list[Section]:
    """A card as tables, the empty ones left out.

    Args:
        card: From `card`.
        recipe: What is said of the settings of `card.recipe`, which this room does not know.

    Returns:
        Facts, parts, each printed figure beside what is counted here, results, notes and weights.
    """
    facts = [
        ("loads the files of", card.family),
        ("same network as", ", ".join(card.same_network) or "no other"),
        ("input", f"RGB {_shape(card.input_size)}, mean {card.mean}, std {card.std}"),
        ("feature", f"{card.feature_dim} values"),
        ("cost", f"{card.cost.params / 1e6:.3f} M parameters, {card.cost.macs / 1e9:.3f} G multiply-adds an image"),
        ("CAM", f"read at {card.cam_layer}: {_shape(card.cam_map)}"),
        ("recipe", card.recipe + f": {recipe}" * bool(recipe)),
    ]
    parts = [(part.name, part.kind, _shape(part.output), f"{part.params:,}".replace(",", " ")) for part in card.parts]
    printed = [
        (f.table, text, f"{here:.3f}", unit, why or "as here")
        for f in card.figures
        for text, here, unit, why in (
            (f.printed_params, f.params / 1e6, "M parameters", f.params_why),
            (f.printed_macs, f.macs / 1e9, "G multiply-adds", f.macs_why),
        )
        if text
    ]
    results = [
        (
            row.table,
            row.trained_on + " (all images)" * row.combineall,
            row.tested_on,
            ", ".join(filter(None, (row.loss, row.protocol))),
            *(str(row.rank1), str(row.mAP)),
        )
        for row in card.results
        if row.rank1 is not None
    ]
    weights = [
        (f"weights={w.name!r}", f"open the link, keep it as {w.file_name}" if w.by_hand else w.file_name, w.row.link)
        for w in card.weights
    ]
    tables = [
        Section("", ("", ""), facts),
        Section("parts", ("part", "kind", "output", f"parameters at {IDENTITIES['market1501']} identities"), parts),
        Section("printed and counted", ("source", "printed", "here", "of", ""), printed),
        Section("results", ("source", "trained on", "tested on", "how", NAMES["rank1"], NAMES["mAP"]), results),
        Section("notes", ("source", "note"), list(dict.fromkeys((r.table, r.note) for r in card.results if r.note))),
        Section("weights", (f"reidlib.create_model({card.name!r}, …)", "file", "link"), weights),
    ]
    return [table for table in tables if table.rows]


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


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


def _shapes(model: ReIDModel) -> tuple[dict[nn.Module, tuple[int, ...]], str, tuple[int, ...]]:
    """The output of every module that runs for one image, without the batch; where a CAM is read, and its map."""
    outputs: dict[nn.Module, Any] = {}
    handles = [module.register_forward_hook(lambda m, _, out: outputs.update({m: out})) for module in model.modules()]
    model(torch.zeros(1, 3, *model.input_size, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    for handle in handles:
        handle.remove()
    shapes = {module: tuple(out.shape[1:]) for module, out in outputs.items() if isinstance(out, Tensor)}
    layer: nn.Module | None = model.network.cam_layer
    if layer is None:  # it is found by gradients, which have no values here
        return shapes, "", ()
    name = next(key for key, module in model.named_modules() if module is layer)
    activation = model.cam_map(outputs[layer])
    return shapes, name, tuple(activation.shape[1:]) if isinstance(activation, Tensor) else ()


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
