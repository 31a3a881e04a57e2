"""Damaged and made-up image files: right pixels, or one sentence that names the file.

A finding becomes a plain case in tests/test_decoding.py.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, TiffImagePlugin

from reidlib.data.check import scan_images
from reidlib.data.images import read_image, unreadable_images
from reidlib.data.samples import ReIDDataset, Sample
from reidlib.decoding import FORMATS, MAX_PIXELS, decode_image

SIZE = (16, 8)
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16"),
    "BMP": ("RGB", "L", "P", "1"),
    "PPM": ("RGB", "L", "1"),
    "TIFF": ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
}
OTHERS = ("GIF", "EPS", "PDF", "ICO", "TGA", "PCX", "DDS", "SGI", "JPEG2000", "ICNS")


def drawn(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(rng.integers(0, 60_000, (height, width)).astype(dtype))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encoded(kind: str, mode: str, height: int = 24, width: int = 12, **options: object) -> bytes:
    file = io.BytesIO()
    drawn(mode, height, width).save(file, kind, **options)
    return file.getvalue()


def _others() -> dict[str, bytes]:
    found = {}
    for kind in OTHERS:
        try:
            found[kind] = encoded(kind, "RGB", 32, 32)
        except (OSError, KeyError, ValueError):  # not built into this Pillow
            continue
    return found


VALID = {(kind, mode): encoded(kind, mode) for kind, modes in MODES.items() for mode in modes}
VALID |= {
    ("TIFF", how): encoded("TIFF", "RGB", compression=how) for how in ("tiff_lzw", "packbits", "tiff_adobe_deflate")
}
VALID |= {("JPEG", "progressive"): encoded("JPEG", "RGB", progressive=True)}
VALID |= {
    ("PNG", "exif"): encoded(
        "PNG", "RGB", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
}
FOREIGN = _others()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def attempt(path: Path) -> torch.Tensor | None:
    """Read it in every way there is: all agree on whether it is an image; a refusal is one sentence with its name."""
    tensor, refusal = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tensor = read_image(path, SIZE)
        except OSError as error:
            refusal = str(error)
        scan = scan_images(ReIDDataset("fuzz", path.parent, (Sample(path, 1, 1),), (), ()))
        headers = unreadable_images([Sample(path, 1, 1)])
    if tensor is None:
        assert refusal.startswith(f"cannot read image {path}: ")
        assert "\n" not in refusal
        assert scan.unreadable == {0: refusal.removeprefix(f"cannot read image {path}: ")}
    else:
        assert (tensor.shape, tensor.dtype) == ((3, *SIZE), torch.uint8)
        assert not scan.unreadable
        assert scan.sizes.min() > 0
        assert scan.sizes.prod() <= MAX_PIXELS
    assert all(sentence.startswith(f"cannot read image {path}: ") for sentence in headers)
    return tensor


@given(content=st.binary(max_size=200), start=st.sampled_from([b"", *(content[:40] for content in VALID.values())]))
def test_any_bytes(folder: Path, content: bytes, start: bytes) -> None:
    path = folder / "bytes.jpg"
    path.write_bytes(start + content)
    attempt(path)


@given(data=st.data(), kind=st.sampled_from(sorted(VALID)))
def test_damaged_images(folder: Path, data: st.DataObject, kind: tuple[str, str]) -> None:
    """Bytes changed, taken out or put in, and ends cut off."""
    content = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        edit = data.draw(st.sampled_from(["change", "remove", "insert", "cut", "large"]))
        if edit == "change":
            content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif edit == "large":  # sizes and offsets
            content[at : at + 4] = data.draw(
                st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\x01\0\0"])
            )
        elif edit == "remove":
            del content[at : at + data.draw(st.integers(1, 8))]
        elif edit == "insert":
            content[at:at] = data.draw(st.binary(max_size=8))
        else:
            del content[at:]
    path = folder / f"damaged.{kind[0].lower()}"
    path.write_bytes(content)
    attempt(path)


@given(kind=st.sampled_from(sorted(FOREIGN)), name=st.sampled_from(["a.jpg", "a.png", "a.tif"]), cut=st.integers(0, 9))
def test_other_formats_are_not_opened_whatever_their_name(folder: Path, kind: str, name: str, cut: int) -> None:
    content = FOREIGN[kind]
    (folder / name).write_bytes(content[: len(content) - cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("a program was run"))
        assert attempt(folder / name) is None


@given(
    kind=st.sampled_from([k for k in FORMATS if k != "JPEG"]),
    data=st.data(),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=st.integers(0, 9),
)
def test_whole_images_have_the_pixels_that_were_saved(
    folder: Path, kind: str, data: st.DataObject, height: int, width: int, seed: int
) -> None:
    mode = data.draw(st.sampled_from(MODES[kind]))
    image = drawn(mode, height, width, seed)
    path = folder / f"whole.{kind.lower()}"
    image.save(path, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    if mode in ("I", "F"):
        assert attempt(path) is None
        return
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    assert np.array_equal(np.asarray(decode_image(path)), np.asarray(image.convert("RGB")))
    assert attempt(path) is not None


@given(
    tags=st.dictionaries(
        st.sampled_from([256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 282, 284, 317, 320, 322, 323, 324, 339]),
        st.one_of(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**16 - 1), max_size=4), st.binary(max_size=6)),
        max_size=4,
    )
)
def test_tiffs_with_any_tags(folder: Path, tags: dict) -> None:
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for tag, value in tags.items():
                ifd[tag] = value
            drawn("RGB", 24, 12).save(file, "TIFF", tiffinfo=ifd)
        except Exception:  # Pillow does not write every nonsense; what it writes, it has to read or refuse
            return
    path = folder / "tags.tiff"
    path.write_bytes(file.getvalue())
    attempt(path)
