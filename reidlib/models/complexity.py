"""Parameters and multiply-adds of a model at test time, counted exactly or as published tables counted them."""

import re
import warnings
from functools import partial
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reidlib.models.layers import in_mode

if TYPE_CHECKING:
    from reidlib.models.wirings import ReIDModel


class Complexity(NamedTuple):
    """`params` parameters, `macs` multiply-adds for one image of the model's input size."""

    params: int
    macs: int


class Call(NamedTuple):
    """A module that ran, with the number of elements of its (first) input and output; 0 for what is no tensor."""

    module: nn.Module
    taken: int
    given: int


def complexity(model: nn.Module, *, counting: str = "exact") -> Complexity:
    """Count what one image costs in eval mode. The model is left as it was; ValueError for an unknown `counting`.

    counting="exact": every parameter of every module that runs, once; the multiply-adds of every convolution and matrix
    product, attention included. "total": the same multiply-adds, all parameters, with classifiers. "torchreid", "thop":
    as `compute_model_complexity` of KaiyangZhou/deep-person-reid and `profile` of thop 0.1.1 print them;
    "thop-fastreid", "thop-abd", "thop-apnet", "thop-transreid": as the latter prints them for these projects' code.
    A model on the meta device is counted without being computed.
    """
    if counting not in _COUNTINGS:
        raise ValueError(f"unknown counting {counting!r}: known are {', '.join(_COUNTINGS)}")
    return _COUNTINGS[counting](model)


def _exact(model: nn.Module) -> Complexity:
    with FlopCounterMode(display=False) as counter:
        calls = _calls(model)
    params = {id(p): p.numel() for call in calls for p in call.module.parameters(recurse=False)}
    return Complexity(sum(params.values()), counter.get_total_flops() // 2)


def _total(model: nn.Module) -> Complexity:
    return Complexity(sum(p.numel() for p in model.parameters()), _exact(model).macs)


def _torchreid(model: nn.Module) -> Complexity:
    """Leaf modules only, once a call: what is called four times has its parameters counted four times (OSNet's gate).
    Multiply-adds of convolutions and linear layers, plus one an output for a bias.
    """
    leaves = [call for call in _calls(model) if not any(call.module.children())]
    params = sum(p.numel() for call in leaves for p in call.module.parameters())
    return Complexity(params, sum(call.given * _products(call.module, bias=True) for call in leaves))


_NOTHING = "(?!)"  # the regular expression that matches no name

_THOP_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm)
_THOP = {"Conv2d", "Linear", "AvgPool2d", "AdaptiveAvgPool2d", "Softmax", *(norm.__name__ for norm in _THOP_NORMS)}
# FastReID's batch norms and the average pool of its head are classes of its own, and its MobileNet pools by a function;
# its Inceptions come from a timm older than 0.9, whose norms were torch's.
_THOP_FASTREID = _THOP - {"BatchNorm1d", "BatchNorm2d"} | {"BatchNormAct2d"}


def _thop(
    model: nn.Module,
    *,
    layers: set[str] = _THOP,
    but: str = _NOTHING,
    twice: str = _NOTHING,
    called: str = _NOTHING,
) -> Complexity:
    """Layers of the classes in `layers` only: others have neither parameters nor cost. No biases; norms cost four an
    element, softmaxes three, average pools one an output, adaptive ones one an input more.

    What differs by project: layers whose name matches `but` are left out; of those that match `twice`, registered twice
    there, parameters count twice and costs four times; those that match `called` run there in eval mode, for nothing.
    """
    names = {module: name for name, module in model.named_modules()}
    calls = _calls(model)
    for module, name in names.items():
        if re.search(called, name):
            given, taken = (*module.weight.shape, len(module.weight))[:2]  # a linear layer or a norm, on one vector
            calls.append(Call(module, taken, given))
    calls = [call for call in calls if type(call.module).__name__ in layers and not re.search(but, names[call.module])]
    macs = 0
    for module, taken, given in calls:
        cost = given * _products(module, bias=False) + 4 * taken * isinstance(module, _THOP_NORMS)
        cost += given * isinstance(module, nn.AvgPool2d) + (taken + given) * isinstance(module, nn.AdaptiveAvgPool2d)
        cost += 3 * taken * isinstance(module, nn.Softmax)
        macs += cost * (4 if re.search(twice, names[module]) else 1)
    params = 0
    for module in {call.module for call in calls}:
        count = sum(p.numel() for p in module.parameters(recurse=False))
        params += count * (2 if re.search(twice, names[module]) else 1)
    return Complexity(params, macs)


def _products(module: nn.Module, *, bias: bool) -> int:
    """Multiply-adds an output value of a convolution or linear layer; 0 for others."""
    if isinstance(module, nn.Conv2d):
        weights = module.in_channels // module.groups * prod(module.kernel_size)
    elif isinstance(module, nn.Linear):
        weights = module.in_features
    else:
        return 0
    return weights + (bias and module.bias is not None)


_COUNTINGS = {
    "exact": _exact,
    "total": _total,
    "torchreid": _torchreid,
    "thop": _thop,
    "thop-fastreid": partial(_thop, layers=_THOP_FASTREID, but=r"heads?(\.\d)?\.pool$|features\..*\.avgpool$"),
    "thop-abd": partial(_thop, called=r"\bclassifier(s\.\d)?$"),
    "thop-transreid": partial(_thop, called=r"\bneck$"),
    "thop-apnet": partial(_thop, twice=r"backbone\.(conv1|bn1|layer\d)\b"),
}


def _calls(model: "ReIDModel") -> list[Call]:
    """Run one black image in eval mode; every call of a module, in order."""
    calls: list[Call] = []

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.append(Call(module, *(v.numel() if isinstance(v, torch.Tensor) else 0 for v in (inputs[0], output))))

    handles = [module.register_forward_hook(record) for module in model.modules()]
    try:
        with torch.no_grad(), in_mode(model, training=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a camera that the model does not know: the cost is the same
            black = model.pixel_mean.new_zeros(1, 3, *model.input_size)
            model(black, black.new_zeros(1, dtype=torch.int64))
    finally:
        for handle in handles:
            handle.remove()
    return calls
