"""Parts that several trunks and heads share."""

from collections.abc import Callable

from torch import Tensor, nn

_NORMS = {
    "bn": nn.BatchNorm2d,
    "in": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "none": lambda channels: None,
}


class ConvNorm(nn.Module):
    """Convolution, norm, activation; `norm` is "bn", "in" or "none". Padded to keep the map's size unless told."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        norm: str = "bn",
        act: Callable[..., nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=bias)
        self.bn = _NORMS[norm](cout)  # upstream names it bn even where it is an instance norm
        self.act = act(inplace=True) if act else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.bn is None else self.bn(x)
        return x if self.act is None else self.act(x)


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
