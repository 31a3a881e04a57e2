"""Style of every figure, how a notebook displays it, and how it is written to disk.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with a colour-vision deficiency tell
apart; whatever a colour means, a line style, a marker, a number or lightness says as well. Figures are not registered
with pyplot: no backend is chosen, none stays open, and a notebook shows one once, as the last expression of a cell.
"""

from collections.abc import Callable, Sequence
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib import font_manager
from PIL import Image

from reidlib.files import whole_file

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
LINES = ("-", "--", "-.", ":")
INK, GREY, PALE = "#222222", "#767676", "#F1F1F1"
# Frame colour, line style and symbol of an image: right, wrong, and neither (junk, which no protocol counts).
VERDICTS = {True: ("#009E73", "-", "✓"), False: ("#D55E00", (0, (3, 1.6)), "✗"), None: (GREY, ":", "⊘")}
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
# Names of people, classes and runs may be in any script; DejaVu Sans has no Chinese, Japanese or Korean.
_CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei")


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that any Jupyter front end shows as one small PNG, whether pyplot is loaded or not."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, bytes]:
        return {"image/png": preview(self)}


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
            figure = draw(*args, **kwargs)
            for title in [figure._suptitle, *(axes._left_title for axes in figure.axes)]:
                if title is not None:
                    title.set_wrap(True)  # a long name continues on a second line
            return figure

    return wrapped


def preview(figure: matplotlib.figure.Figure, limit: int = 300_000) -> bytes:
    """Encode a figure as a small PNG.

    Args:
        figure: the figure.
        limit: size to aim at, in bytes. A larger PNG is reduced to 256 colours, then to fewer dots.

    Returns:
        The PNG at 100 dpi, or 60 dpi at least.
    """
    for dpi in (100, 90, 80, 70, 60):
        png = BytesIO()
        figure.savefig(png, format="png", dpi=dpi)
        if png.tell() > limit:
            full, png = Image.open(png, formats=["PNG"]).convert("RGB"), BytesIO()
            palette = full.quantize(256, method=Image.Quantize.FASTOCTREE)  # keeps rare colours
            full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(png, "PNG", optimize=True)
        if png.tell() <= limit:
            break
    return png.getvalue()


def save(figure: matplotlib.figure.Figure, path: str | Path, *, dpi: int = 150, small: bool = False) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure: the figure.
        path: file to write; its suffix is the format (png, pdf, svg).
        dpi: dots per inch of what is raster.
        small: write the notebook's `preview` instead.

    Returns:
        `path`.

    Raises:
        OSError: naming `path`, for example when the disk is full.
    """
    with whole_file(path) as part:
        if small:
            part.write_bytes(preview(figure))
        else:
            figure.savefig(part, dpi=dpi)
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
