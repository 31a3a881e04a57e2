"""Figures made of a dataset's own images: contact sheet, batches, pairs, ranked lists, and ranked lists with CAMs.

A sample is anything with `path`, `pid` and `camid`. Every figure is one grid of cells drawn on one axes, in inches.
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

_HEIGHT, _WIDTH, _GAP, _LINE = 1.24, 0.62, 0.13, 0.135  # of an image, between images, of a line of text: inches
_NOTE = "✓ solid: the same person; ✗ dashed: another; ⊘ dotted: not counted"


def thumbnail(path: str | Path, size: tuple[int, int] = (256, 128)) -> np.ndarray:
    """An image file as RGB (h, w, 3) uint8, reduced to fit `size` (height, width), its proportions kept.

    Raises OSError naming a file that cannot be read.
    """
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
    set_off: int = 0,
    draw_empty: bool = False,
    bar: tuple[np.ndarray, str, str] | None = None,
) -> Figure:
    """Rows of cells, None for an empty one.

    Args:
        rows: the cells.
        title: above the figure; `note` is below it, in grey.
        headers: one above each column; `labels`, one beside each row.
        lines: of caption below each cell.
        widths: of the columns, in inches.
        set_off: how many columns stand apart on the left.
        draw_empty: draw empty cells as pale boxes.
        bar: a colour bar below the rows: its image (1, n, 3) uint8, and what its left and its right end mean.
    """
    widths = widths or [_WIDTH] * len(headers)
    margin, label_width = 0.15, 0.075 * max(map(len, labels), default=0) + (0.1 if labels else 0)
    lefts = list(accumulate((w + _GAP for w in widths), initial=margin + label_width))
    lefts = [x + (1.5 * _GAP if set_off and i >= set_off else 0) for i, x in enumerate(lefts)]
    width = max(lefts[-1] - _GAP + margin, 3.6)
    titles, notes = (wrap(text, int((width - 2 * margin) / inch)) for text, inch in ((title, 0.09), (note, 0.065)))
    top = margin + 0.19 * len(titles) + 0.15 * len(notes) + (0.06 if titles or notes else 0)
    step = _HEIGHT + lines * _LINE + _GAP
    height = top + 0.22 + step * len(rows) + (0.3 if bar else 0.02)

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
                if draw_empty:
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
                font = {"color": colour, "weight": "bold"} if n == 0 and cell.verdict in VERDICTS else {}
                axes.text(x + w / 2, y + _HEIGHT + 0.14 + n * _LINE, caption, ha="center", size=7.5, **font)
    if bar:
        image, low, high = bar
        left, right, y = margin + 0.12, margin + 1.32, height - 0.18
        axes.imshow(image, extent=(left, right, y + 0.06, y - 0.06), aspect="auto")
        axes.text(left - 0.06, y, low, ha="right", va="center", size=8, color=GREY)
        axes.text(right + 0.06, y, high, va="center", size=8, color=GREY)
    return figure


@styled
def contact_sheet(
    samples: Sequence[Any], people: int = 8, cameras: Sequence[int] | None = None, seed: int = 0, title: str = ""
) -> Figure:
    """One image of each person (row) in each camera (column), blank where the camera never saw the person.

    Args:
        samples: to choose from. Junk and distractors (pid below 1) are left out.
        people: how many, those seen by most cameras; drawn by `seed` among equals.
        cameras: camids; all if None.
        seed: of the choice of people and of their images.
        title: above the figure.

    Raises:
        ValueError: if there is nobody to show.
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
    return _grid(rows, title=title, headers=[f"cam {c}" for c in cameras], labels=labels, draw_empty=True)


@styled
def class_sheet(
    samples: Sequence[Any], classes: Sequence[str], rows: int = 6, columns: int = 8, title: str = ""
) -> Figure:
    """The first `columns` images of each of `rows` classes, spread from the first to the last class.

    A sample's pid is the index of its class in `classes`.
    """
    shown = np.unique(np.linspace(0, len(classes) - 1, rows).round().astype(int)).tolist()
    found: dict[int, list[_Cell]] = {at: [] for at in shown}
    for sample in samples:
        if len(found.get(sample.pid, range(columns))) < columns:
            found[sample.pid].append(_Cell(thumbnail(sample.path)))
    headers = [""] * columns
    return _grid([found[at] for at in shown], title=title, headers=headers, labels=[classes[at][:20] for at in shown])


@styled
def batch_sheet(images: Any, captions: Sequence[str], columns: int = 8, title: str = "", note: str = "") -> Figure:
    """A batch (B, 3, H, W) uint8 as a model was given it, in its order, with B captions."""
    pixels = array(images, np.uint8).transpose(0, 2, 3, 1)
    cells = [_Cell(image, (caption,)) for image, caption in zip(pixels, captions, strict=True)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return _grid(rows, title=title, note=note, headers=[""] * columns, lines=1)


@styled
def pair_sheet(pairs: Sequence[tuple[Any, Any, str]], title: str = "", columns: int = 4) -> Figure:
    """Pairs of samples side by side, each with one line of text below; `columns` pairs in a row."""
    cells: list[list[_Cell | None]] = [
        [_Cell(thumbnail(s.path), (f"pid {s.pid}, cam {s.camid}", text)) for s, text in ((a, text), (b, ""))]
        for a, b, text in pairs
    ]
    if not cells:
        raise ValueError("there is no pair to show")
    rows = [[c for pair in cells[i : i + columns] for c in (*pair, None)] for i in range(0, len(cells), columns)]
    across = len(rows[0]) // 3
    return _grid(rows, title=title, headers=[""] * 3 * across, lines=2, widths=[0.8, 0.8, 0.2] * across)


def _verdict(query: Any, match: Any) -> bool | None:
    """Right, wrong, or None for what the protocol drops: junk, and the query's own person in the query's own camera."""
    same = match.pid == query.pid > 0  # a distractor, 0, is nobody's match
    return None if match.pid == -1 or (same and match.camid == query.camid) else same


def _checked(queries: Sequence[Any], gallery: Sequence[Any], ranked: Any, similarity: Any, ap: Any) -> tuple:
    """`ranked`, `similarity` and `ap` as arrays. Raises ValueError where they do not fit queries and gallery."""
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

    What a protocol drops is framed grey and dotted, should it be in the list.

    Args:
        queries: Q samples.
        gallery: samples that `ranked` points at.
        ranked: (Q, k) int, gallery indices, best first, -1 where the list is short (left blank).
        similarity: (Q, k) float.
        ap: (Q,) float in [0, 1], NaN for a query without a match; None writes none.
        title: says which queries these are, and in what order.

    Raises:
        ValueError: if shapes or indices do not fit.
    """
    ranked, similarity, ap = _checked(queries, gallery, ranked, similarity, ap)

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
    return _grid(rows, title=title, headers=headers, note=note, lines=2, set_off=1)


def rank_list_rows(
    queries: Sequence[Any], gallery: Sequence[Any], ranked: Any, similarity: Any, *, ap: Any = None
) -> list[dict[str, Any]]:
    """The table beside `rank_list`, one dict a match, ready for `pandas.DataFrame(rows).to_csv`. Args as there."""
    ranked, similarity, ap = _checked(queries, gallery, ranked, similarity, ap)
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


def overlay(image: np.ndarray, cam: Any, top: float | None = None) -> np.ndarray:
    """A map over a darkened image: the brighter, the higher, with a white line at half of the scale.

    Args:
        image: (H, W, 3) uint8.
        cam: (h, w) float, 0 or more; enlarged bilinearly.
        top: value that is drawn brightest; the highest of `cam` if None.

    Returns:
        (H, W, 3) uint8.
    """
    cam = array(cam, np.float32)
    top = cam.max() if top is None else top
    heat = Image.fromarray(cam / max(top, 1e-12)).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    heat = np.asarray(heat).clip(0, 1)
    # Dark and almost grey, so that neither a white wall nor a yellow shirt is read as heat, in greyscale either.
    dark = 0.6 * (0.35 * image + 0.65 * (image @ [0.299, 0.587, 0.114])[..., None])
    laid = dark * (1 - heat[..., None]) + 255 * colormaps["inferno"](0.25 + 0.75 * heat)[..., :3] * heat[..., None]
    inside = np.pad(heat >= 0.5, 1, mode="edge")
    laid[(inside[1:-1, 1:-1] != inside[2:, 1:-1]) | (inside[1:-1, 1:-1] != inside[1:-1, 2:])] = 255
    return laid.astype(np.uint8)


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
    """One row a query: the query, the CAM of its feature, then each match as a pair with the CAM of their similarity.

    All maps of a row are drawn on one scale, from 0 to the highest value in the row, which stands below the second
    image, so that brightness may be compared along a row; from row to row the numbers may.

    Args:
        queries, gallery, ranked, similarity, ap, title: as in `rank_list`.
        feature_cams: (Q, h, w) from `feature_cam`.
        query_cams: (Q, k, h, w), the first result of `similarity_cam`; ignored where `ranked` is -1.
        match_cams: (Q, k, h, w), the second.
    """
    ranked, similarity, ap = _checked(queries, gallery, ranked, similarity, ap)
    feature_cams, query_cams, match_cams = map(array, (feature_cams, query_cams, match_cams))
    gap, rows = np.full((256, 4, 3), 255, np.uint8), []
    for i, query in enumerate(queries):
        shown = ranked[i] >= 0
        top = max(maps.max(initial=0) for maps in (feature_cams[i], query_cams[i][shown], match_cams[i][shown]))
        image = _stretched(query)
        row = [
            _Cell(image, _query_captions(query, ap[i])),
            _Cell(overlay(image, feature_cams[i], top), (f"max {top:.2g}",)),
        ]
        for j, index in enumerate(ranked[i]):
            match = gallery[index]
            verdict = _verdict(query, match)
            pair = overlay(image, query_cams[i, j], top), gap, overlay(_stretched(match), match_cams[i, j], top)
            captions = "  ".join(_match_captions(verdict, similarity[i, j], match))
            row.append(_Cell(np.hstack(pair), (captions,), verdict) if index >= 0 else None)
        rows.append(row)
    k = ranked.shape[1]
    headers = ["query", "feature", *(f"{rank}: query | match" for rank in range(1, k + 1))]
    note = _NOTE + ". Bright: where the similarity comes from; the maps of a row share one scale"
    bar = overlay(np.full((8, 128, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 128), (8, 1)), 1)
    widths = [_WIDTH, _WIDTH] + [2 * _WIDTH + 0.02] * k
    return _grid(
        rows,
        **{"title": title, "headers": headers, "note": note, "lines": 2, "widths": widths, "set_off": 2},
        bar=(bar, "0", "max of the row; white line: half of it"),
    )


def _stretched(sample: Any) -> np.ndarray:
    """The image stretched to 256 × 128, as a model sees it."""
    return np.asarray(Image.fromarray(thumbnail(sample.path)).resize((128, 256), Image.Resampling.BILINEAR))
