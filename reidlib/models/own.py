"""A user's own network as a declaration of the zoo: a plain function, with a BNNeck head put behind it.

`build(num_classes, input_size)` gives a module that takes normalised images (B, 3, H, W) and gives a feature map
(B, C, h, w) or a vector (B, D); the package adds pooling, the neck of Luo et al. ("Bag of Tricks", CVPR workshops 2019)
and the classifier. One that gives a `RetrievalModule` with `feature_dim` and `cam_layer` is taken as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reidlib.models.heads import Head, RetrievalModule
from reidlib.models.layers import in_mode
from reidlib.models.wirings import Factory, Network, Sizes
from reidlib.models.zoo import Model


class OwnNetwork(Network):
    """A module of a user's with a head behind it.

    Args:
        module: Gives a map (B, C, h, w) or a vector (B, D).
        head: Factory of the head, called with channels, num_classes and pool.
        sizes: What the network must know of the data.
        name: The model's name, for messages.
    """

    def __init__(self, module: nn.Module, head: Factory, sizes: Sizes, *, name: str) -> None:
        super().__init__(lambda: module)
        shape = _shape(module, sizes.input_size, name)
        self.head = head(shape[1], sizes.num_classes, pool="avg" if len(shape) == 4 else "none")
        self.is_map = len(shape) == 4

    @property
    def feature_dim(self) -> int:
        return self.head.feature_dim

    @property
    def cam_layer(self) -> nn.Module:
        found = getattr(self.backbone, "cam_layer", None)
        if found is None and not self.is_map:
            raise ValueError("the network gives a vector, not a map: set its cam_layer to the module with the last map")
        return self.backbone if found is None else found

    def features(self, x: Tensor, camids: Tensor | None = None) -> Tensor:
        return self.head.features(self.backbone(x))

    def outputs(self, x: Tensor, camids: Tensor | None = None) -> Any:
        return self.head.outputs(self.backbone(x))


def _shape(module: nn.Module, input_size: tuple[int, int], name: str) -> tuple[int, ...]:
    """The shape that a module gives for two images; ValueError if it is neither a map nor a vector."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.no_grad(), in_mode(module, training=False):
        try:
            out = module(torch.zeros(2, 3, *input_size, device=device))
        except Exception as error:
            size = "{} x {}".format(*input_size)
            raise ValueError(
                f"the network {name} cannot take images of {size}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(out, Tensor) or out.ndim not in (2, 4) or len(out) != 2 or not out.is_floating_point():
        what = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"the network {name} gives {what}: it must give a map (B, C, h, w) or a vector (B, D) of floats"
        )
    return tuple(out.shape)


def as_model(name: str, thing: Any) -> Model:
    """Give the declaration of a user's network.

    Args:
        name: Its name in the zoo.
        thing: A `Model`, or `build(num_classes, input_size)`.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(thing, Model):
        return thing
    if not callable(thing):
        raise ValueError(f"the network {name} is a {type(thing).__name__}: give a function that builds it, or a Model")
    wiring: Callable[..., nn.Module] = partial(_wire, name=name)
    return Model(thing, partial(Head, neck="bn"), family="own", recipe="toy", wiring=wiring)


def _wire(backbone: Factory, head: Factory, sizes: Sizes, *, name: str) -> nn.Module:
    module = backbone(sizes.num_classes, sizes.input_size)
    if not isinstance(module, nn.Module):
        raise ValueError(f"the network {name} is built as a {type(module).__name__}: return an nn.Module")
    return module if isinstance(module, RetrievalModule) else OwnNetwork(module, head, sizes, name=name)
