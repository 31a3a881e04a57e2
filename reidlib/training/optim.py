"""The optimizer of a recipe: parameter groups, learning rates, frozen layers, and averaged weights."""

import re

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from reidlib.training.recipes import Recipe

_HEADS = re.compile(r"\bnetwork\.heads?\.")  # the names of the parameters that do not belong to the backbone
_OPEN_LAYERS = {"heads": _HEADS, "classifiers": re.compile(r"\b(?:classifiers?|scores)\.")}
_FROZEN = "temporarily_frozen"  # the mark of a parameter that is trained again later


def build_optimizer(model: nn.Module, recipe: Recipe, losses: nn.Module | None = None) -> torch.optim.Optimizer:
    """Build the optimizer of all parameters of `model`, and of losses that learn, that are to be trained.

    Args:
        model: Parameters that `begin_epoch` has frozen for some epochs count as trained.
        recipe: Its optimizer, learning rates and weight decays.
        losses: Its parameters are trained like those of the heads.

    Returns:
        The optimizer; each parameter group keeps its highest learning rate as `base_lr`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(name, parameter, bool(_HEADS.search(name))) for name, parameter in model.named_parameters()]
    named = [] if recipe.trained == "losses" else named
    named += [(name, parameter, True) for name, parameter in losses.named_parameters()] if losses else []
    for name, parameter, in_head in named:
        if parameter.requires_grad or getattr(parameter, _FROZEN, False):
            bias = name.endswith("bias")
            lr = recipe.lr * (1 if in_head else recipe.backbone_lr) * (recipe.bias_lr if bias else 1)
            decay = recipe.weight_decay * (recipe.bias_decay if bias else 1)
            groups.setdefault((lr, decay), []).append(parameter)
    settings = [
        {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=0.9)
    # Fused: one kernel for all parameters. A step over hundreds of small ones takes a fifth of the time on a CPU.
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    return torch.optim.Adam(settings, amsgrad=recipe.optimizer == "amsgrad", fused=True)


def begin_epoch(model: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Freeze or unfreeze the layers of `model` for an epoch.

    During the first `recipe.freeze` epochs only `recipe.open_layers` are trained. Where these are the heads, batch
    norms elsewhere go on adapting to the data (FastReID). Where they are the classifiers, everything else is in eval
    mode (torchreid).

    Args:
        model: In training mode.
        recipe: Its `freeze` and `open_layers`.
        epoch: Counted from 1.
    """
    frozen, still_open = epoch <= recipe.freeze, _OPEN_LAYERS[recipe.open_layers]
    for name, parameter in model.named_parameters():
        if frozen and parameter.requires_grad and not still_open.search(name):
            # The mark tells it from a parameter that is never trained, such as the bias of a BNNeck.
            parameter.requires_grad_(False)
            setattr(parameter, _FROZEN, True)
        elif not frozen and getattr(parameter, _FROZEN, False):
            parameter.requires_grad_(True)
            setattr(parameter, _FROZEN, False)
    if frozen and recipe.open_layers == "classifiers":
        for name, module in model.named_modules():
            if not any(module.children()) and not still_open.search(name + "."):
                module.eval()  # leaves only: the modules that hold them must still return what training needs


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> float:
    """Set the learning rate of every parameter group.

    Args:
        optimizer: From `build_optimizer`.
        recipe: Its schedule.
        progress: Epochs trained so far, with a fraction within an epoch.

    Returns:
        The learning rate as a share of the highest.
    """
    share = recipe.rate(progress)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
    return share


class AveragedWeights(AveragedModel):
    """Exponential moving average of a model's weights and running statistics; `module` is the averaged model.

    The decay begins at 0.1 and rises with update n as (1 + n) / (10 + n) up to `decay`, as TensorFlow's
    ExponentialMovingAverage has it: otherwise a short run would be judged by its random initial weights.

    Args:
        model: The model that is trained; its present weights are the first of the average.
        decay: The highest decay per update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`.

        AveragedModel's own method copies its count to the device at each update, and so waits for the GPU; it also
        replaces the initial weights by the first update's.
        """
        updates = int(self.n_averaged)  # on the CPU
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        averages, values = (list(m.state_dict(keep_vars=True).values()) for m in (self.module, model))
        floats = [i for i, average in enumerate(averages) if average.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floats], [values[i] for i in floats], share)
        for average, value in zip(averages, values, strict=True):
            if not average.is_floating_point():
                average.copy_(value)
        self.n_averaged += 1
