"""Class activation maps without a class: where in the picture a retrieval feature, or a similarity, comes from.

A CAM explains one number. Here that number is f(x) · d, the feature's length along a fixed unit direction d: the
match's direction for a pair, the feature's own for a single picture. It is the cosine similarity with the norm of f
held fixed, as in the decompositions of Stylianou et al. (WACV 2019) and Zhu et al. ("Visual Explanation for Deep Metric
Learning", 2019). The gradient of the cosine itself would be the wrong number: it vanishes as the pair grows alike, just
where the question is what the likeness rests on.

The map is HiResCAM's (Draelos and Carin, 2020) unless another is asked for. After average pooling it equals Grad-CAM's
(Selvaraju et al., ICCV 2017); Grad-CAM averages the gradient over the picture, so it would light parts that a
part-based or max-pooled feature never looks at. Both keep what speaks for the similarity and drop what speaks against
it. Where the feature has offsets (a bias, the mean that a BNNeck subtracts), a pair can be alike although every place
speaks against it, and the map would be blank: there the offset's share is spread evenly over the places first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib.errors import unknown_name

METHODS = ("HiResCAM", "GradCAM")


class _OneArgument(nn.Module):
    """The model as the library calls it, with images alone; keeps its last features (B, D) and their directions."""

    def __init__(self, model: nn.Module, camids: Tensor | None) -> None:
        super().__init__()
        self.model, self.camids = model, camids

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, D)
        feats = self.model(images) if self.camids is None else self.model(images, self.camids)
        self.feats, self.directions = feats.detach(), normalize(feats.detach(), dim=1)
        return feats


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    """In eval mode, its parameters frozen (the pictures carry the gradient); afterwards all is as it was."""
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            model.eval().requires_grad_(False)
            yield
    finally:
        for parameter, grad, wanted in parameters:
            parameter.requires_grad_(wanted).grad = grad
        for module, training in modes:
            module.training = training


def _cams(model: nn.Module, images: Tensor, camids: Tensor | None, partner: list[int], method: str) -> Tensor:
    """Maps (B, H, W) of f(images[i]) · d, with d the direction of f(images[partner[i]])."""
    import pytorch_grad_cam

    if method not in METHODS:
        raise unknown_name("CAM method", method, METHODS)
    if not isinstance(getattr(model, "cam_layer", None), nn.Module):
        raise ValueError(f"{type(model).__name__} has no cam_layer: name the module whose output a CAM is read from")
    device = next(model.parameters()).device
    with _borrowed(model):
        # Copies, as tensors made in inference mode take no part in a backward pass.
        pixels = images.to(device, copy=True)
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        one = _OneArgument(model, camids if camids is None else camids.to(device, copy=True))
        reshape = getattr(model, "cam_map", None)  # (B, N, C) tokens -> (B, C, h, w), of transformers
        cam = getattr(pytorch_grad_cam, method)(one, [model.cam_layer], reshape)
        parts = cam.get_cam_image

        def with_offset(*args: Any, **kwargs: Any) -> np.ndarray:
            places = parts(*args, **kwargs)  # (B, h, w): what each place adds to f · d
            length = (one.feats * one.directions[partner]).sum(1).cpu().numpy()
            blank = places.max((1, 2)) <= 0
            rest = (length - places.sum((1, 2))) / places[0].size
            return places + (blank * rest)[:, None, None]

        cam.get_cam_image = with_offset
        try:
            maps = cam(pixels.requires_grad_(), [lambda feat, j=j: feat @ one.directions[j] for j in partner])
        finally:
            cam.activations_and_grads.release()  # not by `with`: the library's swallows an IndexError
    return torch.from_numpy(np.nan_to_num(maps).clip(0, 1)).to(images.device)


def feature_cam(
    model: nn.Module, images: Tensor, camids: Tensor | None = None, *, method: str = "HiResCAM", batch_size: int = 32
) -> Tensor:
    """Where the feature of each picture comes from: the CAM of its norm.

    `images` (B, 3, H, W), uint8 or float in [0, 1]; `camids` (B,) where the model uses them. Gives (B, H, W) float32 in
    [0, 1] on the device of `images`, each map scaled to its own range; a map without any contrast is all zeros.
    `model(images)` gives (B, D) in eval mode and has `cam_layer`, and `cam_map` where that layer gives tokens.
    `method` is one of METHODS, by the name that pytorch_grad_cam gives it. The model is left as it was: mode,
    gradients, requires_grad, hooks. Raises ValueError for an unknown method or a model without `cam_layer`.
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
    method: str = "HiResCAM",
    batch_size: int = 16,
) -> tuple[Tensor, Tensor]:
    """What the similarity of each pair (query i, gallery i) rests on, in both of its pictures.

    Arguments as in `feature_cam`, the two sides of one shape, `batch_size` in pairs. Gives the query's maps and the
    gallery's, each (B, H, W) float32 in [0, 1]. A picture paired with itself has the map of `feature_cam`.
    """
    if query_images.shape != gallery_images.shape:
        raise ValueError(f"pairs need equal shapes: {tuple(query_images.shape)}, {tuple(gallery_images.shape)}")
    maps = []
    for at in range(0, len(query_images), batch_size):
        part = slice(at, at + batch_size)
        images = torch.cat([query_images[part], gallery_images[part]])
        camids = None if query_camids is None else torch.cat([query_camids[part], gallery_camids[part]])
        pairs = len(images) // 2
        both = _cams(model, images, camids, [*range(pairs, 2 * pairs), *range(pairs)], method)
        maps.append(both.unflatten(0, (2, pairs)))
    return tuple(torch.cat(maps, dim=1))
