"""How trunk and heads are wired, and the model that the rest of the workbook sees.

Every wiring is called as `wiring(backbone, head, sizes)`, with the two factories of a declaration, and gives a network
of the class `Network`: `features(x, camids=None)`, `outputs(x, camids=None)`, `feature_dim`, `branches`, `cam_layer`,
`cam_map`, `cam_blocks`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.models.heads import Outputs, RetrievalModule
from reidlib.models.layers import ChannelSelfAttention, fold_norms, in_mode, init_weights, stripes

if TYPE_CHECKING:
    from reidlib.models.checkpoints import Report

Factory = Callable[..., Any]  # gives a module with the attributes that its wiring reads, such as `channels`


class Sizes(NamedTuple):
    """What a network must know of the data."""

    num_classes: int | None
    num_cameras: int | None
    input_size: tuple[int, int]  # height, width


class Network(RetrievalModule):
    """The base of every wiring: a trunk, and where its class activation map is read.

    A wiring defines `features(x, camids=None)` and `outputs(x, camids=None)` for normalised images (B, 3, H, W) and
    camids (B,) int64, and has its `head` or `heads`.
    """

    def __init__(self, backbone: Factory) -> None:
        super().__init__()
        self.backbone = backbone()
        if not hasattr(self.backbone, "channels"):
            kind = type(self.backbone).__name__
            raise ValueError(f"the backbone {kind} has no attribute `channels`: set it to the width of what it gives")

    def forward(self, x: Tensor, camids: Tensor | None = None) -> Tensor | Outputs:
        return super().forward(x, camids)

    @property
    def cam_layer(self) -> nn.Module | None:
        """The module whose output is the last map; None if it must be looked for."""
        return getattr(self.backbone, "cam_layer", self.backbone)

    def cam_map(self, activation: Tensor) -> Tensor | None:
        """The output of `cam_layer` as a map (B, C, h, w); a convolutional trunk's output is one already."""
        return self.backbone.cam_map(activation) if hasattr(self.backbone, "cam_map") else activation

    @property
    def cam_blocks(self) -> Sequence[nn.Module]:
        """A transformer's blocks whose outputs are maps for `cam_map`; empty for other networks."""
        return getattr(self.backbone, "cam_blocks", ())

    @property
    def branches(self) -> dict[str, slice]:
        """Name of a branch → its columns of the feature; empty for a network of one branch."""
        return {}

    @property
    def min_size(self) -> int:
        """The smallest side of an image that the trunk takes, in pixels."""
        return getattr(self.backbone, "min_size", 32)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only (height, width) that the trunk takes; None if it takes any."""
        return getattr(self.backbone, "fixed_size", None)


class Baseline(Network):
    """One trunk, one head."""

    def __init__(self, backbone: Factory, head: Factory, sizes: Sizes) -> None:
        super().__init__(backbone)
        self.head = head(self.backbone.channels, sizes.num_classes)

    @property
    def feature_dim(self) -> int:
        return self.head.feature_dim

    def features(self, x: Tensor, camids: Tensor | None = None) -> Tensor:
        return self.head.features(self.backbone(x))

    def outputs(self, x: Tensor, camids: Tensor | None = None) -> Outputs:
        return self.head.outputs(self.backbone(x))


class Sized(Baseline):
    """One trunk, whose factory is called with the size of the images, and one head."""

    def __init__(self, backbone: Factory, head: Factory, sizes: Sizes) -> None:
        super().__init__(partial(backbone, sizes.input_size), head, sizes)


class Branches(Network):
    """A trunk that gives several maps, and a head for each; the feature is theirs in a row.

    Args:
        backbone: Factory of the trunk, whose `channels` is a tuple; it may have names for its maps, `branch_names`.
        head: One factory for all maps, or a tuple of one each.
        sizes: What the network must know of the data.
        normalise: Scale each head's feature to length 1 first.
    """

    def __init__(
        self, backbone: Factory, head: Factory | tuple[Factory, ...], sizes: Sizes, *, normalise: bool = False
    ) -> None:
        super().__init__(backbone)
        channels = self.backbone.channels
        heads = head if isinstance(head, tuple) else (head,) * len(channels)
        self.heads = nn.ModuleList(head(c, sizes.num_classes) for head, c in zip(heads, channels, strict=True))
        self.normalise = normalise

    @property
    def feature_dim(self) -> int:
        widths: list[int] = [int(head.feature_dim) for head in self.heads]
        return sum(widths)

    @property
    def branches(self) -> dict[str, slice]:
        names = getattr(self.backbone, "branch_names", None) or [str(i + 1) for i in range(len(self.heads))]
        ends = list(accumulate(int(head.feature_dim) for head in self.heads))
        return {name: slice(start, end) for name, start, end in zip(names, [0, *ends], ends, strict=False)}

    def maps(self, x: Tensor, camids: Tensor | None) -> Sequence[Tensor]:
        """Give what each head is called with."""
        return self.backbone(x)

    def features(self, x: Tensor, camids: Tensor | None = None) -> Tensor:
        feats = [head.features(part) for head, part in zip(self.heads, self.maps(x, camids), strict=True)]
        return torch.cat([F.normalize(y, dim=1) if self.normalise else y for y in feats], dim=1)

    def outputs(self, x: Tensor, camids: Tensor | None = None) -> Outputs:
        return self.join(self.maps(x, camids))

    def join(self, maps: Sequence[Tensor]) -> Outputs:
        """Put the outputs of all heads into one."""
        outs = [head.outputs(part) for head, part in zip(self.heads, maps, strict=True)]
        return Outputs(*([y for ys in each for y in ys] for each in zip(*outs, strict=True)))


class MGN(Branches):
    """Multiple granularities: the whole map, halves and thirds, from three copies of the trunk's end.

    Wang, Yuan, Chen, Li, Zhou: "Learning Discriminative Features with Multiple Granularities for Person
    Re-Identification", ACM MM 2018, arXiv 1804.01438. As FastReID has it, all copies have stride 1 in the last stage,
    and 16 rows are cut into 6, 6 and 4. Eight heads: the three whole maps, halves of the second, thirds of the third.
    """

    def __init__(self, backbone: Factory, head: Factory, sizes: Sizes) -> None:
        super().__init__(lambda: _ThreeEnds(backbone()), head, sizes)

    def maps(self, x: Tensor, camids: Tensor | None) -> Sequence[Tensor]:
        b1, b2, b3 = self.backbone(x)
        return b1, b2, b3, *stripes(b2, 2), *stripes(b3, 3)

    def outputs(self, x: Tensor, camids: Tensor | None = None) -> Outputs:
        out = super().outputs(x, camids)
        *whole, b21, b22, b31, b32, b33 = out.embeddings
        # As in FastReID metric losses see the stripes of a branch together.
        return out._replace(embeddings=[*whole, torch.cat([b21, b22], dim=1), torch.cat([b31, b32, b33], dim=1)])


class _ThreeEnds(nn.Module):
    """A trunk with three copies of all that follows the first block of `stage`, its third."""

    def __init__(self, trunk: Any, stage: str = "layer3") -> None:
        super().__init__()
        names, parts = zip(*trunk.named_children(), strict=True)
        at = names.index(stage)
        first, *rest = parts[at]
        self.common = nn.Sequential(*parts[:at], first)
        end = nn.Sequential(nn.Sequential(*rest), *parts[at + 1 :])
        self.branches = nn.ModuleDict({name: copy.deepcopy(end) for name in ("b1", "b2", "b3")})
        self.channels = (trunk.channels,) * 8
        self.branch_names = ("whole 1", "whole 2", "whole 3", "half 1", "half 2", "third 1", "third 2", "third 3")
        self.cam_layer = nn.Identity()  # sees the maps of all branches

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        x = self.common(x)
        maps = self.cam_layer(torch.cat([branch(x) for branch in self.branches.values()], dim=1))  # (B, 3 * C, h, w)
        return maps.chunk(3, dim=1)


class LightMBN(Branches):
    """A global branch with drop block, a partial one (whole and halves) and one of the two halves of the channels.

    Herzog, Ji, Teepe, Hörmann, Gilg, Rigoll: "Lightweight Multi-Branch Network for Person Re-Identification", ICIP
    2021, arXiv 2101.10774. The feature is upstream's: seven parts of 512, channel by channel, so that a part is every
    seventh number. `head` is called with `pool`, and with `reduce` for the five parts that are reduced.

    Args:
        backbone: Factory of an OSNet or a ResNet.
        head: Factory of the heads.
        sizes: What the network must know of the data.
        stage: Name of the stage of the trunk after whose first block the branches part.
        global_stride: 2 for a last stage of the global branch that strides where the other two do not.
        pool: How the global branch and the halves of the channels are pooled: "avg", or "max" as in upstream's ResNet.
        width: Of each part.
    """

    def __init__(
        self,
        backbone: Factory,
        head: Factory,
        sizes: Sizes,
        *,
        stage: str = "conv3",
        global_stride: int = 1,
        pool: str = "avg",
        width: int = 512,
    ) -> None:
        Network.__init__(self, lambda: _ThreeEnds(backbone(), stage))
        ends, channels = self.backbone.branches, self.backbone.channels[0]
        self.drop_block = copy.deepcopy(ends["b1"][1][-1])  # one more of the last stage's blocks
        self.drop_block.apply(init_weights)
        if global_stride == 2:
            first = ends["b1"][1][0]
            first.conv2.stride = first.downsample[0].stride = (2, 2)
        self.drop = DropRows()
        self.shared = nn.Sequential(
            nn.Conv2d(channels // 2, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.shared.apply(init_weights)
        reduced = partial(head, channels, sizes.num_classes, reduce=width)
        self.heads = nn.ModuleList(reduced(pool=each) for each in (pool, "max", "max", "avg", "avg"))
        self.heads.extend(head(width, sizes.num_classes, pool="avg") for _ in range(2))
        self.channel_pool, self.normalise = self.heads[0].pool, False

    @property
    def branches(self) -> dict[str, slice]:
        names = ("global", "global, dropped", "partial", "upper half", "lower half", "channels 1", "channels 2")
        return {name: slice(part, None, len(self.heads)) for part, name in enumerate(names)}

    def maps(self, x: Tensor, camids: Tensor | None) -> Sequence[Tensor]:
        x = self.backbone.common(x)
        whole, partial_map, channels = (branch(x) for branch in self.backbone.branches.values())
        whole, partial_map = self.drop_block(whole), self.backbone.cam_layer(partial_map)
        halves = [self.shared(half) for half in self.channel_pool(channels).chunk(2, dim=1)]
        return whole, self.drop(whole), partial_map, *stripes(partial_map, 2), *halves

    def features(self, x: Tensor, camids: Tensor | None = None) -> Tensor:
        return super().features(x, camids).unflatten(1, (len(self.heads), -1)).transpose(1, 2).flatten(1)


class DropRows(nn.Module):
    """In training, zeroes the rows of each map (B, C, h, w) that hold its most active places: `share` of all rows.

    Quispe, Pedrini: "Top-DB-Net: Top DropBlock for Activation Enhancement in Person Re-Identification", ICPR 2020,
    arXiv 2010.05435.
    """

    def __init__(self, share: float = 0.33) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        activity = x.square().sum(1).amax(2)  # (B, h)
        dropped = activity.topk(round(self.share * x.shape[2])).indices
        return x * torch.ones_like(activity).scatter(1, dropped, 0.0)[:, None, :, None]


class CLIPReID(Branches):
    """CLIP's image encoder of either kind: its last feature, and the one projected beside the text's.

    Li, Sun, Li: "CLIP-ReID", AAAI 2023, arXiv 2211.13977. `backbone` is called with `input_size` and `num_cameras`, and
    gives the feature before the last block or stage, too, which metric losses see.
    """

    def __init__(self, backbone: Factory, head: Factory, sizes: Sizes) -> None:
        super().__init__(partial(backbone, sizes.input_size, sizes.num_cameras), head, sizes)

    @property
    def branches(self) -> dict[str, slice]:
        return dict(zip(("encoder", "projected"), super().branches.values(), strict=True))

    def maps(self, x: Tensor, camids: Tensor | None) -> Sequence[Tensor]:
        return self.backbone(x, camids)[1:]

    def outputs(self, x: Tensor, camids: Tensor | None = None) -> Outputs:
        before, *maps = self.backbone(x, camids)
        out = self.join(maps)
        return out._replace(embeddings=[before, *out.embeddings])


class ABD(Branches):
    """Attentive but diverse: a global branch and an attentive one, on a trunk with attention after its first stage.

    Chen, Ding, Xie, et al.: "ABD-Net: Attentive but Diverse Person Re-Identification", ICCV 2019, arXiv 1908.01114.
    `head` are the two branches' heads; each branch has a copy of the trunk's last stage.
    """

    def __init__(self, backbone: Factory, head: tuple[Factory, Factory], sizes: Sizes) -> None:
        super().__init__(lambda: _TwoEnds(backbone()), head, sizes)

    def maps(self, x: Tensor, camids: Tensor | None) -> Sequence[Tensor]:
        return self.backbone(x)[1:]

    def outputs(self, x: Tensor, camids: Tensor | None = None) -> Outputs:
        attended, *maps = self.backbone(x)
        out = self.join(maps)
        # Upstream weighs the penalty on this map by 0.01, and what is penalised is quadratic in the map.
        return out._replace(maps=[0.1 * attended, *out.maps])


class _TwoEnds(nn.Module):
    """A trunk that can be `cut`, with channel attention after its first stage, and its last stage twice."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.shallow, self.middle, end = trunk.cut()
        self.attention = ChannelSelfAttention()
        self.branches = nn.ModuleList(copy.deepcopy(end) for _ in range(2))
        self.channels, self.branch_names = (trunk.channels,) * 2, ("global", "attentive")
        self.cam_layer = nn.Identity()  # sees the maps of both branches

    def forward(self, x: Tensor) -> list[Tensor]:
        attended = self.attention(self.shallow(x))
        x = self.middle(attended)
        maps = self.cam_layer(torch.cat([branch(x) for branch in self.branches], dim=1))  # (B, 2 * C, h, w)
        return [attended, *maps.chunk(2, dim=1)]


class TransReID(Branches):
    """A vision transformer's class token, and with `parts` one more for each shuffled part of the patches (JPM).

    He et al.: "TransReID: Transformer-based Object Re-Identification", ICCV 2021, arXiv 2102.04378.
    `backbone` is called with `input_size` and `num_cameras`, and gives tokens. The last block and norm exist once for
    the whole and once for all parts. `normalise` scales the feature of each head to length 1. The head of a trunk with
    several tokens in front of the patches is called with all of them, (B, prefix, C).
    """

    def __init__(
        self, backbone: Factory, head: Factory, sizes: Sizes, *, parts: int = 0, normalise: bool = False
    ) -> None:
        Network.__init__(self, lambda: backbone(sizes.input_size, sizes.num_cameras))
        last = self.backbone.last
        del self.backbone.last
        self.parts, self.normalise = parts, normalise
        self.last = nn.ModuleList(copy.deepcopy(last) for _ in range(2 if parts else 1))
        self.heads = nn.ModuleList(head(self.backbone.channels, sizes.num_classes) for _ in range(1 + parts))

    @property
    def branches(self) -> dict[str, slice]:
        names = ["whole", *(f"part {i + 1}" for i in range(self.parts))]
        return dict(zip(names, super().branches.values(), strict=True)) if self.parts else {}

    def maps(self, x: Tensor, camids: Tensor | None) -> Sequence[Tensor]:
        tokens = self.backbone(x, camids)  # (B, prefix + N, C)
        whole = self.last[0](tokens)[:, : self.backbone.prefix]
        whole = whole[:, 0] if self.backbone.prefix == 1 else whole
        if not self.parts:
            return [whole]
        patches = jigsaw(tokens[:, 1:], self.parts)  # (B, parts, N // parts, C)
        tokens = torch.cat([tokens[:, None, :1].expand(-1, self.parts, -1, -1), patches], dim=2)
        parts = self.last[1](tokens.flatten(0, 1))[:, 0].unflatten(0, (-1, self.parts))
        return [whole, *parts.unbind(1)]

    def features(self, x: Tensor, camids: Tensor | None = None) -> Tensor:
        feats = super().features(x, camids)
        if not self.parts:
            return feats
        whole, parts = feats.tensor_split([self.backbone.channels], dim=1)
        return torch.cat([whole, parts / self.parts], dim=1)  # all parts together weigh as much as the whole


def jigsaw(patches: Tensor, parts: int, *, shift: int = 4) -> Tensor:
    """TransReID's shift and shuffle: (B, N, C) to `parts` runs of patches, (B, parts, N // parts, C).

    The paper shifts by 5; its code counts the class token among them, so the published weights want 4. The second half
    is then interleaved with the first, and what is left at the end is dropped. An odd number of patches is made even by
    the last but one, again.
    """
    length = patches.shape[1] // parts
    patches = patches.roll(-shift, dims=1)
    if patches.shape[1] % 2:
        patches = torch.cat([patches, patches[:, -2:-1]], dim=1)
    patches = patches.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return patches[:, : parts * length].unflatten(1, (parts, length))


class ReIDModel(nn.Module):
    """A network with its normalisation in front: what `create_model` returns.

    Call it with RGB images (B, 3, H, W), uint8 or float in [0, 1], of any memory layout, and for models that use the
    camera with camids (B,) int64. In eval mode it gives feats (B, feature_dim), float32 (float64 if the model is),
    exactly those that the model's own project ranks by; in training mode `Outputs`.

    Attributes:
        network: The network behind the normalisation: `network(x, camids)`, and its `features` and `outputs`.
        name: The model's name, `family`: the project whose files it loads.
        init: The weights that it was built with, by their name; "random" for none.
        report: What the last load of weights did, a `checkpoints.Report`; None before one.
        num_classes, num_cameras, input_size: What it was built for; input_size is (height, width).
        mean, std: Of the RGB channels in [0, 1].
        interpolation: How images were resized for its published weights; what resizes them is the loader.
        mirrored, unit_parts: What its project does with the features before ranking, which is left to
            `evaluation.extract_features`: the mean with those of the mirror image, so many parts scaled to length 1.
        feature_dim: Width of the features.
        cam_layer: The module whose output is the last map; `cam_map(output)` gives it as (B, C, h, w).
        cam_blocks: A transformer's blocks, whose outputs `cam_map` takes too; empty for other networks.
        branches: Name of a branch → its columns of the feature; empty for a network of one branch.

    Raises:
        TypeError, ValueError: The images are not as described, or too small.
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
        interpolation: str = "bilinear",
        mirrored: bool = False,
        unit_parts: int = 1,
    ) -> None:
        super().__init__()
        self.network: Any = network  # a Network, or a user's own module with its methods
        self.name, self.family = name, family
        self.init = "random"  # the weights that it was built with, by their name
        self.report: Report | None = None  # what the last load of weights did: a checkpoints.Report
        self.num_classes, self.num_cameras, self.input_size = sizes
        self.mean, self.std, self.interpolation = mean, std, interpolation
        self.mirrored, self.unit_parts = mirrored, unit_parts
        self._cam_name = ""  # of the module that `cam_layer` found
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def feature_dim(self) -> int:
        return self.network.feature_dim

    @property
    def branches(self) -> dict[str, slice]:
        return getattr(self.network, "branches", {})

    @property
    def cam_blocks(self) -> Sequence[nn.Module]:
        return getattr(self.network, "cam_blocks", ())

    @property
    def cam_layer(self) -> nn.Module:
        """The module whose output is the last map. ValueError if the features depend on no map."""
        if (layer := getattr(self.network, "cam_layer", None)) is not None:
            return layer
        self._cam_name = self._cam_name or self._last_map()
        return self.network.get_submodule(self._cam_name)

    def cam_map(self, activation: Tensor) -> Tensor | None:
        """Give the output of `cam_layer` as a map (B, C, h, w)."""
        if hasattr(self.network, "cam_map"):
            return self.network.cam_map(activation)
        return activation if activation.ndim == 4 and min(activation.shape[2:]) > 1 else None

    def _last_map(self) -> str:
        """The name of the module that is the last to give a map that the features depend on."""
        names = {module: name for name, module in self.network.named_modules()}
        given: list[tuple[str, Tensor]] = []

        def keep(module: nn.Module, inputs: object, output: object) -> None:
            projects = isinstance(module, nn.Linear)  # as attention does for itself
            if isinstance(output, Tensor) and not projects and self.cam_map(output) is not None:
                given.append((names[module], output))

        handles = [module.register_forward_hook(keep) for module in names]
        try:
            with torch.inference_mode(False), torch.enable_grad(), in_mode(self, training=False):
                pixels = self.pixel_mean.new_ones(1, 3, *self.input_size).requires_grad_()
                feats = self.network.features(pixels)[0]
                length = (feats * torch.linspace(0, 1, len(feats), device=feats.device)).sum()  # a norm hides the sum
                for name, output in reversed(given):
                    (gradient,) = torch.autograd.grad(length, output, retain_graph=True, allow_unused=True)
                    if gradient is not None and self.cam_map(gradient).any():
                        return name
        finally:
            for handle in handles:
                handle.remove()
        raise ValueError(
            f"the features of {self.name} come from no map (B, C, h, w), so that there is nothing to draw a CAM of: "
            "give the network an attribute `cam_layer`, and `cam_map(output)` if that layer gives no map"
        )

    def forward(self, images: Tensor, camids: Tensor | None = None) -> Tensor | Outputs:
        out = self.network(self.normalise(images), camids)
        # Under autocast a feature may arrive in half precision; it is ranked in float32 or better.
        return out if self.training or out.dtype == torch.float64 else out.float()

    def scores(self, images: Tensor, camids: Tensor | None = None) -> Tensor:
        """Score the classes, by the mean over all classifiers, with norms and dropout as in eval mode.

        Args:
            images: As for the model itself.
            camids: Likewise.

        Returns:
            (B, num_classes), float32 or better.

        Raises:
            ValueError: The model has no classifier.
        """
        with in_mode(self, training=False):
            logits = self.network.outputs(self.normalise(images), camids).logits
        if not logits:
            raise ValueError(f"{self.name} was built without a classifier: give num_classes")
        return torch.stack([x if x.dtype == torch.float64 else x.float() for x in logits]).mean(0)

    def output_shapes(self) -> Outputs:
        """What training gives for two images, as tensors on the meta device; the model is left as it was.

        Nothing is computed, unless a user's network looks at values: then a copy runs on black images.
        """
        inputs = torch.zeros(2, 3, *self.input_size, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        try:
            with torch.device("meta"), in_mode(self, training=True):
                return torch.func.functional_call(self, shapes, inputs)
        except (RuntimeError, NotImplementedError):
            with torch.random.fork_rng(), torch.no_grad():
                inputs = [torch.zeros_like(x, device=self.pixel_mean.device) for x in inputs]
                return Outputs(*([y.to("meta") for y in ys] for ys in copy.deepcopy(self).train()(*inputs)))

    def fuse(self) -> "ReIDModel":
        """Copy the model for evaluation, with its batch norms folded into the convolutions before them.

        Returns:
            A copy that gives the same features, up to rounding, with fewer passes over memory. It can be neither
            trained nor loaded into. If folding would change the features, as in a network whose norms do not follow the
            convolutions that they are registered after, nothing is folded.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        if not fold_norms(fused):
            return fused
        pixels = torch.linspace(-1, 1, 3 * self.input_size[0] * self.input_size[1], device=self.pixel_mean.device)
        pixels = pixels.to(self.pixel_mean.dtype).view(1, 3, *self.input_size)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False), in_mode(self, training=False):
            expected, feats = self.network(pixels), fused.network(pixels)
        same = (feats - expected).abs().max() <= 1e-3 * expected.abs().max()
        return fused if same else copy.deepcopy(self).eval().requires_grad_(False)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or float in [0, 1] to the network's own scale and dtype."""
        if images.ndim != 4 or images.shape[1] != 3:
            shape = tuple(images.shape)
            raise ValueError(
                f"{self.name} takes RGB images of shape (B, 3, H, W), got {shape}: permute or unsqueeze them"
            )
        size = "{} x {}".format(*images.shape[2:])
        if min(images.shape[2:]) < (least := getattr(self.network, "min_size", 1)):
            raise ValueError(f"{self.name} takes images of {least} x {least} or more, got {size}: enlarge them")
        if (only := getattr(self.network, "fixed_size", None)) and tuple(images.shape[2:]) != only:
            raise ValueError(f"{self.name} was built for images of {only[0]} x {only[1]}, got {size}: give input_size")
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
