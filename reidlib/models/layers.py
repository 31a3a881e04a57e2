"""Parts that several trunks and heads share."""

from torch import nn


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
