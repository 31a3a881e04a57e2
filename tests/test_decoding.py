"""Image files of every kind: right pixels, or one sentence that names the file."""

import ast
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, JpegImagePlugin
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from reidlib import decoding, plots
from reidlib.data import check
from reidlib.data.images import read_image, unreadable_images
from reidlib.data.loaders import ImageSet, eval_loader, train_loader
from reidlib.data.packing import find_pack, pack
from reidlib.data.samples import ReIDDataset, Sample
from reidlib.decoding import decode_image

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (8, 5, 3), np.uint8)).resize((300, 500), Image.Resampling.BICUBIC)
)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 128\n%%EndComments\n{} loop\n"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(decode_image(path))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("shape", [(500, 300), (128, 64), (97, 41)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_equal_those_of_torchvision(tmp_path, suffix, shape, interpolation):
    """Also for JPEGs of more than twice the size, which Pillow could decode at half size: other pixels."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(SMOOTH[: shape[0], : shape[1]]).save(path)
    for size in ((128, 64), (256, 128), shape):
        resize = transforms.Resize(size, InterpolationMode(interpolation))
        with Image.open(path) as image:
            wanted = transforms.PILToTensor()(resize(image.convert("RGB")))
        got = read_image(path, size, interpolation=interpolation)
        assert torch.equal(got, wanted)
    with pytest.raises(ValueError, match=r"unknown interpolation 'cubic'.*'bicubic'"):
        read_image(path, (128, 64), interpolation="cubic")


def test_interpolation_goes_through_loaders_and_is_part_of_a_pack(tmp_path, monkeypatch):
    monkeypatch.setenv("REID_DATA_PATHS", str(tmp_path / "data_paths.yaml"))
    (tmp_path / "data_paths.yaml").touch()
    samples = []
    for i in range(4):
        Image.fromarray(np.roll(SMOOTH, 50 * i, 0)).save(tmp_path / f"{i}.jpg")
        samples.append(Sample(tmp_path / f"{i}.jpg", 1 + i // 2, 1 + i % 2))
    data = ReIDDataset("mine", tmp_path, tuple(samples), tuple(samples[:1]), tuple(samples[1:]))
    size, wanted = (64, 32), {}
    for how in ("bilinear", "bicubic"):
        wanted[how] = torch.stack([read_image(s.path, size, interpolation=how) for s in samples])
    assert not torch.equal(*wanted.values())

    def check_all() -> None:
        for how, images in wanted.items():
            for kwargs in ({}, {"cache_gib": 0}):
                assert torch.equal(next(iter(eval_loader(samples, size, interpolation=how, **kwargs))).images, images)
                batch = next(iter(train_loader(data, size, people=2, images=2, interpolation=how, **kwargs)))
                assert torch.equal(batch.images, images[batch.indices])

    check_all()
    folders = {how: pack(data, size, interpolation=how) for how in wanted}
    assert folders["bilinear"] != folders["bicubic"]
    for how, folder in folders.items():
        assert find_pack(samples, size, interpolation=how).folder == folder
    check_all()


def test_a_program_called_jpg_is_not_run(tmp_path, monkeypatch):
    """An EPS is PostScript, which Pillow hands to Ghostscript; this one is an endless loop."""
    run = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: run.append(args) or Image.new("RGB", (64, 128)).im
    )
    path = tmp_path / "0002_c1s1_000451_03.jpg"
    path.write_bytes(EPS)
    sample = Sample(path, 2, 1)
    data = ReIDDataset("mine", tmp_path, (sample,), (), ())
    for read in (
        lambda: read_image(path, (128, 64)),
        lambda: ImageSet([sample], (128, 64)).preload(),
        lambda: ImageSet([sample], (128, 64), cache_gib=0)[[0]],
        lambda: plots.contact_sheet([sample]),
        lambda: plots.pair_sheet([(sample, sample, "1")]),
    ):
        with pytest.raises(OSError, match="cannot identify it as one of JPEG, PNG, BMP, PPM, TIFF, WEBP") as caught:
            read()
        assert str(path) in str(caught.value)
    assert "cannot identify" in unreadable_images([sample])[0]
    assert "cannot identify" in check.scan_images(data).unreadable[0]
    assert not run


def test_nothing_else_opens_image_files():
    package = Path(decoding.__file__).parent
    for path in package.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert not name.endswith(".draft"), f"{path} decodes at another size"
            if name.endswith("Image.open"):
                assert "formats" in [keyword.arg for keyword in call.keywords], f"{path} opens images of any format"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    deep = RNG.integers(0, 2**16, (16, 8), np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))


def test_32_bit_pixels_are_refused_by_name(tmp_path):
    for i, dtype in enumerate((np.int32, np.float32)):
        path = tmp_path / f"{i}.tiff"
        Image.fromarray(np.full((16, 8), 3, dtype)).save(path)
        with pytest.raises(OSError, match=rf"{i}\.tiff: its pixels have 32 bits.*save it with 8 or 16"):
            read_image(path, (16, 8))


def test_other_modes_are_read_as_their_colours(tmp_path):
    colour = (200, 100, 50)
    flat = Image.new("RGB", (8, 16), colour)
    kinds = {
        "palette.png": flat.quantize(4),
        "alpha.png": Image.new("RGBA", (8, 16), (*colour, 9)),
        "cmyk.tiff": flat.convert("CMYK"),
        "plain.webp": flat,
        "plain.bmp": flat,
        "plain.ppm": flat,
    }
    for name, image in kinds.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.abs(pixels(tmp_path / name).astype(int) - colour).max() <= 1, name
    for mode, value in (("L", 77), ("LA", (77, 3)), ("1", 1)):
        Image.new(mode, (8, 16), value).save(tmp_path / "grey.png")
        assert np.unique(pixels(tmp_path / "grey.png")).tolist() == [77 if mode != "1" else 255]
    animation = [Image.new("RGB", (8, 16), (shade, 0, 0)) for shade in (10, 250)]
    animation[0].save(tmp_path / "a.webp", save_all=True, append_images=animation[1:], lossless=True)
    assert pixels(tmp_path / "a.webp")[0, 0].tolist() == [10, 0, 0]


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_rotation_is_applied_unless_told_otherwise(tmp_path, orientation, suffix):
    upright = np.asarray(Image.fromarray(SMOOTH).resize((16, 32)))
    turn = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    turn |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, 3)}
    stored = Image.fromarray(np.ascontiguousarray(turn.get(orientation, lambda a: a)(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    assert np.abs(pixels(path).astype(int) - upright).max() <= 4
    if suffix != "tiff":  # rotated by Pillow itself
        assert np.abs(np.asarray(decode_image(path, exif=False)).astype(int) - np.asarray(stored)).max() <= 4
    assert (
        np.abs(
            ImageSet([Sample(path, 1, 1)], (32, 16))[[0]].images[0].permute(1, 2, 0).numpy().astype(int) - upright
        ).max()
        <= 4
    )


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert pixels(tmp_path / "a.jpg").shape == SMOOTH.shape


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (12_000, 9_000), (60_000, 60_000)])
def test_too_many_pixels_are_one_sentence(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    data = zlib.compress(bytes(100))
    path.write_bytes(png_header(width, height) + struct.pack(">I", len(data)) + b"IDAT" + data + bytes(4))
    with pytest.raises(OSError, match=r"bomb\.png: .*pixels.*limit") as caught:
        read_image(path, (128, 64))
    assert "\n" not in str(caught.value)
    assert "limit" in unreadable_images([Sample(path, 1, 1)])[0]


@pytest.mark.parametrize(
    "error", [struct.error("unpack"), OverflowError("big"), MemoryError(), IndexError("x"), KeyError("tag")]
)
def test_any_error_of_a_decoder_names_its_file(tmp_path, monkeypatch, error):
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg")

    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    sample = Sample(tmp_path / "a.jpg", 1, 1)
    for read in (lambda: read_image(sample.path, (128, 64)), lambda: ImageSet([sample], (8, 4)).preload()):
        with pytest.raises(OSError, match=r"a\.jpg: ") as caught:
            read()
        assert re.search(str(error) or "MemoryError", str(caught.value))
    assert check.scan_images(ReIDDataset("x", tmp_path, (sample,), (), ())).unreadable


def test_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(OSError, match=rf"{name}: it is not a regular file"):
            read_image(tmp_path / name, (128, 64))
        sample = Sample(tmp_path / name, 1, 1)
        assert "regular" in check.scan_images(ReIDDataset("x", tmp_path, (sample,), (), ())).unreadable[0]
