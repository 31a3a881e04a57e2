"""The one place that opens image files. Files come from anywhere, so only known raster formats are tried, at a limit.

Pillow would open some 40 formats by their content, whatever the name: an EPS called .jpg is a program, which it hands
to Ghostscript.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")  # those that torchvision's ImageFolder takes
MAX_PIXELS = 2**26  # 8192 × 8192, 192 MiB as RGB
_WITH_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow would look for it
_ORIENTATION = 0x0112  # EXIF tag; its values, and what puts them right
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_archived(path: str | Path) -> bytes | None:
    """The bytes of an image in an LMDB archive, `<folder that holds data.mdb>/<key>`; None where there is none."""
    folder, key = os.path.split(path)
    if (archive := _archive(folder, os.getpid())) is None:
        return None
    with archive.begin() as transaction:
        return transaction.get(os.fsencode(key))


def archived_names(folder: str | Path) -> list[str] | None:
    """The keys of an LMDB archive, sorted; None where the folder is none."""
    if (archive := _archive(str(folder), os.getpid())) is None:
        return None
    with archive.begin() as transaction, transaction.cursor() as cursor:
        return [os.fsdecode(key) for key in cursor.iternext(values=False)]


@lru_cache(8)
def _archive(folder: str, process: int) -> Any:
    """An open archive, which must not be used by a process that was forked from the one that opened it."""
    if not os.path.isfile(os.path.join(folder, "data.mdb")):
        return None
    import lmdb

    try:
        return lmdb.open(folder, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise OSError(f"{folder} is no LMDB archive: {error}") from error


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The image with its header read; whatever goes wrong in the block is an OSError that names the file."""
    path = Path(path)
    try:
        content = read_archived(path) if content is None else content
        if content is None and not S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a regular file")  # a named pipe would block for ever
        with Image.open(path if content is None else BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are more than the limit of {MAX_PIXELS}")
            yield image
    except Exception as error:  # decoders raise anything on damaged files: struct.error, OverflowError, MemoryError
        name = path if str(path).isprintable() else repr(str(path))
        raise OSError(f"cannot read image {name}: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    if not path.exists():
        return "the file does not exist"
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"cannot identify it as one of {', '.join(FORMATS)}"
    return " ".join(str(error).split()).replace(repr(str(path)), "it") or type(error).__name__


def decode_image(path: str | Path, content: bytes | None = None, *, exif: bool = True) -> Image.Image:
    """Decode an image file to RGB.

    Grey, palette and CMYK images are converted as `PIL.Image.convert("RGB")` does, and alpha is dropped. 16-bit grey
    keeps its high byte, as 16-bit colour does. Of an animation the first frame is taken.

    Args:
        path: the file.
        content: its bytes, where they have been read already.
        exif: rotate as the EXIF orientation says, like image viewers and fast-reid. torchreid and torchvision's
            ImageFolder do not (but for TIFF): it matters for photographs of one's own and for a few of ImageNet.

    Returns:
        The whole image, mode "RGB", 8 bits a channel.

    Raises:
        OSError: naming the file and the reason: not there, empty, damaged, of another format, of 32-bit pixels, or of
            more than `MAX_PIXELS` pixels.
    """
    with _opened(path, content) as image:
        return to_rgb(image, exif=exif)


def to_rgb(image: Image.Image, *, exif: bool = True) -> Image.Image:
    """Convert an image that Pillow has opened, as `decode_image` says. Raises ValueError for 32-bit pixels."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, whose range is not known: save it with 8 or 16 bits a channel")
    image.load()  # a TIFF is rotated by Pillow here, which then drops the tag
    rotation = _UPRIGHT.get(_orientation(image)) if exif else None
    if image.mode.startswith("I;16"):  # convert() would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    return image if rotation is None else image.transpose(rotation)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1) if _WITH_ORIENTATION & image.info.keys() else 1
    except Exception:  # a damaged tag says nothing about the pixels
        return 1


def check_header(path: str | Path) -> None:
    """Read an image file's header without its pixels. Raises the same OSError as `decode_image`."""
    with _opened(path) as image:
        image.verify()
