"""Class activation maps without a class: which positions in an image a similarity comes from.

A CAM explains one number. Here it is the cosine similarity of two images, cos = f(x) · f(y) / (|f(x)| |f(y)|), as a
function of x, with f(y) and the length |f(x)| held fixed; an image alone is compared with itself. Holding the length
fixed is the decomposition of Stylianou et al. (WACV 2019) and Zhu et al. ("Visual Explanation for Deep Metric
Learning", 2019). Without it the gradient vanishes as the two images grow alike, just where the question is what the
similarity rests on.

For the same reason every length that the network itself divides by is held fixed: in `torch.nn.functional.normalize`
(HACNN gives each branch's feature the length 1) and in layer norms, as in Ali et al. ("XAI for Transformers", ICML
2022, arXiv 2202.07304). Otherwise the map of an image with itself is zero for HACNN and for an untrained ViT.

The methods are those of the grad-cam library (pytorch_grad_cam). Here the library gives the map as it comes from the
layer, without its rescaling of each map to [0, 1], so that maps can be drawn on one scale. Attention rollout is
written here: it takes attention matrices, not a map and its gradient.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from reidlib.errors import unknown_name

# Name → class of pytorch_grad_cam, and what it draws. A is the layer's map (C, h, w), G the gradient of the similarity
# with respect to it.
_METHODS = {
    "hirescam": (
        "HiResCAM",
        "HiResCAM (Draelos and Carin, 2020): at each position the sum over the channels of gradient × activation. Only "
        "positions that the feature uses are lit, part by part too; after average pooling it equals Grad-CAM",
    ),
    "gradcam": (
        "GradCAM",
        "Grad-CAM (Selvaraju et al., ICCV 2017): the sum over the channels of the activation, each channel weighted by "
        "its mean gradient over the map. Positions that a part-based or max-pooled feature never uses may be lit",
    ),
    "gradcam++": (
        "GradCAMPlusPlus",
        "Grad-CAM++ (Chattopadhay et al., WACV 2018): as Grad-CAM, each channel weighted by the sum of its positive "
        "gradients, each times a share that the paper derives from its second and third power",
    ),
    "xgradcam": (
        "XGradCAM",
        "XGrad-CAM (Fu et al., BMVC 2020): as Grad-CAM, each channel weighted by the mean of its gradient over the "
        "map, each position counted by its share of the channel's activation",
    ),
    "layercam": (
        "LayerCAM",
        "LayerCAM (Jiang et al., TIP 2021): at each position the sum over the channels of positive gradient × "
        "activation",
    ),
    "eigencam": (
        "EigenCAM",
        "EigenCAM (Muhammad and Yeasin, IJCNN 2020): the projection of the centred activations on their first "
        "principal component. It uses neither gradient nor match: an image has one map in all pairs, and its sign is "
        "arbitrary",
    ),
    "eigengradcam": (
        "EigenGradCAM",
        "Eigen-Grad-CAM: the projection of centred gradient × activation on its first principal component, whose sign "
        "is arbitrary",
    ),
    "rollout": (
        "",
        "Attention rollout (Abnar and Zuidema, ACL 2020): the attention of each block, averaged over its heads, with "
        "half an identity for the residual, multiplied from the first block to the last: how much of the class "
        "token, or of the mean token, comes from each patch. It uses neither gradient nor match",
    ),
}
METHODS = tuple(_METHODS)


def cam_note(model: nn.Module, method: str, *, branch: str = "", block: int = 0) -> str:
    """Which module of `model` the maps are read at, and what `method` draws, as sentences for a page.

    Args:
        model, branch, block: As in `feature_cam`.
        method: One of METHODS.

    Raises:
        ValueError: for an unknown method or branch, with the nearest names, for a block that the model does not have,
            and for a model without maps.
    """
    if method not in _METHODS:
        raise unknown_name("CAM method", method, METHODS)
    layer = _cam_layer(model, block)
    _columns(model, branch)
    if method == "rollout":
        if branch:
            raise ValueError(f"method 'rollout' does not tell branches apart: leave branch empty, not {branch!r}")
        return f"{_METHODS[method][1]}."
    name = next((name for name, module in model.named_modules() if module is layer), type(layer).__name__)
    part = f" The similarity is that of the branch “{branch}” alone." if branch else ""
    return f"Read at {name}. {_METHODS[method][1]}. What is negative is drawn as 0.{part}"


def _cam_layer(model: nn.Module, block: int = 0) -> nn.Module:
    name, blocks = getattr(model, "name", type(model).__name__), getattr(model, "cam_blocks", ())
    if block and not 1 <= block <= len(blocks):
        found = f"has blocks 1 to {len(blocks)}" if blocks else "is no transformer with blocks to choose from"
        raise ValueError(f"there is no block {block}: {name} {found}; block 0 is its last map")
    layer = blocks[block - 1] if block else getattr(model, "cam_layer", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{name} has no maps to explain: set cam_layer to the module whose output is its last map")
    return layer


def _columns(model: nn.Module, branch: str) -> slice:
    """The columns of the feature that are the branch's; all of them for an empty name."""
    if not branch:
        return slice(None)
    branches: Mapping[str, slice] = getattr(model, "branches", {})
    if branch in branches:
        return branches[branch]
    if not branches:
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(f"there is no branch {branch!r}: {name} is of one branch; leave branch empty")
    raise unknown_name("branch", branch, branches)


class _LengthsHeld(TorchFunctionMode):
    """Within it the lengths that a network divides by are constants for the gradient; no value changes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held: dict[Any, Callable[..., Tensor]] = {F.normalize: _normalize, F.layer_norm: _layer_norm}
        return held.get(func, func)(*args, **(kwargs or {}))


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    return x / x.detach().norm(p, dim, keepdim=True).clamp(min=eps)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    x = x - x.mean(dims, keepdim=True)
    x = x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


class _Similarity(nn.Module):
    """The model as a function of images alone that gives what is explained: (B, 3, H, W) → (B,).

    Args:
        model: gives feats (B, D).
        camids: (B,) int64, or None.
        partner: for each image the index in the batch of the one that it is compared with.
        columns: of the feature, those that are counted; both lengths are always those of the whole feature.
    """

    def __init__(self, model: nn.Module, camids: Tensor | None, partner: list[int], columns: slice) -> None:
        super().__init__()
        self.model, self.camids, self.partner, self.columns = model, camids, partner, columns

    def forward(self, images: Tensor) -> Tensor:
        with _LengthsHeld():
            feats = self.model(images) if self.camids is None else self.model(images, self.camids)  # (B, D)
            unit = F.normalize(feats, dim=1)
        return (unit * unit.detach()[self.partner])[:, self.columns].sum(1)


@contextmanager
def _frozen_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """In eval mode, its parameters frozen (the images carry the gradient); afterwards all is as it was."""
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            model.eval().requires_grad_(False)
            yield
    finally:
        for parameter, grad, requires_grad in parameters:
            parameter.requires_grad_(requires_grad).grad = grad
        for module, training in modes:
            module.training = training


def _cams(
    model: nn.Module, images: Tensor, camids: Tensor | None, partner: list[int], method: str, branch: str, block: int
) -> Tensor:
    """Maps (B, h, w) of the similarity of images[i] with images[partner[i]], as a function of images[i]."""
    import pytorch_grad_cam

    cam_note(model, method, branch=branch, block=block)  # raises for unknown names
    name, layer = getattr(model, "name", type(model).__name__), _cam_layer(model, block)
    device = next(model.parameters()).device
    with _frozen_in_eval_mode(model):
        # Copies, as tensors made in inference mode take no part in a backward pass.
        pixels = images.to(device, copy=True)
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        camids = None if camids is None else camids.to(device, copy=True)
        if method == "rollout":
            return _rollout(model, pixels, camids, block).to(images.device)
        similarity = _Similarity(model, camids, partner, _columns(model, branch))
        reshape = getattr(model, "cam_map", None)  # tokens (B, N, C) → (B, C, h, w), of transformers
        cam = getattr(pytorch_grad_cam, _METHODS[method][0])(similarity, [layer], reshape)
        kept = cam.activations_and_grads
        try:
            kept(pixels.requires_grad_()).sum().backward()
            shape = tuple(kept.activations[0].shape) if kept.activations else None
            if shape is None or len(shape) != 4 or shape[2:] == (1, 1) or not kept.gradients:
                found = f"gives {shape}" if kept.gradients else "does not take part in the feature"
                raise ValueError(f"{name} has no maps to explain: its cam_layer {found}, a map is (B, C, h, w)")
            maps = cam.get_cam_image(pixels, layer, None, kept.activations[0].numpy(), kept.gradients[0].numpy(), False)
        finally:
            kept.release()  # not by `with`: the library's swallows an IndexError
    return torch.from_numpy(maps).float().clamp(min=0).to(images.device)


def _rollout(model: nn.Module, pixels: Tensor, camids: Tensor | None, block: int) -> Tensor:
    """Attention rollout (B, h, w) of the first `block` blocks, of all for 0."""
    name, layer = getattr(model, "name", type(model).__name__), _cam_layer(model)
    attentions: list[Tensor] = []  # (B, heads, N, N)
    shapes: list[torch.Size] = []
    # Attention of timm: fused, it gives no matrix; otherwise the matrix passes through the dropout `attn_drop`.
    modules: list[Any] = [m for m in model.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    fused = [module.fused_attn for module in modules]
    hooks = [module.attn_drop.register_forward_hook(lambda m, x, y: attentions.append(y)) for module in modules]
    reshape = getattr(model, "cam_map", None) or (lambda output: output)
    hooks.append(layer.register_forward_hook(lambda m, x, y: shapes.append(reshape(y).shape)))
    try:
        for module in modules:
            module.fused_attn = False
        with torch.no_grad():
            model(pixels) if camids is None else model(pixels, camids)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in zip(modules, fused, strict=True):
            module.fused_attn = was
    (height, width), whole = shapes[0][2:], len(pixels)
    # TransReID's last block attends once more, within each of its shuffled parts: those are left out.
    attentions = [a.float().mean(1) for a in attentions if a.ndim == 4 and len(a) == whole and a.shape[2] == a.shape[3]]
    attentions = [a for a in attentions if a.shape[1] == attentions[0].shape[1] >= height * width][: block or None]
    if not attentions:
        raise ValueError(f"{name} has no attention over all its patches: method 'rollout' is for vision transformers")
    rolled = torch.eye(attentions[0].shape[1], device=pixels.device)
    for attention in attentions:
        rolled = (attention + torch.eye(len(rolled[-1]), device=pixels.device)) / 2 @ rolled
    prefix = rolled.shape[1] - height * width  # class token and registers
    row = rolled[:, 0] if prefix else rolled.mean(1)
    return row[:, prefix:].unflatten(1, (height, width))


def cam_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of the maps `one[i]` and `other[i]`, both (B, h, w): (B,), NaN for a constant map."""
    from scipy.stats import rankdata

    ranks = [rankdata(np.asarray(maps.cpu()).reshape(len(maps), -1), axis=1) for maps in (one, other)]
    ranks = [r - r.mean(1, keepdims=True) for r in ranks]
    with np.errstate(invalid="ignore"):
        rho = (ranks[0] * ranks[1]).sum(1) / np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return torch.from_numpy(rho)


def feature_cam(
    model: nn.Module,
    images: Tensor,
    camids: Tensor | None = None,
    *,
    method: str = "hirescam",
    branch: str = "",
    block: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """Maps of the similarity of each image with itself: where its feature comes from.

    Args:
        model: gives feats (B, D) for `images` in eval mode, and has `cam_layer`, the module whose output is a map, and
            `cam_map(output)` where that output is not (B, C, h, w). It is left as it was: mode, gradients,
            requires_grad, hooks.
        images: (B, 3, H, W), uint8 or float in [0, 1].
        camids: (B,) int64, for a model that uses the camera.
        method: one of METHODS; `cam_note` says what it draws.
        branch: a key of `model.branches`: only what its columns of the feature add to the similarity. The maps of all
            branches, before negative values are cut off, sum to that of the whole feature ("" for that).
        block: read the maps at the output of `model.cam_blocks[block - 1]`, of transformers; 0: at `cam_layer`.
            "rollout" goes as far as this block.
        batch_size: images in a forward and backward pass.

    Returns:
        (B, h, w) float32 on the device of `images`, 0 or more, at the resolution of the layer and on one scale: with
        "hirescam" or "gradcam" the part of the cosine similarity that comes from each position. If only average pooling
        and a linear layer without bias follow, all positions, the negative ones included, sum to the similarity; a
        bias, the mean of a BNNeck, a LayerNorm or other branches have the rest.

    Raises:
        ValueError: for an unknown method, branch or block, or a model without maps.
    """
    cameras = [None] * len(images) if camids is None else camids.split(batch_size)
    batches = zip(images.split(batch_size), cameras, strict=False)
    return torch.cat([_cams(model, x, c, list(range(len(x))), method, branch, block) for x, c in batches])


def similarity_cam(
    model: nn.Module,
    query_images: Tensor,
    gallery_images: Tensor,
    query_camids: Tensor | None = None,
    gallery_camids: Tensor | None = None,
    *,
    method: str = "hirescam",
    branch: str = "",
    block: int = 0,
    batch_size: int = 16,
) -> tuple[Tensor, Tensor]:
    """Maps of the similarity of each pair (query i, gallery i), in both images.

    Args:
        model, method, branch, block: as in `feature_cam`.
        query_images, gallery_images: (B, 3, H, W) each, of one shape, uint8 or float in [0, 1].
        query_camids, gallery_camids: (B,) int64, or None.
        batch_size: pairs in a forward and backward pass.

    Returns:
        The maps of the queries and those of the gallery images, each (B, h, w) as in `feature_cam`.

    Raises:
        ValueError: for two shapes, an unknown method, branch or block, or a model without maps.
    """
    if query_images.shape != gallery_images.shape:
        raise ValueError(f"pairs need equal shapes: {tuple(query_images.shape)}, {tuple(gallery_images.shape)}")
    if (query_camids is None) != (gallery_camids is None):
        raise ValueError("camids are needed for both the query and the gallery images, or for neither")
    maps = []
    for at in range(0, len(query_images), batch_size):
        part = slice(at, at + batch_size)
        images = torch.cat([query_images[part], gallery_images[part]])
        camids = None
        if query_camids is not None and gallery_camids is not None:
            camids = torch.cat([query_camids[part], gallery_camids[part]])
        pairs = len(images) // 2
        both = _cams(model, images, camids, [*range(pairs, 2 * pairs), *range(pairs)], method, branch, block)
        maps.append(both.unflatten(0, (2, pairs)))
    queries, matches = torch.cat(maps, dim=1)
    return queries, matches
