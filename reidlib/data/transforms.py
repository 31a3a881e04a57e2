"""Augmentations of training images, by their published names, on the batch's own device.

Each takes images (B, 3, H, W) uint8, a CPU generator and a probability `p` for each image, and returns the same shape
and dtype. The arithmetic is torchvision's (transforms.v2); the randomness is all drawn from the generator, on the CPU:
the same seed gives the same images on every device and with any number of loader workers, and a run is resumed
without any stored state.

random_flip, random_crop, color_jitter: as torchreid names them. pad_crop: as FastReID and the strong baseline pad.
random_erasing: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; filled with the ImageNet mean, as the
strong baseline (Luo et al., 2019) does. pixel_erasing: the same, filled with noise, as timm's. auto_augment: Cubuk et
al., "AutoAugment", CVPR 2019, the ImageNet policy; augmix: Hendrycks et al., "AugMix", ICLR 2020: torchvision's.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from reidlib.errors import unknown_name

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
_IMAGENET_MEAN = (124, 116, 104)  # 255 × (0.485, 0.456, 0.406)


@cache
def _v2() -> ModuleType:
    """torchvision.transforms.v2, which takes a second to import: when it is used."""
    from torchvision.transforms import v2

    return v2


def random_flip(images: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Mirror each image left to right."""
    return _where(_drawn(images, generator, p), _v2().functional.horizontal_flip(images), images)


def pad_crop(images: Tensor, generator: torch.Generator, p: float = 1.0, padding: float = 10 / 128) -> Tensor:
    """Pad with black by `padding` × width on each side (10 pixels at 128), then cut the original size at random."""
    padded = _v2().functional.pad(images, [max(1, round(padding * images.shape[3]))])
    cut = _windows(padded, images.shape[2:], generator)
    return cut if p == 1 else _where(_drawn(images, generator, p), cut, images)


def random_crop(images: Tensor, generator: torch.Generator, p: float = 0.5, enlarge: float = 1.125) -> Tensor:
    """Enlarge both sides by `enlarge`, then cut the original size at random: torchreid's Random2DTranslation."""
    size = images.shape[2:]
    # In float32, since torchvision's arithmetic on uint8 differs between CPU and GPU.
    larger = _v2().functional.resize(images.float(), [round(side * enlarge) for side in size], antialias=False)
    cut = _windows(larger.round().to(torch.uint8), size, generator)
    return _where(_drawn(images, generator, p), cut, images)


def random_resized_crop(
    images: Tensor, generator: torch.Generator, size: tuple[int, int], area: tuple[float, float] = (0.08, 1.0)
) -> Tensor:
    """Cut a window of `area` (share of the image) at random and resize it to `size` (height, width), bilinearly.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015. Its aspect is 3/4 to 4/3 of the image's own, and its
    sides end at the image's, where torchvision draws again.
    """
    u = torch.rand(4, len(images), generator=generator)
    share, aspect = area[0] + (area[1] - area[0]) * u[0], (3 / 4) * (16 / 9) ** u[1]  # log-uniform
    sides = torch.stack([(share * aspect).sqrt(), (share / aspect).sqrt()], dim=1).clamp(max=1)  # (B, 2) of the whole
    centres = (1 - sides) * (2 * u[2:].T - 1)  # of an image that reaches from -1 to 1
    theta = torch.cat([torch.diag_embed(sides), centres[:, :, None]], dim=2).to(images.device)  # (B, 2, 3)
    grid = affine_grid(theta, [len(images), 3, *size], align_corners=False)
    cut = grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return cut.round().to(torch.uint8)


def color_jitter(
    images: Tensor,
    generator: torch.Generator,
    p: float = 1.0,
    brightness: float = 0.2,
    contrast: float = 0.15,
    saturation: float = 0.0,
) -> Tensor:
    """Change brightness, contrast and saturation by factors drawn from 1 ± each, in that order; torchreid's strengths.

    What torchvision's ColorJitter does with these factors.
    """
    factors = 1 + torch.tensor([[brightness], [contrast], [saturation]]) * (
        2 * torch.rand(3, len(images), generator=generator) - 1
    )
    chosen = _drawn(images, generator, p) if p < 1 else torch.ones(len(images), dtype=torch.bool)
    F, images = _v2().functional, images.clone()
    for i in chosen.nonzero().flatten().tolist():
        for change, factor in zip(
            (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), factors[:, i].tolist(), strict=True
        ):
            if factor != 1:
                images[i] = change(images[i], factor)
    return images


def random_camera(images: Tensor, generator: torch.Generator, p: float = 1.0) -> Tensor:
    """Another camera for each image: gamma, colour cast, exposure, saturation, contrast, resolution, sharpness, noise.

    Spreads such as those between the cameras of one place: colours stay what people are told apart by. Half of the
    images lose resolution, a quarter are sharpened or blurred, and half are noisy. Domain randomisation: Tobin et al.,
    IROS 2017, arXiv 1703.06907.
    """
    b, _, h, w = images.shape

    def spread(deviation: float, *shape: int) -> Tensor:
        return (deviation * torch.randn(b, *shape, generator=generator).clamp(-2.5, 2.5)).exp().view(b, -1, 1, 1)

    gains = spread(0.06, 3) * spread(0.16, 1)
    gamma, saturation, contrast = spread(0.2, 1), spread(0.25, 1), spread(0.18, 1)
    gains, gamma, saturation, contrast = (t.to(images.device) for t in (gains, gamma, saturation, contrast))
    x = (images.contiguous().float() / 255).clamp_(min=1e-3).pow(gamma) * gains
    grey = x.mean(1, keepdim=True)
    middle = grey.mean((2, 3), keepdim=True)
    x = (grey + (x - grey) * saturation - middle) * contrast + middle
    for chosen in torch.randperm(b, generator=generator)[: b // 2].chunk(3):  # three resolutions in a batch
        scale = 0.3 + 0.5 * torch.rand((), generator=generator).item()
        small = interpolate(x[chosen], [round(h * scale), round(w * scale)], mode="bilinear", antialias=True)
        x[chosen] = interpolate(small, [h, w], mode="bilinear")
    chosen = torch.randperm(b, generator=generator)[: b // 4]
    blurred = avg_pool2d(x[chosen], 3, 1, 1, count_include_pad=False)
    amount = 2.2 * torch.rand(len(chosen), 1, 1, 1, generator=generator) - 1
    x[chosen] += amount.to(x.device) * (x[chosen] - blurred)
    strength = 0.1 * (torch.rand(b, 1, 1, 1, generator=generator) - 0.5).clamp(min=0)
    x += (strength * torch.randn(x.shape, generator=generator)).to(x.device)
    changed = x.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return changed if p == 1 else _where(_drawn(images, generator, p), changed, images)


def random_erasing(
    images: Tensor, generator: torch.Generator, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4)
) -> Tensor:
    """Cover a rectangle of `area` (share of the image), aspect 0.3 to 3.3, with the mean."""
    images, mean = images.clone(), torch.tensor(_IMAGENET_MEAN, dtype=images.dtype, device=images.device).view(3, 1, 1)
    for i, *box in _rectangles(images, generator, p, area):
        _v2().functional.erase(images[i], *box, mean, inplace=True)
    return images


def pixel_erasing(
    images: Tensor, generator: torch.Generator, p: float = 0.5, area: tuple[float, float] = (0.02, 1 / 3)
) -> Tensor:
    """Cover a rectangle with noise: what is standard normal once mean and deviation 0.5 are taken off, within range.

    One field of noise is drawn for the batch, and moved for each image.
    """
    boxes = _rectangles(images, generator, p, area)
    noise = (127.5 + 127.5 * torch.randn(images.shape[1:], generator=generator)).clamp(0, 255).to(torch.uint8)
    noise = noise.to(images.device).repeat(1, 2, 2).expand(len(images), -1, -1, -1)
    images, noise = images.clone(), _windows(noise, images.shape[2:], generator)
    for i, *box in boxes:
        _v2().functional.erase(images[i], *box, _v2().functional.crop(noise[i], *box), inplace=True)
    return images


def _torchvision(images: Tensor, generator: torch.Generator, p: float, transform: Callable[[], nn.Module]) -> Tensor:
    """torchvision's own transform on the drawn images, one by one; it draws from torch's CPU generator, lent to it."""
    chosen = _drawn(images, generator, p).nonzero().flatten().tolist()
    seed = int(torch.randint(2**62, (), generator=generator))
    images = images.clone()
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would begin the GPU's anew too
        for i in chosen:
            images[i] = transform()(images[i])
    return images


@cache
def _auto_augment() -> nn.Module:
    return _v2().AutoAugment(_v2().AutoAugmentPolicy.IMAGENET, fill=128)


@cache
def _augmix() -> nn.Module:
    return _v2().AugMix(severity=1, fill=128)  # FastReID's severity


def auto_augment(images: Tensor, generator: torch.Generator, p: float = 0.1) -> Tensor:
    """One of the 25 pairs of operations that were found for ImageNet. FastReID does so with probability 0.1."""
    return _torchvision(images, generator, p, _auto_augment)


def augmix(images: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """A mixture of the image and three chains of light operations on it."""
    return _torchvision(images, generator, p, _augmix)


def _drawn(images: Tensor, generator: torch.Generator, p: float) -> Tensor:
    """Which images are changed, (B,) bool on the CPU."""
    return torch.rand(len(images), generator=generator) < p


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen.to(images.device)[:, None, None, None], changed, images)


def _windows(images: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A window of `size` of each image (B, 3, ≥ H, ≥ W), at a random position."""
    room = [whole - side + 1 for whole, side in zip(images.shape[2:], size, strict=True)]
    tops, lefts = (
        torch.randint(0, places, (len(images), 1), generator=generator).flatten().tolist() for places in room
    )
    crop = _v2().functional.crop
    return torch.stack([crop(i, top, left, *size) for i, top, left in zip(images, tops, lefts, strict=True)])


def _rectangles(
    images: Tensor, generator: torch.Generator, p: float, area: tuple[float, float]
) -> list[tuple[int, ...]]:
    """(index, top, left, height, width) of what is erased: with probability `p`, of an aspect of 0.3 to 3.3."""
    b, _, h, w = images.shape
    u = torch.rand(5, b, generator=generator)
    size = h * w * (area[0] + (area[1] - area[0]) * u[1])
    aspect = 0.3 * (1 / 0.3**2) ** u[2]  # log-uniform: tall and wide rectangles are equally likely
    height = (size * aspect).sqrt().round().clamp(1, h)
    width = (size / aspect).sqrt().round().clamp(1, w)
    top = (u[3] * (h - height + 1)).floor()
    left = (u[4] * (w - width + 1)).floor()
    boxes = torch.stack([torch.arange(b), top, left, height, width], dim=1)[u[0] < p]
    return [tuple(map(int, box)) for box in boxes.tolist()]


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "random_flip": random_flip,
    "pad_crop": pad_crop,
    "random_crop": random_crop,
    "color_jitter": color_jitter,
    "random_camera": random_camera,
    "random_erasing": random_erasing,
    "pixel_erasing": pixel_erasing,
    "auto_augment": auto_augment,
    "augmix": augmix,
}


def build_augmentation(names: Sequence[str]) -> Augmentation:
    """The augmentations of these names, one after the other; "random_erasing=0.3" gives the probability for an image.

    Raises ValueError for a name nobody knows, or a probability that is none.
    """
    steps = []
    for entry in names:
        name, _, text = entry.partition("=")
        if name not in AUGMENTATIONS:
            raise unknown_name("augmentation", name, AUGMENTATIONS)
        try:
            kwargs = {"p": float(text)} if text else {}
        except ValueError:
            kwargs = {"p": -1.0}
        if not 0 <= kwargs.get("p", 0) <= 1:
            raise ValueError(f"augmentation {entry!r}: after the = stands a probability from 0 to 1")
        steps.append(partial(AUGMENTATIONS[name], **kwargs))

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return augment
