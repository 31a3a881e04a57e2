"""From an image file to a tensor of the size that a model takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reidlib.data.samples import Sample
from reidlib.decoding import check_header, decode_image
from reidlib.errors import unknown_name

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    image = decode_image(path, exif=exif)
    if centre or image.size != (size[1], size[0]):
        width, height = image.size
        if centre:
            scale = centre * min(width / size[1], height / size[0])
            width, height = scale * size[1], scale * size[0]
        left, top = (image.width - width) / 2, (image.height - height) / 2
        image = image.resize(size[::-1], INTERPOLATIONS[interpolation], (left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)


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
