"""Style of every figure, how a notebook displays it, and how it is written to disk.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with a colour-vision deficiency tell
apart; whatever a colour means, a line style, a marker, a number or lightness says as well. Figures are not registered
with pyplot: no backend is chosen, none stays open, and a notebook shows one once, as the last expression of a cell.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, wraps
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage, _ImageBase
from matplotlib.textpath import text_to_path
from PIL import Image

from reidlib.files import whole_file

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
LINES = ("-", "--", "-.", ":")
INK, GREY, PALE = "#222222", "#767676", "#F1F1F1"
_SHOWN_DPI = 100  # size of a figure on a page: an inch is so many of its pixels
# Frame colour, line style and symbol of an image: right, wrong, and neither (junk, which no protocol counts). Dark blue
# and light orange, unlike green and red, differ in lightness: in greyscale and with deuteranopia too.
VERDICTS: dict[Any, tuple[str, Any, str]] = {
    True: ("#00538A", "-", "✓"),
    False: ("#CF6F00", (0, (3, 1.6)), "✗"),
    None: (GREY, ":", "⊘"),
}
PAGE = 10.8  # inches: what is wider is shrunk by a page, and its text with it
_RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "hatch.color": "#BBBBBB",
    "hatch.linewidth": 0.5,
}
# How vector formats are written: fonts are embedded (PDF) or named (SVG), so that text can be searched and edited, and
# images stay apart, each with its own pixels, instead of becoming one of the size of the figure.
_VECTOR = {"pdf.fonttype": 42, "svg.fonttype": "none", "image.composite_image": False}
# Names of people, classes and runs may be in any script; DejaVu Sans has no Chinese, Japanese or Korean.
_CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei")


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that any Jupyter front end shows as one small image, whether pyplot is loaded or not."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        kind, image = preview(self)
        width, height = (round(_SHOWN_DPI * inches) for inches in self.get_size_inches())
        return {kind: image, "text/plain": describe(self)}, {kind: {"width": width, "height": height}}


@cache
def _fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _CJK if name in installed)]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a plot function: it draws in this style, and matplotlib's settings are afterwards as they were."""

    @wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a user's matplotlibrc or a seaborn theme must not change what is saved
            matplotlib.rcParams.update(_RC | {"font.family": _fonts()})
            return draw(*args, **kwargs)

    return wrapped


@lru_cache(4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of one line of text, `size` in points, in the fonts of the style."""
    font = FontProperties(family=_fonts(), size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # that is missing: matplotlib says so when it draws the text
        return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def shorten(text: str, width: float, size: float, weight: str = "normal") -> str:
    """`text`, or as much of its start and end as fits into `width` inches, with … between."""
    kept = len(text)
    short = text
    while kept > 1 and text_width(short, size, weight) > width:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def fit_title(title: str, width: float) -> tuple[str, float]:
    """A title on one line of `width` inches, and its size in points: from 11 down to 8, then shortened."""
    size = next((size for size in (11, 10, 9) if text_width(title, size, "bold") <= width), 8)
    return shorten(title, width, size, "bold"), size


def titled_figure(title: str, width: float, height: float) -> Figure:
    """An empty figure in constrained layout with its title on one line; as wide as the title needs, up to PAGE.

    Args:
        title: above the figure; none if empty.
        width, height: in inches, without the title.
    """
    width = max(width, min(text_width(title, 8, "bold") + 0.2, PAGE))
    figure = Figure(figsize=(width, height + 0.25 * bool(title)), layout="constrained")
    if title:
        text, size = fit_title(title, width - 0.15)
        figure.suptitle(text, x=0.01, ha="left", size=size)
    return figure


def preview(figure: matplotlib.figure.Figure, limit: int = 250_000) -> tuple[str, bytes]:
    """Encode a figure as it is shown in a notebook, with two dots a pixel of the page.

    Args:
        figure: the figure.
        limit: size to aim at, in bytes.

    Returns:
        The MIME type and the file: a PNG of 200 dpi if that is small enough, as it is for lines and text; else a JPEG
        of 200, 140 or 100 dpi.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=2 * _SHOWN_DPI)
    if drawn.tell() <= limit:
        return "image/png", drawn.getvalue()
    full = Image.open(drawn, formats=["PNG"]).convert("RGB")
    for scale, quality in ((1, 88), (1, 80), (0.7, 85), (0.7, 75), (0.5, 85), (0.5, 70)):
        image, size = BytesIO(), tuple(round(scale * length) for length in full.size)
        full.resize(size, Image.Resampling.LANCZOS).save(image, "JPEG", quality=quality, optimize=True)
        if image.tell() <= limit:
            break
    return "image/jpeg", image.getvalue()


def describe(figure: matplotlib.figure.Figure) -> str:
    """What a figure shows, in words, from its own titles, labels and legends: its alternative text."""
    words = [figure.get_suptitle()]
    for axes in figure.axes:
        if hasattr(axes, "_colorbar"):
            continue
        labels = dict.fromkeys(label for label in axes.get_legend_handles_labels()[1] if label[0] != "_")
        over = axes.get_ylabel() + (f" over {axes.get_xlabel()}" if axes.get_xlabel() else "")
        parts = [axes.get_title(loc="left"), over, f"shown: {', '.join(labels)}" if labels else ""]
        words.append(", ".join(" ".join(part.split()) for part in parts if part))
    if images := sum(isinstance(artist, _ImageBase) for artist in figure.findobj()):
        words.append(f"{images} image{'s' * (images > 1)}")
    text = ". ".join(" ".join(part.split()) for part in dict.fromkeys(words) if part) or "figure without a title"
    return text if len(text) <= 600 else text[:599] + "…"


def save(figure: matplotlib.figure.Figure, path: str | Path, *, dpi: int = 150, small: bool = False) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure: the figure.
        path: file to write; its suffix is the format (png, pdf, svg). PDF and SVG keep text as text.
        dpi: dots per inch of what is raster; 300 at least in a PDF or SVG, which is meant for print.
        small: write the notebook's `preview` instead.

    Returns:
        `path`.

    Raises:
        OSError: naming `path`, for example when the disk is full.
    """
    with whole_file(path) as part:
        if small:
            part.write_bytes(preview(figure)[1])
        elif Path(path).suffix.lower() not in (".pdf", ".svg"):
            figure.savefig(part, dpi=dpi)
        else:
            images = {image: image.get_interpolation() for image in figure.findobj(AxesImage)}
            try:
                for image in images:
                    image.set_interpolation("none")  # its own pixels, which the viewer scales
                with matplotlib.rc_context(_VECTOR):
                    figure.savefig(part, dpi=max(dpi, 300))
            finally:
                for image, interpolation in images.items():
                    image.set_interpolation(interpolation)
    return Path(path)


def array(values: Any, dtype: Any = None) -> np.ndarray:
    """A NumPy array of a tensor on any device (bfloat16 too), an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    return np.asarray(values, dtype)


def label_styles(labels: Sequence, count: int = 20, skip: Sequence = ()) -> dict[Any, tuple[str, str]]:
    """Colour and marker for the most frequent labels.

    Args:
        labels: (N,) labels of points, of any type that sorts.
        count: how many labels get a style, 21 at most.
        skip: labels that get none.

    Returns:
        label → (colour, marker), in the order of the labels. No two share both, neighbours share neither.
    """
    names, counts = np.unique(np.asarray(labels), return_counts=True)
    names = [n for n in names[np.argsort(-counts, kind="stable")].tolist() if n not in set(skip)]
    return {
        name: (COLOURS[i % 7], "osX^Dv"[i // 7 + i % 2 * 3]) for i, name in enumerate(sorted(names[: min(count, 21)]))
    }
