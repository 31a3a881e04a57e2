"""Batch norms over parts of a batch, which stay those of the model in every other respect.

Groups: results of many projects depend on the number of GPUs, because each saw its own share of the batch in its norms;
`group` images together are as one such share. Domains: from source to target each domain has norms of its own (Chang et
al., "Domain-Specific Batch Normalization", CVPR 2019); the model's are the target's, which are also tested.
"""

from typing import Any

from torch import Tensor, cat, nn
from torch.nn import functional as F


class _Split(nn.modules.batchnorm._BatchNorm):
    """A batch norm that, in training mode, sees `group` images at a time, those of the source by `partner`."""

    group: int
    partner: list[nn.modules.batchnorm._BatchNorm]  # in a list: it is not this module's to keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        norms = [*self.partner, self]
        return cat([_by_groups(norm, part, self.group) for norm, part in zip(norms, x.chunk(len(norms)), strict=True)])


class _Split1d(_Split, nn.BatchNorm1d):
    pass


class _Split2d(_Split, nn.BatchNorm2d):
    pass


_KINDS = {nn.BatchNorm1d: _Split1d, nn.BatchNorm2d: _Split2d}


def split_norms(model: nn.Module, group: int = 0, domains: bool = False) -> nn.ModuleList:
    """Make the batch norms of `model`, in place, see parts of a batch. Its state dict stays as it was.

    Args:
        model: Its norms of type BatchNorm1d and BatchNorm2d.
        group: Images in a group, consecutive ones; 0: all.
        domains: The first half of a batch is of a source, with norms of its own.

    Returns:
        The norms of the source, to be trained; empty without `domains`.
    """
    partners = nn.ModuleList()
    module: Any
    for module in list(model.modules()):
        if kind := _KINDS.get(type(module)):
            module.group, module.partner = group, []
            if domains:
                twin = type(module)(module.num_features, module.eps, module.momentum, module.affine)
                twin.load_state_dict(module.state_dict())
                for own, given in zip(twin.parameters(), module.parameters(), strict=True):
                    own.requires_grad_(given.requires_grad)
                partners.append(twin)
                module.partner = [twin]
            module.__class__ = kind
    return partners


def _by_groups(norm: nn.modules.batchnorm._BatchNorm, x: Tensor, group: int) -> Tensor:
    """The norm over groups of images; running statistics move once, towards the mean of the groups."""
    pieces = list(x.split(group)) if group else [x]
    if len(pieces) > 1 and len(pieces[-1]) < 2:  # one image has no variance
        pieces[-2:] = [cat(pieces[-2:])]
    means, variances, outputs = [], [], []
    for piece in pieces:
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        outputs.append(F.batch_norm(piece, mean, variance, norm.weight, norm.bias, True, norm.momentum, norm.eps))
        means.append(mean)
        variances.append(variance)
    norm.running_mean.copy_(sum(means) / len(means))
    norm.running_var.copy_(sum(variances) / len(variances))
    norm.num_batches_tracked.add_(1)
    return cat(outputs) if len(outputs) > 1 else outputs[0]
