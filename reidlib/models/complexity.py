"""Parameters and multiply-adds of a model at test time, counted exactly or as published tables counted them."""

from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """`params` parameters, `macs` multiply-adds for one image of the model's input size."""

    params: int
    macs: int


def complexity(model: nn.Module, *, counting: str = "exact") -> Complexity:
    """Count what one image costs in eval mode. The model is left as it was; ValueError for an unknown `counting`.

    counting="exact": every parameter of every module that runs, once; the multiply-adds of every convolution and matrix
    product, attention included. "torchreid": as `compute_model_complexity` of KaiyangZhou/deep-person-reid prints them,
    see `_torchreid`.
    """
    if counting not in _COUNTINGS:
        raise ValueError(f"unknown counting {counting!r}: known are {', '.join(_COUNTINGS)}")
    return _COUNTINGS[counting](model)


def _exact(model: nn.Module) -> Complexity:
    with FlopCounterMode(display=False) as counter:
        calls = _calls(model)
    params = {id(p): p.numel() for module, _ in calls for p in module.parameters(recurse=False)}
    return Complexity(sum(params.values()), counter.get_total_flops() // 2)


def _torchreid(model: nn.Module) -> Complexity:
    """Leaf modules only, once a call: what is called four times has its parameters counted four times (OSNet's gate).
    Multiply-adds of convolutions and linear layers, plus one an output for a bias.
    """
    leaves = [(module, numel) for module, numel in _calls(model) if not any(module.children())]
    params = sum(p.numel() for module, _ in leaves for p in module.parameters())
    return Complexity(params, sum(numel * _macs_an_output(module) for module, numel in leaves))


def _macs_an_output(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels // module.groups * prod(module.kernel_size) + (module.bias is not None)
    if isinstance(module, nn.Linear):
        return module.in_features + (module.bias is not None)
    return 0


_COUNTINGS = {"exact": _exact, "torchreid": _torchreid}


def _calls(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Run one black image in eval mode; (module, elements of its output) for every call of a module, in order."""
    calls: list[tuple[nn.Module, int]] = []
    modes = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(lambda module, _, output: calls.append((module, _numel(output))))
        for module in modes
    ]
    try:
        with torch.no_grad():
            model.eval()(model.pixel_mean.new_zeros(1, 3, *model.input_size))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def _numel(output: object) -> int:
    return output.numel() if isinstance(output, torch.Tensor) else 0  # what gives several maps is no leaf
