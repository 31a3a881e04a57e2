"""HACNN: soft attention over pixels and channels, and hard attention to four regions, learned together.

Li, Zhu, Gong: "Harmonious Attention Network for Person Re-Identification", CVPR 2018, arXiv 1802.08122.
A global branch of Inception blocks is weighed by soft attention. After each of its three stages, hard attention cuts
four regions out of the stage's input, for a local branch whose weights the regions share.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.models.layers import ConvNorm

_REGIONS = 4
_REGION_SIZES = ((24, 28), (12, 14), (6, 7))  # height and width at which a stage's local branch takes its regions


def _conv(cin: int, cout: int, kernel: int = 1, stride: int = 1) -> ConvNorm:
    return ConvNorm(cin, cout, kernel, stride=stride, bias=True)


class Inception(nn.ModuleDict):
    """Streams side by side, their channels concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([stream(x) for stream in self.values()], dim=1)


def inception_a(cin: int, cout: int) -> Inception:
    """Four streams that keep the map's size."""
    middle = cout // 4
    streams = {f"stream{i}": nn.Sequential(_conv(cin, middle), _conv(middle, middle, 3)) for i in (1, 2, 3)}
    streams["stream4"] = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), _conv(cin, middle))
    return Inception(streams)


def inception_b(cin: int, cout: int) -> Inception:
    """Three streams that halve the map; (cin, h, w) to (cout, h / 2, w / 2)."""
    middle = cout // 4
    return Inception(
        {
            "stream1": nn.Sequential(_conv(cin, middle), _conv(middle, middle, 3, 2)),
            "stream2": nn.Sequential(_conv(cin, middle), _conv(middle, middle, 3), _conv(middle, middle, 3, 2)),
            "stream3": nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), _conv(cin, 2 * middle)),
        }
    )


class SpatialAttention(nn.Module):
    """(B, C, h, w) to one weight a place, (B, 1, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(1, 1, 3, 2)
        self.conv2 = _conv(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x.mean(dim=1, keepdim=True))
        return self.conv2(F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True))


class ChannelAttention(nn.Module):
    """(B, C, h, w) to one weight a channel, (B, C, 1, 1)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels // reduction)
        self.conv2 = _conv(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(F.adaptive_avg_pool2d(x, 1)))


class SoftAttention(nn.Module):
    """The map (B, C, h, w), each value weighed by the product of its place's and its channel's attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial_attn = SpatialAttention()
        self.channel_attn = ChannelAttention(channels)
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(self.spatial_attn(x) * self.channel_attn(x)).sigmoid()


class HardAttention(nn.Module):
    """(B, C, h, w) to the centres (B, 4, 2) of four regions, x and y in (-1, 1); at first four stripes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 2 * _REGIONS)
        nn.init.zeros_(self.fc.weight)
        with torch.no_grad():
            self.fc.bias.copy_(torch.tensor([0, -0.75, 0, -0.25, 0, 0.25, 0, 0.75]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)).tanh().view(-1, _REGIONS, 2)


class HarmoniousAttention(nn.Module):
    """Both attentions of one stage."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.soft_attn = SoftAttention(channels)
        self.hard_attn = HardAttention(channels)


class HACNN(nn.Module):
    """The trunk: images (B, 3, H, W), published for 160 x 64, to a global map (B, 384, H / 16, W / 16) and a local one
    (B, 4 * 384, 3, 4), the four regions one after the other.

    `align_corners` says how regions are cut. torchreid left it to torch, which meant True before 1.3 and False since;
    its published weights were trained before, hence True.
    """

    def __init__(self, *, align_corners: bool = True) -> None:
        super().__init__()
        c0, c1, c2, c3 = 32, 128, 256, 384
        self.align_corners = align_corners
        self.conv = _conv(3, c0, 3, 2)
        self.inception1 = nn.Sequential(inception_a(c0, c1), inception_b(c1, c1))
        self.inception2 = nn.Sequential(inception_a(c1, c2), inception_b(c2, c2))
        self.inception3 = nn.Sequential(inception_a(c2, c3), inception_b(c3, c3))
        self.ha1, self.ha2, self.ha3 = (HarmoniousAttention(c) for c in (c1, c2, c3))
        self.local_conv1, self.local_conv2 = inception_b(c0, c1), inception_b(c1, c2)
        self.local_conv3 = inception_b(c2, c3)
        # A region is as wide as the map and a quarter as high.
        self.register_buffer("region_scale", torch.diag(torch.tensor([1.0, 0.25])), persistent=False)
        self.channels, self.branch_names = (c3, _REGIONS * c3), ("global", "local")

    @property
    def cam_layer(self) -> nn.Module:
        return self.ha3.soft_attn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)  # (B, 32, H/2, W/2)
        regions: list[Tensor] = []
        stages = (
            (self.inception1, self.ha1, self.local_conv1),
            (self.inception2, self.ha2, self.local_conv2),
            (self.inception3, self.ha3, self.local_conv3),
        )
        for (inception, attention, local_conv), size in zip(stages, _REGION_SIZES, strict=True):
            y = inception(x)  # halved
            cut = [self._region(x, centre, size) for centre in attention.hard_attn(y).unbind(1)]
            # One call a region: in training, batch norm sees each region by itself.
            regions = [local_conv(part) for part in (map(torch.add, cut, regions) if regions else cut)]
            x = attention.soft_attn(y)
        return x, torch.cat(regions, dim=1)

    def _region(self, x: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
        """The region of x (B, C, h, w) around `centre` (B, 2), resized."""
        theta = torch.cat([self.region_scale.expand(x.shape[0], 2, 2), centre.unsqueeze(2)], dim=2)  # (B, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=self.align_corners)
        x = F.grid_sample(x, grid, align_corners=self.align_corners)
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
