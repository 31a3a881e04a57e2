"""Parts that several trunks and heads share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class InstanceNorm2d(nn.InstanceNorm2d):
    """Each channel of each image to mean 0 and variance 1, then scaled and shifted: torch's layer, by another kernel.

    Torch's own copies a map that has its channels last, which makes OSNet-AIN a third slower; the group norm with one
    channel a group is the same function and does not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


_NORMS = {
    "bn": nn.BatchNorm2d,
    "in": InstanceNorm2d,
    "none": lambda channels: None,
}


class ConvNorm(nn.Module):
    """Convolution, norm, activation; `norm` is "bn", "in" or "none". Padded to keep the map's size unless told."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        norm: str = "bn",
        act: Callable[..., nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 for side in sides) if padding is None else padding
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=bias)
        self.bn = _NORMS[norm](cout)  # upstream names it bn even where it is an instance norm
        self.act = act(inplace=True) if act else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.bn is None else self.bn(x)
        return x if self.act is None else self.act(x)


class IBN(nn.Module):
    """IBN-a: instance norm for the first half of the channels, batch norm for the rest.

    Pan, Luo, Shi, Tang: "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018,
    arXiv 1807.09441.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.instance = channels // 2  # not `half`, which is a method of every module
        self.IN = InstanceNorm2d(self.instance)
        self.BN = nn.BatchNorm2d(channels - self.instance)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.instance]), self.BN(x[:, self.instance :])], dim=1)


class SE(nn.Module):
    """Squeeze and excitation: each channel of each image weighed in (0, 1), through `hidden` channels.

    Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507.
    """

    def __init__(self, channels: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.relu(self.fc1(self.pool(x)))).sigmoid()


class SplitAttention(nn.Module):
    """The channels' two halves, weighed against each other: a softmax over the two for each pair of channels.

    ResNeSt's attention (Zhang et al., arXiv 2004.08955) as APNet has it: the weighed halves are concatenated, not
    summed, and no convolution comes before.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 32)
        self.fc1 = nn.Conv2d(channels // 2, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(1, (2, -1))  # (B, 2, C/2, h, w)
        weights = F.adaptive_avg_pool2d(halves.sum(1), 1)
        weights = self.fc2(F.relu(self.bn1(self.fc1(weights)))).unflatten(1, (2, -1)).softmax(1)
        return (halves * weights).flatten(1, 2)


class NonLocal(nn.Module):
    """Every place takes from all others, by affinity; added to the input, and nothing at first.

    Wang, Girshick, Gupta, He: "Non-local Neural Networks", CVPR 2018, arXiv 1711.07971. The affinity is a dot product
    divided by the number of places, without softmax. AGW's code, and FastReID's after it, makes the inner width one
    channel, not half of `channels` as the paper; their published weights have it so.
    """

    def __init__(self, channels: int, hidden: int = 1) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, hidden, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.W[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        g, theta, phi = (conv(x).flatten(2) for conv in (self.g, self.theta, self.phi))  # (B, hidden, h * w)
        y = (g / g.shape[2]) @ phi.transpose(1, 2) @ theta  # from the left: no product of all places with all
        return x + self.W(y.unflatten(2, x.shape[2:]))


class ChannelSelfAttention(nn.Module):
    """Each channel takes from the others, most from those *unlike* it; times a learned `gamma`, added to the input.

    Fu et al.: "Dual Attention Network for Scene Segmentation", CVPR 2019, arXiv 1809.02983.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)  # (B, C, h * w)
        energy = y @ y.transpose(1, 2)
        # The softmax of the row's maximum minus the energy, as in DANet's code: low energies weigh most.
        attention = self.softmax(energy.amax(2, keepdim=True) - energy)
        return self.gamma * (attention @ y).view_as(x) + x


class PositionSelfAttention(nn.Module):
    """Each place takes from the others, most from those like it; times a learned `gamma`, added to the input. DANet."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // reduction, 1) for _ in range(2))
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        attention = self.softmax(query.transpose(1, 2) @ key)  # (B, h * w, h * w)
        return self.gamma * (value @ attention.transpose(1, 2)).view_as(x) + x


class GeM(nn.Module):
    """Generalised-mean pooling, (B, C, h, w) to (B, C, 1, 1): p = 1 is the average, p to infinity the maximum.

    Radenovic, Tolias, Chum: "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, arXiv 1711.02512.
    """

    def __init__(self, *, trainable: bool = True) -> None:
        super().__init__()
        p = torch.full((1,), 3.0)
        if trainable:
            self.p = nn.Parameter(p)
        else:
            self.register_buffer("p", p, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # a third power overflows half precision
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(self.p), 1).pow(1 / self.p)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module and all its parts into training or eval mode; afterwards each is in its own mode again."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.train(training)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def stripes(x: Tensor, count: int) -> list[Tensor]:
    """A map (B, C, h, w) cut into `count` stripes along its height, as torch's `chunk`: 16 rows give 6, 6 and 4.

    Where `chunk` would give fewer, for lack of rows, the last row is taken again.
    """
    rows = -(-x.shape[2] // count)
    starts = (min(number * rows, x.shape[2] - 1) for number in range(count))
    return [x[:, :, start : start + rows] for start in starts]


def fold_norms(module: nn.Module) -> int:
    """Fold every batch norm into the convolution registered just before it, in place; for eval mode only.

    In all trunks of the zoo the one's output is the other's input. Subclasses, which may do more than norm, are left
    alone.

    Returns:
        How many were folded.
    """
    count = 0
    before: tuple[str, nn.Module] = ("", module)
    for name, child in module.named_children():
        conv_name, conv = before
        before = (name, child)
        if type(child) is nn.BatchNorm2d and type(conv) is nn.Conv2d and conv.out_channels == child.num_features:
            setattr(module, conv_name, fuse_conv_bn_eval(conv, child))
            setattr(module, name, nn.Identity())
            count += 1
        count += fold_norms(child)
    return count


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as the re-identification papers do; use as `network.apply(init_weights)`.

    Convolutions by Kaiming et al. 2015 (fan out), norms as identity, linear layers N(0, 0.01) with zero bias.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
