"""Figures made of the data set's own pictures: contact sheet, ranked lists, and ranked lists with their CAMs.

A sample is anything with `path`, `pid` and `camid`. All of them are one grid of cells drawn on one axes, in inches.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from PIL import Image

from reidlib.decoding import decode_image
from reidlib.plots.style import GREY, PALE, VERDICTS, Figure, array, styled

_HEIGHT, _WIDTH, _GAP, _LINE = 1.24, 0.62, 0.13, 0.135  # of a picture, between pictures, of a line of text: inches
_NOTE = "✓ solid: the same person; ✗ dashed: another; ⊘ dotted: not counted"


def thumbnail(path: str | Path, size: tuple[int, int] = (256, 128)) -> np.ndarray:
    """RGB uint8, shrunk to fit (height, width) with its proportions kept. Raises OSError naming a bad file."""
    image = decode_image(path)
    image.thumbnail((size[1], size[0]))
    return np.asarray(image)


@dataclass(frozen=True)
class _Cell:
    image: np.ndarray  # (h, w, 3) uint8
    captions: tuple[str, ...] = ()  # one line each
    verdict: bool | str | None = "unframed"  # a key of VERDICTS where it is framed


def _grid(
    rows: Sequence[Sequence[_Cell | None]],
    *,
    title: str,
    headers: Sequence[str],
    labels: Sequence[str] = (),
    note: str = "",
    lines: int = 0,
    widths: Sequence[float] | None = None,
    apart: int = 0,
    empty: bool = False,
) -> Figure:
    """Rows of cells with `lines` of caption; the first `apart` columns are set off; `empty` draws the blanks."""
    widths = widths or [_WIDTH] * len(headers)
    margin, label_width = 0.15, 0.075 * max(map(len, labels), default=0) + (0.1 if labels else 0)
    lefts = list(accumulate((w + _GAP for w in widths), initial=margin + label_width))
    lefts = [x + (1.5 * _GAP if apart and i >= apart else 0) for i, x in enumerate(lefts)]
    width = max(lefts[-1] - _GAP + margin, 3.6)
    titles, notes = (wrap(text, int((width - 2 * margin) / inch)) for text, inch in ((title, 0.09), (note, 0.065)))
    top = margin + 0.19 * len(titles) + 0.15 * len(notes) + (0.06 if titles or notes else 0)
    step = _HEIGHT + lines * _LINE + _GAP
    height = top + 0.22 + step * len(rows) + 0.02

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    axes.text(margin, margin, "\n".join(titles), va="top", size=10.5, weight="bold", linespacing=1.15)
    axes.text(margin, margin + 0.19 * len(titles) + 0.02, "\n".join(notes), va="top", size=8, color=GREY)
    for x, w, header in zip(lefts, widths, headers, strict=False):
        axes.text(x + w / 2, top + 0.15, header, ha="center", va="baseline", size=8.5, color=GREY)
    for i, row in enumerate(rows):
        y = top + 0.22 + i * step
        if labels:
            axes.text(margin, y + _HEIGHT / 2, labels[i], va="center", size=8.5)
        for x, w, cell in zip(lefts, widths, row, strict=False):
            if cell is None:
                if empty:
                    axes.add_patch(Rectangle((x, y), w, _HEIGHT, facecolor=PALE, edgecolor="none"))
                continue
            h0, w0 = cell.image.shape[:2]
            scale = min(_HEIGHT / h0, w / w0)
            w1, h1 = w0 * scale, h0 * scale
            x1, y1 = x + (w - w1) / 2, y + (_HEIGHT - h1) / 2
            axes.imshow(cell.image, extent=(x1, x1 + w1, y1 + h1, y1), aspect="auto")
            colour, style, _ = VERDICTS.get(cell.verdict, (GREY, "-", ""))
            if cell.verdict in VERDICTS:
                frame = Rectangle((x1, y1), w1, h1, fill=False, edgecolor=colour, linewidth=2.6, linestyle=style)
                axes.add_patch(frame)
            for n, caption in enumerate(cell.captions):
                look = {"color": colour, "weight": "bold"} if n == 0 and cell.verdict in VERDICTS else {}
                where = (x + w / 2, y + _HEIGHT + 0.14 + n * _LINE)
                axes.text(*where, caption, ha="center", va="baseline", size=7.5, **look)
    return figure


@styled
def contact_sheet(
    samples: Sequence[Any], people: int = 8, cameras: Sequence[int] | None = None, seed: int = 0, title: str = ""
) -> Figure:
    """People (rows) × cameras (columns): one picture of each person in each camera, blank if unseen.

    The people are those seen by most cameras, drawn by `seed` among equals.
    Junk and distractors (pid below 1) are left out. `cameras` defaults to all. Raises ValueError where nobody is left.
    """
    rng = np.random.default_rng(seed)
    cameras = sorted({s.camid for s in samples}) if cameras is None else list(cameras)
    seen: dict[tuple[int, int], list[Any]] = {}
    for sample in samples:
        if sample.pid > 0 and sample.camid in cameras:
            seen.setdefault((sample.pid, sample.camid), []).append(sample)
    cameras_of = Counter(pid for pid, _ in seen)
    if not cameras_of:
        raise ValueError(f"no person with a pid above 0 in {len(samples)} samples and cameras {cameras}")
    shuffled = rng.permutation(sorted(cameras_of)).tolist()
    pids = sorted(sorted(shuffled, key=lambda pid: -cameras_of[pid])[:people])

    def cell(pid: int, camid: int) -> _Cell | None:
        found = seen.get((pid, camid))
        return found and _Cell(thumbnail(found[rng.integers(len(found))].path))

    rows = [[cell(pid, camid) for camid in cameras] for pid in pids]
    labels = [f"pid {pid}" for pid in pids]
    return _grid(rows, title=title, headers=[f"cam {c}" for c in cameras], labels=labels, empty=True)


@styled
def class_sheet(
    samples: Sequence[Any], classes: Sequence[str], rows: int = 6, columns: int = 8, title: str = ""
) -> Figure:
    """Some classes (rows), from the first to the last, and the first pictures of each; a sample's pid is its class."""
    shown = np.unique(np.linspace(0, len(classes) - 1, rows).round().astype(int)).tolist()
    found: dict[int, list[_Cell]] = {at: [] for at in shown}
    for sample in samples:
        if len(found.get(sample.pid, range(columns))) < columns:
            found[sample.pid].append(_Cell(thumbnail(sample.path)))
    headers = [""] * columns
    return _grid([found[at] for at in shown], title=title, headers=headers, labels=[classes[at][:20] for at in shown])


@styled
def batch_sheet(images: Any, captions: Sequence[str], columns: int = 8, title: str = "", note: str = "") -> Figure:
    """A batch (B, 3, H, W) uint8 as a model was given it, in its order, with a word below each picture."""
    pictures = array(images, np.uint8).transpose(0, 2, 3, 1)
    cells = [_Cell(picture, (word,)) for picture, word in zip(pictures, captions, strict=True)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return _grid(rows, title=title, note=note, headers=[""] * columns, lines=1)


def _verdict(query: Any, match: Any) -> bool | None:
    """Right, wrong, or None for what the protocol drops: junk, and the query's own person in the query's own camera."""
    same = match.pid == query.pid > 0  # a distractor, 0, is nobody's match
    return None if match.pid == -1 or (same and match.camid == query.camid) else same


def _lists(queries: Sequence[Any], gallery: Sequence[Any], ranked: Any, similarity: Any, ap: Any) -> tuple:
    ranked, similarity = array(ranked, np.int64), array(similarity, np.float64)
    if ranked.ndim != 2 or ranked.shape != similarity.shape or len(ranked) != len(queries):
        raise ValueError(
            f"{len(queries)} queries need ranked and similarity of shape ({len(queries)}, k), "
            f"not {ranked.shape} and {similarity.shape}"
        )
    if ranked.max(initial=-1) >= len(gallery):
        raise ValueError(f"ranked points at gallery item {ranked.max()}, but the gallery has {len(gallery)}")
    return ranked, similarity, [None] * len(queries) if ap is None else array(ap, np.float64)


def _query_captions(query: Any, ap: float | None) -> tuple[str, str]:
    score = "" if ap is None else "no match" if np.isnan(ap) else f"AP {100 * ap:.0f} %"
    return (f"{query.pid} · c{query.camid}", score)


def _match_captions(verdict: bool | None, similarity: float, match: Any) -> tuple[str, str]:
    return (f"{VERDICTS[verdict][2]} {similarity:.2f}", f"{match.pid} · c{match.camid}")


@styled
def rank_list(
    queries: Sequence[Any], gallery: Sequence[Any], ranked: Any, similarity: Any, *, ap: Any = None, title: str = ""
) -> Figure:
    """One row a query: the query, then its first k matches, framed right or wrong, with similarity, pid and camera.

    `ranked` (Q, k) int: gallery indices, best first, -1 where the list is short (left blank); `similarity` (Q, k);
    `ap` (Q,) float in [0, 1], NaN for a query without a match. `title` says which queries these are, and in what order.
    What a protocol drops is framed grey and dotted, should it be in the list.
    """
    ranked, similarity, ap = _lists(queries, gallery, ranked, similarity, ap)

    def cell(query: Any, index: int, value: float) -> _Cell | None:
        if index < 0:
            return None
        match = gallery[index]
        verdict = _verdict(query, match)
        return _Cell(thumbnail(match.path), _match_captions(verdict, value, match), verdict)

    rows = [
        [_Cell(thumbnail(q.path), _query_captions(q, score)), *(cell(q, i, s) for i, s in zip(*row, strict=True))]
        for q, score, *row in zip(queries, ap, ranked, similarity, strict=True)
    ]
    headers = ["query", *map(str, range(1, ranked.shape[1] + 1))]
    note = _NOTE + ". Under each match: cosine similarity, then pid · camera"
    return _grid(rows, title=title, headers=headers, note=note, lines=2, apart=1)


def rank_list_rows(
    queries: Sequence[Any], gallery: Sequence[Any], ranked: Any, similarity: Any, *, ap: Any = None
) -> list[dict[str, Any]]:
    """The table beside `rank_list`'s picture, one dict a match, ready for `pandas.DataFrame(rows).to_csv`."""
    ranked, similarity, ap = _lists(queries, gallery, ranked, similarity, ap)
    rows = []
    for query, score, indices, values in zip(queries, ap, ranked, similarity, strict=True):
        for rank, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
            if index >= 0:
                match = gallery[index]
                rows.append(
                    {
                        **{"query_path": str(query.path), "query_pid": query.pid, "query_camid": query.camid},
                        **{"ap": None if score is None else float(score), "rank": rank},
                        **{"path": str(match.path), "pid": match.pid, "camid": match.camid},
                        **{"similarity": float(value), "right": _verdict(query, match)},
                    }
                )
    return rows


def overlay(image: np.ndarray, cam: Any) -> np.ndarray:
    """A map (h, w) in [0, 1] over a picture (H, W, 3) uint8; gives (H, W, 3) uint8, bright where the map is high."""
    size = image.shape[1::-1]
    heat = np.asarray(Image.fromarray(array(cam, np.float32)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    # A muted picture under the colours, so that a yellow shirt is not read as heat.
    muted = 0.9 * (0.35 * image + 0.65 * (image @ [0.299, 0.587, 0.114])[..., None])
    strength = 0.75 * heat[..., None]
    return (muted * (1 - strength) + 255 * colormaps["inferno"](heat)[..., :3] * strength).astype(np.uint8)


@styled
def cam_figure(
    queries: Sequence[Any],
    gallery: Sequence[Any],
    ranked: Any,
    similarity: Any,
    feature_cams: Any,
    query_cams: Any,
    match_cams: Any,
    *,
    ap: Any = None,
    title: str = "",
) -> Figure:
    """One row a query: the query, the CAM of its feature, then each match as a pair: what their similarity rests on.

    `feature_cams` (Q, h, w) from `feature_cam`; `query_cams` and `match_cams` (Q, k, h, w), the two results of
    `similarity_cam` (anything where `ranked` is -1). The rest as in `rank_list`.
    """
    ranked, similarity, ap = _lists(queries, gallery, ranked, similarity, ap)
    feature_cams, query_cams, match_cams = map(array, (feature_cams, query_cams, match_cams))
    side, rows = np.full((256, 4, 3), 255, np.uint8), []
    for i, query in enumerate(queries):
        picture = _filled(query)
        row = [_Cell(picture, _query_captions(query, ap[i])), _Cell(overlay(picture, feature_cams[i]))]
        for j, index in enumerate(ranked[i]):
            match = gallery[index]
            verdict = _verdict(query, match)
            pair = overlay(picture, query_cams[i, j]), side, overlay(_filled(match), match_cams[i, j])
            captions = "  ".join(_match_captions(verdict, similarity[i, j], match))
            row.append(_Cell(np.hstack(pair), (captions,), verdict) if index >= 0 else None)
        rows.append(row)
    k = ranked.shape[1]
    headers = ["query", "feature", *(f"{rank}: query | match" for rank in range(1, k + 1))]
    note = _NOTE + ". Bright: what the similarity rests on"
    widths = [_WIDTH, _WIDTH] + [2 * _WIDTH + 0.02] * k
    return _grid(rows, title=title, headers=headers, note=note, lines=2, widths=widths, apart=2)


def _filled(sample: Any) -> np.ndarray:
    """The picture stretched to 256 × 128, as a model sees it."""
    return np.asarray(Image.fromarray(thumbnail(sample.path)).resize((128, 256), Image.Resampling.BILINEAR))
