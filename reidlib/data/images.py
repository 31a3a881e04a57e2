"""From an image file to a tensor of the size that a model takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reidlib.data.samples import Sample
from reidlib.decoding import check_header, decode_image, to_rgb
from reidlib.errors import unknown_name

ImageSource = str | Path | bytes | Image.Image | np.ndarray | Tensor
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def open_image(source: ImageSource, *, exif: bool = True) -> Image.Image:
    """Give any image as a PIL image in RGB, 8 bits a channel.

    Args:
        source: A file, its bytes, a PIL image, an array (H, W, 3) or grey (H, W), or a tensor (3, H, W); arrays and
            tensors are RGB, uint8 or float in [0, 1] (rounded to 8 bits). Of OpenCV's BGR frames give
            `frame[..., ::-1]`.
        exif: Rotate as the EXIF orientation says; see `decode_image`.

    Raises:
        OSError: A file that cannot be read; see `decode_image`.
        ValueError: An array or tensor of another shape, type or range.
    """
    if isinstance(source, str | Path):
        return decode_image(source, exif=exif)
    if isinstance(source, bytes):
        return decode_image("in memory", source, exif=exif)
    if isinstance(source, Image.Image):
        return to_rgb(source, exif=exif)
    is_tensor = isinstance(source, Tensor)
    pixels = source.detach().cpu() if is_tensor else np.asarray(source)
    shape, kind = tuple(pixels.shape), "tensor (3, H, W)" if is_tensor else "array (H, W, 3) or (H, W)"
    if is_tensor and pixels.ndim == 3:  # (C, H, W) → (H, W, C)
        pixels = pixels.float().numpy() if pixels.dtype == torch.bfloat16 else pixels.numpy()
        pixels = pixels.transpose(1, 2, 0)
    channels = pixels.shape[2] if pixels.ndim == 3 else int(pixels.ndim == 2 and not is_tensor)
    if channels not in (1, 3) or 0 in shape:
        raise ValueError(f"an image is an {kind} in RGB, not of shape {shape}".replace("an tensor", "a tensor"))
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # False for NaN as well
            raise ValueError("an image of floats has values from 0 to 1: give pixels up to 255 as uint8")
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image is uint8, or float from 0 to 1, not {pixels.dtype}")
    pixels = pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def resize_image(
    image: Image.Image, size: tuple[int, int], *, interpolation: str = "bilinear", centre: float = 0.0
) -> Tensor:
    """Resize an RGB image as `read_image` does. Returns (3, H, W) uint8; ValueError for an unknown interpolation."""
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    if centre or image.size != (size[1], size[0]):
        width, height = image.size
        if centre:
            scale = centre * min(width / size[1], height / size[0])
            width, height = scale * size[1], scale * size[0]
        left, top = (image.width - width) / 2, (image.height - height) / 2
        image = image.resize(size[::-1], INTERPOLATIONS[interpolation], (left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)


def read_image(
    path: str | Path,
    size: tuple[int, int],
    *,
    interpolation: str = "bilinear",
    centre: float = 0.0,
    exif: bool = True,
) -> Tensor:
    """Decode an image and resize it.

    Pixel by pixel what torchvision's `Resize(size)` gives of `PIL.Image.open(path).convert("RGB")`.

    Args:
        path: the file; see `decode_image` for formats and `exif`.
        size: (height, width) in pixels.
        interpolation: "bilinear" (torchreid, TransReID) or "bicubic" (fast-reid).
        centre: 0 squeezes the whole image into `size`. Otherwise the share of the largest centred window of that shape
            that is shown: 0.875 for 224 pixels is resizing to 256 and cutting 224 from the centre.

    Returns:
        RGB (3, H, W) uint8.

    Raises:
        OSError: naming the file and why it cannot be read.
        ValueError: for an unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:  # before the file is read
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    return resize_image(decode_image(path, exif=exif), size, interpolation=interpolation, centre=centre)


def unreadable_images(samples: Sequence[Sample]) -> list[str]:
    """One sentence for each sample whose file is not there or has no image's header. Reads headers only, in threads."""

    def check(sample: Sample) -> str:
        try:
            check_header(sample.path)
        except OSError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as pool:
        return [reason for reason in pool.map(check, samples) if reason]
