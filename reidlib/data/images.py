"""One picture from its file: decoded by Pillow, which lets go of the interpreter meanwhile."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reidlib.data.samples import Sample


def read_image(path: str | Path, size: tuple[int, int], *, centre: float = 0.0) -> Tensor:
    """Decode `path` to RGB uint8 (3, H, W), resized to `size` (height, width) by bilinear interpolation.

    The whole picture, squeezed into that shape; with `centre`, this share of the largest window of that shape in its
    middle (0.875 for 224 pixels is what resizing to 256 and cutting 224 from the middle gives). Raises OSError with the
    path for a file that is empty, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            # draft() lets the JPEG decoder itself shrink pictures far larger than needed
            shown = _middle(image.size, size, centre)
            image.draft(
                "RGB",
                tuple(ceil(whole * s / part) for whole, s, part in zip(image.size, size[::-1], shown, strict=True)),
            )
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read image {path}: {why_unreadable(path, error)}") from error
    if centre or image.size != (size[1], size[0]):
        width, height = _middle(image.size, size, centre)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        image = image.resize(size[::-1], Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)


def _middle(whole: tuple[int, int], size: tuple[int, int], centre: float) -> tuple[float, float]:
    """Width and height of what is shown of a picture of `whole` (width, height), in its pixels."""
    if not centre:
        return whole
    scale = centre * min(whole[0] / size[1], whole[1] / size[0])
    return scale * size[1], scale * size[0]


def why_unreadable(path: str | Path, error: Exception) -> str:
    path = Path(path)
    if not path.exists():
        return "the file does not exist"
    if path.stat().st_size == 0:
        return "the file is empty"
    return " ".join(str(error).split()).replace(repr(str(path)), "it")


def unreadable_images(samples: Sequence[Sample]) -> list[tuple[Path, str]]:
    """The samples whose file cannot be opened as a picture, each with the reason. Reads headers only, in threads."""

    def check(sample: Sample) -> tuple[Path, str] | None:
        try:
            with Image.open(sample.path) as image:
                image.verify()
        except Exception as error:  # Pillow's plugins raise anything on broken headers
            return sample.path, why_unreadable(sample.path, error)
        return None

    with ThreadPoolExecutor(8) as pool:
        return [bad for bad in pool.map(check, samples) if bad]
