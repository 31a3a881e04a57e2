"""One picture from its file: decoded by Pillow, which lets go of the interpreter meanwhile."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reidlib.data.samples import Sample


def read_image(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Decode `path` to RGB uint8 (3, H, W), resized to `size` (height, width) by bilinear interpolation.

    Raises OSError with the path for a file that is empty, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            # draft() lets the JPEG decoder itself shrink pictures far larger than needed
            image.draft("RGB", (size[1], size[0]))
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read image {path}: {why_unreadable(path, error)}") from error
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)


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
