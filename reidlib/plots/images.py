"""Figures made of a dataset's own images: contact sheet, batches, pairs, ranked lists, and ranked lists with CAMs.

A sample is anything with `path`, `pid` and `camid`. Every figure is one grid of cells drawn on one axes, in inches.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
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
from reidlib.errors import unknown_name
from reidlib.plots.names import Named, camera_name, person_name
from reidlib.plots.style import GREY, PAGE, PALE, VERDICTS, Figure, array, fit_title, shorten, styled, text_width

_WIDTH, _GAP, _LINE = 0.62, 0.13, 0.135  # of an image half as wide as high, between images, of a line of text: inches
_MARGIN, _FONT = 0.15, 7  # inches; points, of captions
_BAR = 0.62  # inches, of a colour bar beside a row with its numbers
_DPI = 206  # to which images are reduced: 256 × 128 pixels at full size
_NOTE = (
    "✓ solid frame: the same person; ✗ dashed: another; ⊘ dotted: not counted. Below: cosine similarity, person, camera"
)


def thumbnail(path: str | Path, width: float = _WIDTH) -> np.ndarray:
    """An image file as RGB (h, w, 3) uint8, reduced to what `width` × twice as much inches show, its proportions kept.

    Raises OSError naming a file that cannot be read.
    """
    image = decode_image(path)
    image.thumbnail((round(_DPI * width), round(2 * _DPI * width)))
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
    height: float = 2 * _WIDTH,
    gap: float = _GAP,
    set_off: int = 0,
    draw_empty: bool = False,
    scales: Sequence[tuple[str, str, str]] = (),
) -> Figure:
    """Rows of cells, None for an empty one. Text that is too long for its column is shortened.

    Args:
        rows: the cells.
        title: above the figure, on one line; `note` is below it, in grey, on as many as it needs.
        headers: one above each column; `labels`, one beside each row.
        lines: of caption below each cell.
        widths: of the columns, in inches; `height`, of the images; `gap`, between columns.
        set_off: how many columns stand apart on the left.
        draw_empty: draw empty cells as pale boxes.
        scales: what to write at the bottom, the middle and the top of a colour bar beside each row; none if empty.
    """
    widths = widths or [_WIDTH] * len(headers)
    labels = [shorten(label, 1.6, 8.5) for label in labels]
    label_width = max((text_width(label, 8.5) + 0.1 for label in labels), default=0)
    lefts = list(accumulate((w + gap for w in widths), initial=_MARGIN + label_width))
    lefts = [x + (1.5 * gap if set_off and i >= set_off else 0) for i, x in enumerate(lefts)]
    needed = min(text_width(title, 8, "bold") + 2 * _MARGIN, PAGE)
    width = max(lefts[-1] - gap + _MARGIN + (_BAR if scales else 0), needed, 3.6)
    title, title_size = fit_title(title, width - 2 * _MARGIN)
    notes = wrap(note, int((width - 2 * _MARGIN) / 0.065))
    top = _MARGIN + 0.19 * bool(title) + 0.15 * len(notes) + (0.06 if title or notes else 0)
    step = height + lines * _LINE + _GAP
    deep = top + 0.22 + step * len(rows) + 0.02

    figure = Figure(figsize=(width, deep))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(deep, 0), autoscale_on=False)
    axes.set_axis_off()
    if title:
        figure.suptitle(title, x=_MARGIN / width, y=1 - _MARGIN / deep, ha="left", va="top", size=title_size)
    axes.text(_MARGIN, _MARGIN + 0.19 * bool(title) + 0.02, "\n".join(notes), va="top", size=8, color=GREY)
    for x, w, header in zip(lefts, widths, headers, strict=False):
        text = shorten(header, w + 0.8 * gap, 8.5)
        axes.text(x + w / 2, top + 0.15, text, ha="center", va="baseline", size=8.5, color=GREY)
    for i, row in enumerate(rows):
        y = top + 0.22 + i * step
        if labels:
            axes.text(_MARGIN, y + height / 2, labels[i], va="center", size=8.5)
        for x, w, cell in zip(lefts, widths, row, strict=False):
            if cell is None:
                if draw_empty:
                    axes.add_patch(Rectangle((x, y), w, height, facecolor=PALE, edgecolor="none"))
                continue
            h0, w0 = cell.image.shape[:2]
            scale = min(height / h0, w / w0)
            w1, h1 = w0 * scale, h0 * scale
            x1, y1 = x + (w - w1) / 2, y + (height - h1) / 2
            axes.imshow(cell.image, extent=(x1, x1 + w1, y1 + h1, y1), aspect="auto")
            framed = cell.verdict in VERDICTS
            if framed:
                colour, style, _ = VERDICTS[cell.verdict]
                frame = Rectangle((x1, y1), w1, h1, fill=False, edgecolor=colour, linewidth=2.6, linestyle=style)
                axes.add_patch(frame)
            for n, caption in enumerate(cell.captions):
                weight = "bold" if framed and n == 0 else "normal"
                text = shorten(caption, w + 0.8 * gap, _FONT, weight)
                below = y + height + 0.14 + n * _LINE
                axes.text(x + w / 2, below, text, ha="center", size=_FONT, weight=weight)
        if scales:
            left = lefts[len(widths)] - gap + 0.1
            axes.imshow(_colour_bar(), extent=(left, left + 0.1, y + height, y), aspect="auto")
            for share, text in zip((0, 0.5, 1), scales[i], strict=True):
                at = y + 0.05 + (1 - share) * (height - 0.1)
                axes.text(left + 0.14, at, text, va="center", size=_FONT, color=GREY)
    return figure


def _page_share(units: float, gaps: float, beside: float = 0) -> tuple[float, float]:
    """Width of an image and of a gap, in inches, so that `units` images and `gaps` gaps fit on a page, down to 0.36.

    `beside`: inches that are needed for something else.
    """
    room = PAGE - 2 * _MARGIN - beside
    gap = _GAP if units * _WIDTH + gaps * _GAP <= room else 0.6 * _GAP
    return float(np.clip((room - gaps * gap) / units, 0.36, _WIDTH)), gap


@styled
def contact_sheet(
    samples: Sequence[Any],
    people: int = 8,
    cameras: Sequence[int] | None = None,
    seed: int = 0,
    title: str = "",
    dataset: Named | None = None,
) -> Figure:
    """One image of each person (row) in each camera (column), blank where the camera never saw the person.

    Args:
        samples: to choose from. Junk and distractors (pid below 1) are left out.
        people: how many, those seen by most cameras; drawn by `seed` among equals.
        cameras: camids; all if None.
        seed: of the choice of people and of their images.
        title: above the figure.
        dataset: that the samples are of, which knows the names of people and cameras.

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
        return _Cell(thumbnail(found[rng.integers(len(found))].path)) if found else None

    rows = [[cell(pid, camid) for camid in cameras] for pid in pids]
    labels = [person_name(pid, dataset, "person ") for pid in pids]
    headers = [camera_name(camid, dataset, "camera ") for camid in cameras]
    width = float(np.clip(max(text_width(header, 8.5) for header in headers), _WIDTH, 1.1))
    return _grid(rows, title=title, headers=headers, labels=labels, widths=[width] * len(cameras), draw_empty=True)


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
    return _grid(
        [found[at] for at in shown],
        **{"title": title, "headers": [""] * columns, "labels": [classes[at] for at in shown]},
    )


@styled
def batch_sheet(images: Any, captions: Sequence[str], columns: int = 8, title: str = "", note: str = "") -> Figure:
    """A batch (B, 3, H, W) uint8 as a model was given it, in its order, with B captions."""
    pixels = array(images, np.uint8).transpose(0, 2, 3, 1)
    cells = [_Cell(image, (caption,)) for image, caption in zip(pixels, captions, strict=True)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return _grid(rows, title=title, note=note, headers=[""] * columns, lines=1)


@styled
def row_sheet(
    rows: Sequence[Sequence[Any]], labels: Sequence[str], captions: Sequence[Sequence[str]], title: str = ""
) -> Figure:
    """Rows of samples, each with a label beside it, and a caption below each image."""
    cells = [
        [_Cell(thumbnail(sample.path), (text,)) for sample, text in zip(row, texts, strict=True)]
        for row, texts in zip(rows, captions, strict=True)
    ]
    return _grid(cells, title=title, headers=[""] * max(map(len, cells), default=1), labels=labels, lines=1)


@styled
def pair_sheet(
    pairs: Sequence[tuple[Any, Any, str]], title: str = "", columns: int = 4, dataset: Named | None = None
) -> Figure:
    """Pairs of samples side by side, person and camera below each, and one line of text below the pair.

    Args:
        pairs: two samples, and the text.
        title: above the figure.
        columns: pairs in a row.
        dataset: as in `contact_sheet`.

    Raises:
        ValueError: if there is no pair.
    """

    def cell(sample: Any, text: str) -> _Cell:
        names = person_name(sample.pid, dataset, "person "), camera_name(sample.camid, dataset, "camera ")
        return _Cell(thumbnail(sample.path), (*names, text))

    cells: list[list[_Cell | None]] = [[cell(a, text), cell(b, "")] for a, b, text in pairs]
    if not cells:
        raise ValueError("there is no pair to show")
    rows = [[c for pair in cells[i : i + columns] for c in (*pair, None)] for i in range(0, len(cells), columns)]
    across = len(rows[0]) // 3
    return _grid(rows, title=title, headers=[""] * 3 * across, lines=3, widths=[0.8, 0.8, 0.2] * across)


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


def _query_caption(ap: float | None) -> str:
    return "" if ap is None else "no match" if np.isnan(ap) else f"AP {100 * ap:.0f} %"


def _names(sample: Any, dataset: Named | None) -> tuple[str, str]:
    return person_name(sample.pid, dataset), camera_name(sample.camid, dataset, "c")


def _match_caption(verdict: bool | None, similarity: float) -> str:
    return f"{VERDICTS[verdict][2]} {similarity:.2f}"


@styled
def rank_list(
    queries: Sequence[Any],
    gallery: Sequence[Any],
    ranked: Any,
    similarity: Any,
    *,
    ap: Any = None,
    title: str = "",
    note: str = "",
    dataset: Named | None = None,
) -> Figure:
    """One row a query: the query, then its first k matches, framed right or wrong, with similarity, person and camera.

    What a protocol drops is framed grey and dotted, should it be in the list. Up to 20 matches fit on a page: images
    grow smaller then, captions do not.

    Args:
        queries: Q samples.
        gallery: samples that `ranked` points at.
        ranked: (Q, k) int, gallery indices, best first, -1 where the list is short (left blank).
        similarity: (Q, k) float.
        ap: (Q,) float in [0, 1], NaN for a query without a match; None writes none.
        title: above the figure.
        note: below the title; says which queries these are, and in what order.
        dataset: that the samples are of, which knows the names of people and cameras.

    Raises:
        ValueError: if shapes or indices do not fit.
    """
    ranked, similarity, ap = _checked(queries, gallery, ranked, similarity, ap)
    columns = 1 + ranked.shape[1]
    image_width, gap = _page_share(columns, columns + 0.5)
    widest = max(image_width, min((PAGE - 2 * _MARGIN) / (columns + 0.5) - gap, 1.0))  # that a column may be
    shown = [_names(sample, dataset) for sample in (*queries, *(gallery[i] for i in ranked.ravel() if i >= 0))]
    longest = max((text_width(" · ".join(pair), _FONT) for pair in shown), default=0) - 0.8 * gap
    one_line = longest <= widest
    if not one_line:
        longest = max(text_width(name, _FONT) for pair in shown for name in pair) - 0.8 * gap
    width = float(np.clip(longest, image_width, widest))

    def captions(first: str, sample: Any) -> tuple[str, ...]:
        pair = _names(sample, dataset)
        return (first, " · ".join(pair)) if one_line else (first, *pair)

    def cell(query: Any, index: int, value: float) -> _Cell | None:
        if index < 0:
            return None
        match = gallery[index]
        verdict = _verdict(query, match)
        return _Cell(thumbnail(match.path, image_width), captions(_match_caption(verdict, value), match), verdict)

    rows = [
        [
            _Cell(thumbnail(q.path, image_width), captions(_query_caption(score), q)),
            *(cell(q, i, s) for i, s in zip(*row, strict=True)),
        ]
        for q, score, *row in zip(queries, ap, ranked, similarity, strict=True)
    ]
    return _grid(
        rows,
        **{"title": title, "headers": ["query", *map(str, range(1, columns))], "set_off": 1, "gap": gap},
        **{"widths": [width] * columns, "height": 2 * image_width, "lines": 2 if one_line else 3},
        note=". ".join(filter(None, (note, _NOTE))),
    )


def rank_list_rows(
    queries: Sequence[Any],
    gallery: Sequence[Any],
    ranked: Any,
    similarity: Any,
    *,
    ap: Any = None,
    dataset: Named | None = None,
) -> list[dict[str, Any]]:
    """The table beside `rank_list`, one dict a match, ready for `pandas.DataFrame(rows).to_csv`. Args as there.

    pid and camid are names where the dataset has them, "junk" and "distractor" where it is nobody, else numbers.
    """
    ranked, similarity, ap = _checked(queries, gallery, ranked, similarity, ap)
    rows = []

    def ids(sample: Any, prefix: str = "") -> dict[str, Any]:
        pid = person_name(sample.pid, dataset) if sample.pid < 1 else people.get(sample.pid, sample.pid)
        return {f"{prefix}pid": pid, f"{prefix}camid": cameras.get(sample.camid, sample.camid)}

    people, cameras = (dataset.people, dataset.cameras) if dataset else ({}, {})
    for query, score, indices, values in zip(queries, ap, ranked, similarity, strict=True):
        for rank, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
            if index >= 0:
                match = gallery[index]
                rows.append(
                    {
                        **{"query_path": str(query.path), **ids(query, "query_")},
                        **{"ap": None if score is None else float(score), "rank": rank},
                        **{"path": str(match.path), **ids(match)},
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


def _colour_bar() -> np.ndarray:
    """What `overlay` draws over mid-grey, from 0 at the bottom to the highest value at the top."""
    return overlay(np.full((128, 8, 3), 128, np.uint8), np.tile(np.linspace(1, 0, 128)[:, None], 8), 1)


_SCALES = {
    "row": "One scale for each row, on its right; brightness may be compared along a row",
    "page": "One scale over the page, on the right; brightness may be compared everywhere",
    "map": "Each map has a scale of its own, up to its max below it; brightness may not be compared",
}


def _tops(scale: str, maps: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """The value that is drawn brightest in each row, 1 for "map"."""
    if scale not in _SCALES:
        raise unknown_name("value of scale", scale, _SCALES)
    tops = [max(float(each.max(initial=0)) for each in row) for row in maps]
    return {"row": tops, "page": [max(tops)] * len(tops), "map": [1.0] * len(tops)}[scale]


def _scale_texts(scale: str, tops: Sequence[float]) -> list[tuple[str, str, str]]:
    return [("≤ 0", "max/2", "max") if scale == "map" else ("≤ 0", f"{top / 2:.2g}", f"{top:.2g}") for top in tops]


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
    scale: str = "row",
    title: str = "",
    note: str = "",
    dataset: Named | None = None,
) -> Figure:
    """One row a query: the query, the CAM of its feature, then each match as a pair with the CAM of their similarity.

    A colour bar with numbers beside each row says what its brightness means.

    Args:
        queries, gallery, ranked, similarity, ap, title, note, dataset: as in `rank_list`.
        feature_cams: (Q, h, w) from `feature_cam`.
        query_cams: (Q, k, h, w), the first result of `similarity_cam`; ignored where `ranked` is -1.
        match_cams: (Q, k, h, w), the second.
        scale: "row": from 0 to the highest value in the row; "page": to the highest value on the page.

    Raises:
        ValueError: if shapes or indices do not fit, or for an unknown scale.
    """
    ranked, similarity, ap = _checked(queries, gallery, ranked, similarity, ap)
    feature_cams, query_cams, match_cams = map(array, (feature_cams, query_cams, match_cams))
    if scale == "map":
        raise ValueError("scale 'map' is for cam_sheet: the maps of a pair are compared, choose 'row' or 'page'")
    between, rows = np.full((256, 4, 3), 255, np.uint8), []
    shown = ranked >= 0
    tops = _tops(scale, [(feature_cams[i], query_cams[i][s], match_cams[i][s]) for i, s in enumerate(shown)])
    for i, (query, top) in enumerate(zip(queries, tops, strict=True)):
        image = _stretched(query)
        row: list[_Cell | None] = [
            _Cell(image, (_query_caption(ap[i]), *_names(query, dataset))),
            _Cell(overlay(image, feature_cams[i], top)),
        ]
        for j, index in enumerate(ranked[i]):
            match = gallery[index]
            verdict = _verdict(query, match)
            pair = overlay(image, query_cams[i, j], top), between, overlay(_stretched(match), match_cams[i, j], top)
            captions = _match_caption(verdict, similarity[i, j]), *_names(match, dataset)
            row.append(_Cell(np.hstack(pair), captions, verdict) if index >= 0 else None)
        rows.append(row)
    k = ranked.shape[1]
    width, gap = _page_share(2 + 2 * k, 3.5 + k, _BAR)
    headers = ["query", "feature", *map(str, range(1, k + 1))]
    meaning = (
        "In each pair the query is on the left. Bright: where the similarity comes from; white line: half of the top"
    )
    return _grid(
        rows,
        **{"title": title, "headers": headers, "note": ". ".join(filter(None, (note, _NOTE, meaning, _SCALES[scale])))},
        **{"lines": 3, "widths": [width, width] + [2 * width + 0.02] * k, "height": 2 * width, "gap": gap},
        **{"set_off": 2, "scales": _scale_texts(scale, tops)},
    )


@styled
def cam_sheet(
    samples: Sequence[Any],
    maps: Mapping[str, Any],
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    scale: str = "row",
    title: str = "",
    note: str = "",
    dataset: Named | None = None,
) -> Figure:
    """One row an image: the image, then several CAMs of it, such as those of a network's branches or blocks.

    Args:
        samples: N samples.
        maps: header of a column → its maps (N, h, w).
        captions: header → one line below each of its maps.
        scale: "row": from 0 to the highest value in the row; "page": to the highest value on the page; "map": each map
            to its own highest value, written below it.
        title: above the figure.
        note: below the title.
        dataset: that the samples are of, which knows the names of people and cameras.

    Raises:
        ValueError: for an unknown scale.
    """
    found = {header: array(each) for header, each in maps.items()}
    tops = _tops(scale, [[each[i] for each in found.values()] for i in range(len(samples))])
    rows = []
    for i, (sample, top) in enumerate(zip(samples, tops, strict=True)):
        image = _stretched(sample)
        row = [_Cell(image, _names(sample, dataset))]
        for header, each in found.items():
            own = (f"max {each[i].max():.2g}",) if scale == "map" else ()
            line = (captions[header][i],) if captions and header in captions else ()
            row.append(_Cell(overlay(image, each[i], None if scale == "map" else top), own + line))
        rows.append(row)
    width, gap = _page_share(1 + len(maps), 1.5 + len(maps), _BAR)
    column = max(width, min(0.6, (PAGE - 2 * _MARGIN - _BAR) / (1 + len(maps)) - gap))  # wide enough for the headers
    return _grid(
        rows,
        **{"title": title, "headers": ["", *maps], "note": ". ".join(filter(None, (note, _SCALES[scale])))},
        **{"lines": 2, "widths": [column] * (1 + len(maps)), "height": 2 * width, "gap": gap, "set_off": 1},
        scales=_scale_texts(scale, tops),
    )


def _stretched(sample: Any) -> np.ndarray:
    """The image stretched to 256 × 128, as a model sees it."""
    return np.asarray(Image.fromarray(thumbnail(sample.path)).resize((128, 256), Image.Resampling.BILINEAR))
