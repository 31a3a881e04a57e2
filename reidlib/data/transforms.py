"""Augmentations of training pictures, by their published names, on whole batches and on the batch's own device.

Each takes images (B, 3, H, W) uint8 and a CPU generator, and returns the same shape and dtype. All randomness is a
handful of numbers per image, drawn from the generator on the CPU: the same seed gives the same pictures on every device
and with any number of loader workers, and an interrupted run needs no stored state to go on with.

random_flip, random_crop (pad and crop), color_jitter: as torchreid and FastReID name them. random_erasing: Zhong et
al., Random Erasing Data Augmentation, AAAI 2020; filled with the ImageNet mean, as the strong baseline (Luo et al.,
2019) does.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reidlib.errors import unknown_name

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
_IMAGENET_MEAN = (124, 116, 104)  # 255 × (0.485, 0.456, 0.406)


def random_flip(images: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability `p`."""
    flip = torch.rand(len(images), generator=generator) < p
    return torch.where(flip.to(images.device)[:, None, None, None], images.flip(3), images)


def random_crop(images: Tensor, generator: torch.Generator, padding: float = 10 / 256) -> Tensor:
    """Pad with black by `padding` × height on each side (10 pixels at 256), then cut the original size at random."""
    b, _, h, w = images.shape
    pad = max(1, round(padding * h))
    padded = F.pad(images, (pad, pad, pad, pad))
    shift = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator).to(images.device)
    rows = shift[0] + torch.arange(h, device=images.device)  # (B, H)
    cols = shift[1] + torch.arange(w, device=images.device)  # (B, W)
    batch = torch.arange(b, device=images.device)
    return padded.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], cols[:, None]].permute(0, 3, 1, 2)


def color_jitter(
    images: Tensor,
    generator: torch.Generator,
    brightness: float = 0.2,
    contrast: float = 0.15,
    saturation: float = 0.15,
) -> Tensor:
    """Change brightness, contrast and saturation by factors drawn from 1 ± each, in that order.

    Contrast is about the image's mean grey, saturation about each pixel's grey (ITU-R 601 luma), as torchvision's.
    """
    draws = torch.rand(3, len(images), 1, 1, 1, generator=generator).to(images.device) * 2 - 1
    x = images.float() * (1 + brightness * draws[0])
    luma = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    mean_grey = (x * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = torch.lerp(mean_grey, x, 1 + contrast * draws[1])
    grey = (x * luma).sum(1, keepdim=True)
    x = torch.lerp(grey, x, 1 + saturation * draws[2])
    return x.clamp(0, 255).round().to(torch.uint8)


def random_erasing(
    images: Tensor, generator: torch.Generator, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4)
) -> Tensor:
    """With probability `p`, cover a rectangle of `area` (share of the image), aspect 0.3 to 3.3, with the mean."""
    b, _, h, w = images.shape
    u = torch.rand(5, b, generator=generator)
    size = h * w * (area[0] + (area[1] - area[0]) * u[1])
    aspect = 0.3 * (1 / 0.3**2) ** u[2]  # log-uniform: tall and wide rectangles are equally likely
    rect_h = (size * aspect).sqrt().round().clamp(1, h)
    rect_w = (size / aspect).sqrt().round().clamp(1, w)
    top = (u[3] * (h - rect_h + 1)).floor()
    left = (u[4] * (w - rect_w + 1)).floor()
    rows, cols = torch.arange(h), torch.arange(w)
    in_rows = (rows >= top[:, None]) & (rows < (top + rect_h)[:, None])  # (B, H)
    in_cols = (cols >= left[:, None]) & (cols < (left + rect_w)[:, None])  # (B, W)
    cover = in_rows[:, :, None] & in_cols[:, None] & (u[0] < p)[:, None, None]
    mean = torch.tensor(_IMAGENET_MEAN, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return torch.where(cover[:, None].to(images.device), mean, images)


AUGMENTATIONS: dict[str, Augmentation] = {
    "random_flip": random_flip,
    "random_crop": random_crop,
    "color_jitter": color_jitter,
    "random_erasing": random_erasing,
}


def build_augmentation(names: Sequence[str]) -> Augmentation:
    """The augmentations of these names, one after the other. Raises ValueError for a name nobody knows."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown_name("augmentation", name, AUGMENTATIONS)
    steps = [AUGMENTATIONS[name] for name in names]

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return augment
