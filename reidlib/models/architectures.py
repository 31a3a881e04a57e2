"""How trunk and heads are wired, and the model that the rest of the workbook sees.

Every wiring is called as `wiring(backbone, head, sizes)`, with the two factories of a declaration, and gives a network
with `forward(x, camids=None)`, `feature_dim`, `cam_layer` and `cam_map`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.models.heads import Outputs


class Sizes(NamedTuple):
    """What a network must know of the data."""

    num_classes: int | None
    num_cameras: int | None
    input_size: tuple[int, int]  # height, width


class Network(nn.Module):
    """What every wiring has: a trunk, and where its class activation map is read."""

    def __init__(self, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone()

    @property
    def cam_layer(self) -> nn.Module:
        return getattr(self.backbone, "cam_layer", self.backbone)

    @property
    def min_size(self) -> int:
        """The smallest side of an image that the trunk takes, in pixels."""
        return getattr(self.backbone, "min_size", 32)

    def cam_map(self, activation: Tensor) -> Tensor:
        """The output of `cam_layer` as a map (B, C, h, w); a convolutional trunk's output is one already."""
        return activation


class Baseline(Network):
    """One trunk, one head."""

    def __init__(
        self, backbone: Callable[[], nn.Module], head: Callable[[int, int | None], nn.Module], sizes: Sizes
    ) -> None:
        super().__init__(backbone)
        self.head = head(self.backbone.channels, sizes.num_classes)

    @property
    def feature_dim(self) -> int:
        return self.head.feature_dim

    def forward(self, x: Tensor, camids: Tensor | None = None) -> Tensor | Outputs:
        return self.head(self.backbone(x))


class Branches(Network):
    """A trunk that gives several maps, and a head for each; the feature is theirs in a row.

    `normalise` scales each head's feature to length 1 first.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        head: Callable[[int, int | None], nn.Module],
        sizes: Sizes,
        *,
        normalise: bool = False,
    ) -> None:
        super().__init__(backbone)
        self.heads = nn.ModuleList(head(channels, sizes.num_classes) for channels in self.backbone.channels)
        self.normalise = normalise

    @property
    def feature_dim(self) -> int:
        return sum(head.feature_dim for head in self.heads)

    def forward(self, x: Tensor, camids: Tensor | None = None) -> Tensor | Outputs:
        outs = [head(part) for head, part in zip(self.heads, self.backbone(x), strict=True)]
        if self.training:
            return Outputs([y for out in outs for y in out.logits], [y for out in outs for y in out.embeddings])
        return torch.cat([F.normalize(out, dim=1) if self.normalise else out for out in outs], dim=1)


class ReIDModel(nn.Module):
    """A network with its normalisation in front: what `create_model` returns.

    `model(images, camids=None)`: RGB images (B, 3, H, W), uint8 or float in [0, 1], any memory layout; camids (B,)
    int64 for the models that use the camera. In eval mode: feats (B, feature_dim), float32 (float64 if the model is),
    exactly those that the model's own project ranks by. In training mode: `Outputs`. TypeError or ValueError says what
    is wrong with `images`. `model.network(x, camids)` is the same after normalisation.

    `cam_layer` is the module whose output is the last map; `cam_map(output)` gives it as (B, C, h, w).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        family: str,
        sizes: Sizes,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.family = name, family
        self.num_classes, self.num_cameras, self.input_size = sizes
        self.mean, self.std = mean, std
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def feature_dim(self) -> int:
        return self.network.feature_dim

    @property
    def cam_layer(self) -> nn.Module:
        return self.network.cam_layer

    def cam_map(self, activation: Tensor) -> Tensor:
        return self.network.cam_map(activation)

    def forward(self, images: Tensor, camids: Tensor | None = None) -> Tensor | Outputs:
        out = self.network(self.normalise(images), camids)
        # Under autocast a feature may arrive in half precision; it is ranked in float32 or better.
        return out if self.training or out.dtype == torch.float64 else out.float()

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or float in [0, 1] to the network's own scale and dtype."""
        if images.ndim != 4 or images.shape[1] != 3:
            shape = tuple(images.shape)
            raise ValueError(
                f"{self.name} takes RGB images of shape (B, 3, H, W), got {shape}: permute or unsqueeze them"
            )
        if min(images.shape[2:]) < (least := self.network.min_size):
            size = "{} x {}".format(*images.shape[2:])
            raise ValueError(f"{self.name} takes images of {least} x {least} or more, got {size}: enlarge them")
        if images.dtype == torch.uint8:
            images = images.to(self.pixel_mean.dtype) / 255
        elif not images.is_floating_point():
            raise TypeError(
                f"{self.name} takes images as uint8 or as float in [0, 1], got {images.dtype}: convert them"
            )
        return (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def extra_repr(self) -> str:
        height, width = self.input_size
        return f"name={self.name!r}, input={height}x{width}, feature_dim={self.feature_dim}, classes={self.num_classes}"
