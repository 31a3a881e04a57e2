"""The optimizer of a recipe: what it moves, how fast, and when."""

import torch
from torch import nn

from reidlib.training.recipes import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over all parameters of `model`; each group keeps its own full rate as `base_lr`."""
    groups = [{"params": list(model.parameters()), "lr": recipe.lr, "base_lr": recipe.lr}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)


def begin_epoch(model: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Called before each epoch, counted from 1, with the model in training mode: what is frozen in it."""


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> float:
    """Give every group its rate after `progress` epochs; returns the share of the full rate."""
    share = recipe.rate(progress)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
    return share
