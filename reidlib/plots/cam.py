"""Class activation maps without a class: which positions in an image a similarity comes from.

A CAM explains one number. Here it is the cosine similarity of two images, cos = f(x) · f(y) / (|f(x)| |f(y)|), as a
function of x, with f(y) and the length |f(x)| held fixed; an image alone is compared with itself. Holding the length
fixed is the decomposition of Stylianou et al. (WACV 2019) and Zhu et al. ("Visual Explanation for Deep Metric
Learning", 2019). Without it the gradient vanishes as the two images grow alike, just where the question is what the
similarity rests on.

The methods are those of the grad-cam library (pytorch_grad_cam). Here the library gives the map as it comes from the
layer, without its rescaling of each map to [0, 1], so that maps can be drawn on one scale.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

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
}
METHODS = tuple(_METHODS)


def cam_note(model: nn.Module, method: str) -> str:
    """Which module of `model` the maps are read at, and what `method` draws, as sentences for a page.

    Raises ValueError for an unknown method, with the nearest one, and for a model without maps.
    """
    layer = _cam_layer(model)
    if method not in _METHODS:
        raise unknown_name("CAM method", method, METHODS)
    name = next((name for name, module in model.named_modules() if module is layer), type(layer).__name__)
    return f"Read at {name}. {_METHODS[method][1]}. What is negative is drawn as 0."


def _cam_layer(model: nn.Module) -> nn.Module:
    layer = getattr(model, "cam_layer", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no maps to explain: set cam_layer to the module whose output is its last map"
        )
    return layer


class _Similarity(nn.Module):
    """The model as a function of images alone that gives what is explained: (B, 3, H, W) → (B,).

    Args:
        model: gives feats (B, D).
        camids: (B,) int64, or None.
        partner: for each image the index in the batch of the one that it is compared with.
    """

    def __init__(self, model: nn.Module, camids: Tensor | None, partner: list[int]) -> None:
        super().__init__()
        self.model, self.camids, self.partner = model, camids, partner

    def forward(self, images: Tensor) -> Tensor:
        feats = self.model(images) if self.camids is None else self.model(images, self.camids)  # (B, D)
        lengths = feats.detach().norm(dim=1).clamp(min=1e-12)
        return (feats * normalize(feats.detach(), dim=1)[self.partner]).sum(1) / lengths


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


def _cams(model: nn.Module, images: Tensor, camids: Tensor | None, partner: list[int], method: str) -> Tensor:
    """Maps (B, h, w) of the similarity of images[i] with images[partner[i]], as a function of images[i]."""
    import pytorch_grad_cam

    cam_note(model, method)  # raises for an unknown one
    name, layer = type(model).__name__, _cam_layer(model)
    device = next(model.parameters()).device
    with _frozen_in_eval_mode(model):
        # Copies, as tensors made in inference mode take no part in a backward pass.
        pixels = images.to(device, copy=True)
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        similarity = _Similarity(model, None if camids is None else camids.to(device, copy=True), partner)
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


def feature_cam(
    model: nn.Module, images: Tensor, camids: Tensor | None = None, *, method: str = "hirescam", batch_size: int = 32
) -> Tensor:
    """Maps of the similarity of each image with itself: where its feature comes from.

    Args:
        model: gives feats (B, D) for `images` in eval mode, and has `cam_layer`, the module whose output is a map, and
            `cam_map(output)` where that output is not (B, C, h, w). It is left as it was: mode, gradients,
            requires_grad, hooks.
        images: (B, 3, H, W), uint8 or float in [0, 1].
        camids: (B,) int64, for a model that uses the camera.
        method: one of METHODS; `cam_note` says what it draws.
        batch_size: images in a forward and backward pass.

    Returns:
        (B, h, w) float32 on the device of `images`, 0 or more, at the resolution of the layer and on one scale: with
        "hirescam" or "gradcam" the part of the cosine similarity that comes from each position. If only average pooling
        and a linear layer without bias follow, all positions, the negative ones included, sum to the similarity; a
        bias, the mean of a BNNeck, a LayerNorm or other branches have the rest.

    Raises:
        ValueError: for an unknown method, or a model without maps.
    """
    cameras = [None] * len(images) if camids is None else camids.split(batch_size)
    batches = zip(images.split(batch_size), cameras, strict=False)
    return torch.cat([_cams(model, x, c, list(range(len(x))), method) for x, c in batches])


def similarity_cam(
    model: nn.Module,
    query_images: Tensor,
    gallery_images: Tensor,
    query_camids: Tensor | None = None,
    gallery_camids: Tensor | None = None,
    *,
    method: str = "hirescam",
    batch_size: int = 16,
) -> tuple[Tensor, Tensor]:
    """Maps of the similarity of each pair (query i, gallery i), in both images.

    Args:
        model, method: as in `feature_cam`.
        query_images, gallery_images: (B, 3, H, W) each, of one shape, uint8 or float in [0, 1].
        query_camids, gallery_camids: (B,) int64, or None.
        batch_size: pairs in a forward and backward pass.

    Returns:
        The maps of the queries and those of the gallery images, each (B, h, w) as in `feature_cam`.

    Raises:
        ValueError: for two shapes, an unknown method, or a model without maps.
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
        both = _cams(model, images, camids, [*range(pairs, 2 * pairs), *range(pairs)], method)
        maps.append(both.unflatten(0, (2, pairs)))
    queries, matches = torch.cat(maps, dim=1)
    return queries, matches
