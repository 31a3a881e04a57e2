"""The optimizer of a recipe: what it moves, how fast, and when."""

import re

import torch
from torch import nn

from reidlib.training.recipes import Recipe

_HEADS = re.compile(r"\bnetwork\.heads?\.")  # what a model has beside its trunk, by the names of its parameters
_OPEN = {"heads": _HEADS, "classifiers": re.compile(r"\b(?:classifiers?|scores)\.")}


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over all parameters of `model` that are to be trained; each group keeps its own full rate as `base_lr`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or getattr(parameter, "thaws", False):
            bias = name.endswith("bias")
            lr = recipe.lr * (1 if _HEADS.search(name) else recipe.backbone_lr) * (recipe.bias_lr if bias else 1)
            decay = recipe.weight_decay * (recipe.bias_decay if bias else 1)
            groups.setdefault((lr, decay), []).append(parameter)
    settings = [
        {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=0.9)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings)
    return torch.optim.Adam(settings, amsgrad=recipe.optimizer == "amsgrad")


def begin_epoch(model: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Called before each epoch, counted from 1, with the model in training mode: what is frozen in it.

    For the first `recipe.freeze` epochs only the open layers take gradients. Where these are the heads, norms elsewhere
    go on adapting to the data (FastReID); where they are the classifiers, all else is in eval mode too (torchreid).
    """
    frozen, still_open = epoch <= recipe.freeze, _OPEN[recipe.open_layers]
    for name, parameter in model.named_parameters():
        if frozen and parameter.requires_grad and not still_open.search(name):
            parameter.requires_grad_(False).thaws = True  # a neck's shift, which is never trained, has no such mark
        elif not frozen and getattr(parameter, "thaws", False):
            parameter.requires_grad_(True).thaws = False
    if frozen and recipe.open_layers == "classifiers":
        for name, module in model.named_modules():
            if not any(module.children()) and not still_open.search(name + "."):
                module.eval()  # leaves only: what holds them must still give a training step's outputs


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> float:
    """Give every group its rate after `progress` epochs; returns the share of the full rate."""
    share = recipe.rate(progress)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
    return share
