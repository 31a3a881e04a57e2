"""Networks that were not written as trunks, as trunks: a user's own, and any model of timm.

Wightman: "PyTorch Image Models", github.com/huggingface/pytorch-image-models. It is imported where it is used, as that
takes seconds.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidlib.errors import unknown_name
from reidlib.models.layers import in_mode

_PEOPLE = (256, 128)  # the usual size of their images


class Wrapped(nn.Module):
    """A network as a trunk: images (B, 3, H, W) to a map (B, channels, h, w) or a vector (B, channels).

    Args:
        net: The network. Its attribute `cam_layer` may name the module where a CAM is read, and `cam_map(output)` turn
            that module's output into a map (B, C, h, w).
        input_size: Height and width of the images.
        shape: What the network gives for one of them; see `output_shape`.
    """

    def __init__(self, net: nn.Module, input_size: tuple[int, int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.input_size, self.channels = net, input_size, shape[0]
        self.gives_map = len(shape) == 3 and min(shape[1:]) > 1

    @property
    def cam_layer(self) -> nn.Module | None:
        """The module whose output is the last map; None if it must be looked for."""
        return getattr(self.net, "cam_layer", self if self.gives_map else None)

    def cam_map(self, activation: Tensor) -> Tensor | None:
        """Give the output of a module as a map (B, C, h, w); None if it does not look like one."""
        if hasattr(self.net, "cam_map"):
            return self.net.cam_map(activation)
        return activation if activation.ndim == 4 and _is_grid(activation.shape[2:], self.input_size) else None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def output_shape(net: nn.Module, input_size: tuple[int, int], name: str) -> tuple[int, ...]:
    """Run a network on two black images to see what it gives, and refuse what is no trunk.

    Args:
        net: Any module; it is left as it was.
        input_size: Height and width of the images.
        name: What errors call it.

    Returns:
        (C, h, w) for a map or (C,) for a vector.

    Raises:
        ValueError: It cannot run, or gives something else.
    """
    device = next((p.device for p in net.parameters()), None)
    x = torch.zeros(2, 3, *input_size, device=device)
    try:
        with torch.no_grad(), in_mode(net, training=False):
            y = net(x)
    except Exception as error:  # whatever a network of others raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{name} cannot take images of {input_size[0]} x {input_size[1]}: {reason}") from error
    given = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
    if not isinstance(y, Tensor) or y.ndim not in (2, 4) or len(y) != 2 or not y.numel() or not y.is_floating_point():
        raise ValueError(f"{name} gives {given}: it must give a map (B, C, h, w) or a vector (B, D) of floats")
    return tuple(y.shape[1:])


def _is_grid(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a map of (h, w) can be one of images of this size: about as slender, and more than a line."""
    h, w = shape
    return min(h, w) > 1 and abs(log(h * size[1] / (w * size[0]))) < log(1.6)


def _grid(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The rows and columns that so many patches lie in."""
    pairs = [(h, count // h) for h in range(2, count) if count % h == 0 and _is_grid((h, count // h), size)]
    return min(pairs, key=lambda pair: abs(log(pair[0] * size[1] / (pair[1] * size[0]))), default=None)


class TimmTrunk(Wrapped):
    """A model of timm without its classifier.

    Models that keep their images' two dimensions (ConvNeXt, EfficientNet, Swin) give their last map, not pooled; those
    of tokens (ViT, EVA, mixers) the vector that timm pools them to: class token or mean, with the norm that follows.

    Args:
        variant: One of `timm.list_models()`, with or without the tag of its weights.
        input_size: Height and width of the images; models that take `img_size` are built for it.

    Raises:
        ValueError: The model does not take images of this size.
    """

    def __init__(self, variant: str, input_size: tuple[int, int]) -> None:
        from timm import create_model, get_pretrained_cfg, is_model_pretrained

        options, shape, channels_last = _fitted(variant, tuple(input_size))
        super().__init__(create_model(variant, **options), tuple(input_size), shape)
        self.channels_last, self.imagenet_options = channels_last, options
        self.imagenet = f"timm/{variant}" if is_model_pretrained(variant) else ""
        cfg = get_pretrained_cfg(variant)
        self.fixed_size = tuple(input_size) if cfg.fixed_input_size else None
        self.min_size = min(cfg.min_input_size[1:]) if cfg.min_input_size else 32

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x)
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def cam_map(self, activation: Tensor) -> Tensor | None:
        if self.gives_map or activation.ndim == 4:
            return super().cam_map(activation) if activation.shape[1] == self.channels else None
        if activation.ndim != 3 or activation.shape[2] != self.channels:
            return None
        declared = getattr(self.net, "num_prefix_tokens", None)  # class token and registers
        for prefix in (0, 1, 2) if declared is None else (declared,):
            if grid := _grid(activation.shape[1] - prefix, self.input_size):
                return activation[:, prefix:].transpose(1, 2).unflatten(2, grid)
        return None

    @property
    def cam_blocks(self) -> Sequence[nn.Module]:
        """The blocks of a network of tokens (ViT, EVA, mixers)."""
        return () if self.gives_map else list(getattr(self.net, "blocks", ()))

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's weights under the keys of this trunk."""
        return {f"net.{key}": tensor for key, tensor in state.items()}


@cache
def _fitted(variant: str, size: tuple[int, int]) -> tuple[dict[str, object], tuple[int, ...], bool]:
    """How timm builds a model for images of a size, what it then gives for one, and whether its channels come last.

    Tried on the meta device: no memory, no random numbers.
    """
    from timm import create_model

    errors = []
    for sized, unpooled in product(({"img_size": size}, {}), ({"global_pool": ""}, {})):
        options = {"num_classes": 0, **sized, **unpooled}
        try:
            with torch.device("meta"):
                net = create_model(variant, **options)
                shape = output_shape(net, size, "it")
        except Exception as error:  # each of timm's thousand models has errors of its own
            errors.append(error)
            continue
        widths = (net.num_features, getattr(net, "head_hidden_size", None))
        if len(shape) == 3 and shape[0] not in widths and shape[2] in widths:
            return options, (shape[2], *shape[:2]), True
        return options, shape, False
    error = next((error for error in errors if not isinstance(error, TypeError)), errors[-1])
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(f"timm/{variant} takes no images of {size[0]} x {size[1]} ({reason})")


class TimmFacts(NamedTuple):
    """What a declaration must know of a model of timm. Mean, std and interpolation are those of its weights."""

    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@cache
def timm_facts(variant: str) -> TimmFacts:
    """Look a model of timm up.

    Args:
        variant: One of `timm.list_models()`, with or without the tag of its weights.

    Returns:
        What is known of it; its input size is 256 x 128 if it takes that, else the one of its weights.

    Raises:
        ValueError: There is no such model, or it gives neither a map nor a vector.
    """
    from timm import get_pretrained_cfg

    check_timm_name(variant)
    cfg = get_pretrained_cfg(variant)
    try:
        _fitted(variant, size := _PEOPLE)
    except ValueError:
        _fitted(variant, size := cfg.input_size[1:])
    return TimmFacts(size, cfg.mean, cfg.std, cfg.interpolation)


def timm_names(*, tags: bool = False) -> list[str]:
    """The names of all models of timm, or with the tags of their weights."""
    from timm import list_models, list_pretrained

    return list_pretrained() if tags else list_models()


def check_timm_name(variant: str) -> None:
    """Raise ValueError with the nearest names if timm has no model, or no tag of weights, of this name."""
    if variant not in (names := timm_names(tags="." in variant)):
        raise unknown_name("model", f"timm/{variant}", [f"timm/{name}" for name in names])
