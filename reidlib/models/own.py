"""A user's own network as a model: checked when it is built, and given the standard head if it has none.

A plain function or class `build(num_classes, input_size)` gives a `torch.nn.Module` that turns normalised images
(B, 3, H, W) into a map (B, C, h, w) or a vector (B, D); pooling, BNNeck and classifier are added. For several heads or
scores of its own it gives a `RetrievalModule` instead, which has `feature_dim`, `features(x, camids=None)` and
`outputs(x, camids=None)`.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from reidlib.models.backbones.wrapped import Wrapped, output_shape
from reidlib.models.heads import Outputs, RetrievalModule
from reidlib.models.layers import in_mode
from reidlib.models.wirings import Baseline, Factory, Sizes


def own_factory(name: str, build: object) -> Callable[[Sizes], nn.Module]:
    """Check that `build` can be called, and give what calls it.

    Args:
        name: The model's name, for errors.
        build: A function or class of `num_classes` (0 for none) and `input_size`, (height, width).

    Raises:
        ValueError: It is something else.
    """
    asked = "a function or class build(num_classes, input_size) that gives a torch.nn.Module"
    if isinstance(build, nn.Module) or not callable(build):
        raise ValueError(f"the network {name} is a {type(build).__name__}: it must be a Model, or {asked}")
    try:
        inspect.signature(build).bind(751, (256, 128))
    except TypeError:
        given = f"{getattr(build, '__name__', 'a function')}{inspect.signature(build)}"
        raise ValueError(f"the network {name} is built by {given}: it must be {asked}") from None

    def factory(sizes: Sizes) -> nn.Module:
        network = build(sizes.num_classes or 0, sizes.input_size)
        if not isinstance(network, nn.Module):
            raise ValueError(f"the network {name} is built as a {type(network).__name__}: return an nn.Module")
        if isinstance(network, RetrievalModule):
            _check(name, network, sizes)
            return network
        return Wrapped(network, sizes.input_size, output_shape(network, sizes.input_size, f"the network {name}"))

    return factory


def own_network(backbone: Callable[[Sizes], nn.Module], head: Factory, sizes: Sizes) -> RetrievalModule:
    """The wiring of a user's network: as it is, or with the head that it lacks."""
    network = backbone(sizes)
    return network if isinstance(network, RetrievalModule) else Baseline(lambda: network, head, sizes)


def _check(name: str, network: RetrievalModule, sizes: Sizes) -> None:
    """ValueError if a network does not keep what the class promises."""
    width, device = getattr(network, "feature_dim", None), next((p.device for p in network.parameters()), None)
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"the network {name} has feature_dim {width!r}: set it to the width of its features")
    x = torch.zeros(2, 3, *sizes.input_size, device=device)
    camids = torch.zeros(2, dtype=torch.int64, device=device)
    with torch.no_grad(), in_mode(network, training=False):
        feats, outputs = network.features(x, camids), network.outputs(x, camids)
    if _shape(feats) != (2, width):
        raise ValueError(f"features() of the network {name} gives {_described(feats)} for two images, not (2, {width})")
    if not isinstance(outputs, Outputs) or not all(isinstance(each, list | tuple) for each in outputs):
        raise ValueError(f"outputs() of the network {name} gives a {type(outputs).__name__}: return Outputs(lists)")
    for field, columns in (("logits", sizes.num_classes), ("embeddings", None)):
        for y in getattr(outputs, field):
            if _shape(y) != (2, columns or (*_shape(y), 0)[1]):
                asked = f"(2, {columns or 'D'})"
                raise ValueError(f"outputs() of the network {name} has {field} of {_described(y)}, not {asked}")
    if not outputs.embeddings:
        raise ValueError(f"outputs() of the network {name} has no embeddings: give at least the features")


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _described(value: object) -> str:
    return f"shape {_shape(value)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
