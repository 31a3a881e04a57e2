"""A ranked dataset under the mouse: which queries, the list of each, what moved, and lists as HTML.

Plain functions: `Ranked` answers for one query at a time within some hundredths of a second, `list_html` writes what it
answered. `explore` arranges them with widgets where there is a front end, and gives the same HTML where there is none.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.data.samples import ReIDDataset, Sample, file_state
from reidlib.decoding import decode_image
from reidlib.errors import unknown_name
from reidlib.evaluation import (
    Features,
    RankingResult,
    evaluate_distances,
    evaluate_ranking,
    expand_features,
    rank_gallery,
    ranking_inputs,
    rerank,
)
from reidlib.evaluation.spaces import Ids
from reidlib.plots.names import camera_name, person_name
from reidlib.plots.style import VERDICTS
from reidlib.workbook.views import CHOICES, below, choose_queries, is_interactive

if TYPE_CHECKING:
    from reidlib.workbook.runs import Run

DEPTH = 200  # how far a list is looked into for what moved


class Match(NamedTuple):
    """A gallery image in a query's list: its 1-based rank, gallery index, cosine similarity, and whether it is right.

    `before`: its rank in the list that this one is compared with; 0 beyond the first `DEPTH`, None without another.
    """

    rank: int
    item: int
    similarity: float
    right: bool
    before: int | None = None


@dataclass(frozen=True, eq=False)
class Ranked:
    """A dataset and how a model ranks its gallery.

    Attributes:
        data: The dataset.
        query: Q features.
        gallery: G features.
        metric: "cosine" or "euclidean".
        distances: (Q, G) float32 after re-ranking; None where the features say it.
        label: What this ranking is, in a word or two, for headings.
    """

    data: ReIDDataset
    query: Features
    gallery: Features
    metric: str = "cosine"
    distances: Tensor | None = None
    label: str = ""

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        return ranking_inputs(self.query, self.gallery)

    @cached_property
    def result(self) -> RankingResult:
        """The scores."""
        if self.distances is None:
            return evaluate_ranking(*self.inputs, metric=self.metric, **self.ids.rules())
        return evaluate_distances(self.distances, *self.inputs[2:], **self.ids.rules())

    @cached_property
    def ids(self) -> Ids:
        """All ids, and which of them the dataset's protocol leaves out."""
        return Ids(*self.inputs[2:], **self.data.protocol())

    def right_matches(self, i: int) -> Tensor:
        """Gallery indices of the right matches of query i, (R,) int64."""
        items = ((self.gallery.pids == self.query.pids[i]) & (self.gallery.pids != -1)).nonzero()[:, 0]
        return items[self.ids.kept(torch.full_like(items, i), items)]

    def score(self, i: int) -> tuple[int, float]:
        """The rank of the first right match of query i, and its average precision; (-1, NaN) without a match."""
        if not len(self.right_matches(i)):
            return -1, math.nan
        return int(self.result.first_match[i]), float(self.result.ap[i])

    @cached_property
    def unit(self) -> tuple[Tensor, Tensor]:
        """Query and gallery features of length 1: their products are the similarities that are shown."""
        return normalize(self.query.feats), normalize(self.gallery.feats)

    def nearest(self, i: int, k: int = 10, *, camera: int | None = None) -> list[Match]:
        """The first k gallery images for query i, as the protocol ranks them; of one camera alone by `camera`."""
        return self.lists([i], k, camera=camera)[0]

    def lists(
        self,
        picked: Sequence[int],
        k: int = 10,
        *,
        camera: int | None = None,
        earlier: "Ranked | None" = None,
    ) -> list[list[Match]]:
        """`nearest` of several queries: the gallery is gone through once for all of them.

        Args:
            picked: Query indices.
            k: Images in a list.
            camera: Only gallery images of this camera.
            earlier: Another ranking of the same dataset: each match then has its rank there as `before`.
        """
        every = torch.arange(len(self.gallery))
        keep = every if camera is None else every[self.gallery.camids == camera]
        k = min(k, len(keep))
        if not k:
            return [[] for _ in picked]
        # Indexing copies the gallery's features: Market-1501's take 170 MB.
        feats, gallery, *ids = (
            x[torch.as_tensor(picked)] if n % 2 == 0 else x if camera is None else x[keep]
            for n, x in enumerate(self.inputs)
        )
        if self.distances is None:
            rules = self.ids.rules(torch.as_tensor(picked), keep)
            found = rank_gallery(feats, gallery, *ids, k=k, metric=self.metric, **rules)
            ranked = [(at[at >= 0], right[at >= 0]) for at, right in zip(found.indices, found.matches, strict=True)]
        else:
            ranked = []
            for i in picked:
                right = torch.isin(keep, self.right_matches(i))
                dropped = ~right & ((self.gallery.pids[keep] == -1) | (self.gallery.pids[keep] == self.query.pids[i]))
                order = self.distances[i][keep].masked_fill(dropped, torch.inf).argsort(stable=True)
                at = order[: min(k, int((~dropped).sum()))]
                ranked.append((at, right[at]))
        found_lists = []
        for i, (at, right) in zip(picked, ranked, strict=True):
            similarity = self.unit[1][keep[at]] @ self.unit[0][i]
            rows = zip(keep[at].tolist(), similarity.tolist(), right.tolist(), strict=True)
            found_lists.append([Match(rank, *row) for rank, row in enumerate(rows, start=1)])
        if earlier is None:
            return found_lists
        ranks = [{m.item: m.rank for m in matches} for matches in earlier.lists(picked, DEPTH, camera=camera)]
        pairs = zip(found_lists, ranks, strict=True)
        return [[m._replace(before=there.get(m.item, 0)) for m in matches] for matches, there in pairs]

    def nearest_right(self, i: int) -> Match | None:
        """The right match that comes first in the list of query i; None if the gallery has none."""
        rank, _ = self.score(i)
        if rank < 1:
            return None
        at = self.right_matches(i)
        similarity = self.unit[1][at] @ self.unit[0][i]
        if self.distances is not None:
            best = int(self.distances[i][at].argmin())
        elif self.metric == "euclidean":
            best = int((self.gallery.feats[at] - self.query.feats[i]).norm(dim=1).argmin())
        else:
            best = int(similarity.argmax())
        return Match(rank, int(at[best]), float(similarity[best]), True)

    def asking(self, at: int) -> "Ranked":
        """The rest of the gallery with one query, the gallery image `at`, ranked by the features."""
        pid = int(self.gallery.pids[at])
        nobody = torch.tensor([pid if pid > 0 else -1])  # a distractor is nobody's match, nor another distractor's
        query = Features(self.gallery.feats[at : at + 1], nobody, self.gallery.camids[at : at + 1])
        rest = self.gallery.pids.clone()
        rest[at] = -1
        return replace(
            self,
            data=replace(self.data, query=(self.data.gallery[at],)),
            query=query,
            gallery=replace(self.gallery, pids=rest),
            distances=None,
            label="a gallery image as the query",
        )

    def reranked(self, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, progress: bool = False) -> "Ranked":
        """By k-reciprocal encoding (Zhong et al., CVPR 2017)."""
        how = {"k1": k1, "k2": k2, "lambda_value": lambda_value, "metric": self.metric, "progress": progress}
        distances = rerank(self.query.feats, self.gallery.feats, **how)
        return replace(self, distances=distances, label=f"re-ranked (k1 {k1}, k2 {k2}, λ {lambda_value:g})")

    def expanded(self, *, k: int = 10, alpha: float = 3.0) -> "Ranked":
        """By the features of query and gallery after average query expansion (Chum et al., ICCV 2007)."""
        feats = expand_features(self.query.feats, self.gallery.feats, k=k, alpha=alpha)
        query, gallery = (
            replace(split, feats=x.float()) for split, x in zip((self.query, self.gallery), feats, strict=True)
        )
        return replace(self, query=query, gallery=gallery, distances=None, label=f"expanded (k {k}, α {alpha:g})")


def of_run(
    run: "Run", data: ReIDDataset, metric: str = "", *, flip: bool = False, workers: int = 0, progress: bool = False
) -> Ranked:
    """The ranking of a dataset by a run's model; `metric` is the run's own where it is empty."""
    query, gallery = run.features(run.load_model(), data, flip=flip, workers=workers, progress=progress)
    return Ranked(data, query, gallery, metric or run.metric, label=run.name + ", flip" * flip)


def find_queries(
    ranked: Ranked,
    show: str = "worst",
    count: int = 6,
    *,
    chosen: Sequence[int] = (),
    seed: int = 0,
    person: str = "",
    camera: str = "",
    file: str = "",
) -> tuple[list[int], str]:
    """Indices of queries, and in words which they are.

    Args:
        ranked: What is looked at.
        show: "worst", "best" or "random" by average precision; "wrong": the worst whose first match is wrong; "chosen".
        count: How many.
        chosen: Query indices, for "chosen".
        seed: Of "random".
        person: Only queries of this person, by name or number.
        camera: Only queries of this camera, by name or number.
        file: Only queries whose path contains this text, in any case.

    Raises:
        ValueError: An unknown `show`, person or camera (with the nearest names), or no query is left.
    """
    if show not in (shows := (*CHOICES, "wrong")):
        raise unknown_name("value of show", show, shows)
    data, ap = ranked.data, ranked.result.ap
    names = {
        "person": (person, [person_name(s.pid, data) for s in data.query]),
        "camera": (camera, [camera_name(s.camid, data) for s in data.query]),
    }
    keep = torch.ones(len(data.query), dtype=torch.bool)
    for what, (wanted, every) in names.items():
        if wanted:
            if wanted not in every:
                raise unknown_name(what, wanted, sorted(set(every)))
            keep &= torch.tensor([name == wanted for name in every])
    if file:
        keep &= torch.tensor([file.lower() in str(s.path).lower() for s in data.query])
    words = [f"{what} {wanted}" for what, (wanted, _) in names.items() if wanted] + [f"file “{file}”"] * bool(file)
    if show == "wrong":
        keep &= ranked.result.first_match > 1
        words.append("wrong at rank 1")
    if not keep.any():
        raise ValueError(f"no query is left: {', '.join(words)}")
    if show == "chosen":
        return choose_queries(ap, show, count, chosen=chosen)
    at = torch.nonzero(keep).flatten()
    picked, order = choose_queries(ap[at], "worst" if show == "wrong" else show, count, seed=seed)
    return at[picked].tolist(), order + f" ({', '.join(words)})" * bool(words)


# HTML

_KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}  # what a browser shows as it is


@lru_cache(8192)
def _picture(path: Path, height: int, state: tuple[int, int, int]) -> str:
    if state[0] <= 12_000 and (kind := _KINDS.get(path.suffix.lower())):
        content = path.read_bytes()
    else:
        image, file, kind = decode_image(path), BytesIO(), "jpeg"
        image.thumbnail((4 * height, height))
        image.save(file, "JPEG", quality=88)
        content = file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(path: str | Path, height: int = 256) -> str:
    """An image file as the address of an <img>: as it is where it is small, else a JPEG of at most `height` pixels.

    Raises OSError naming a file that cannot be read.
    """
    return _picture(Path(path), height, file_state(path))


def image_html(data: ReIDDataset, sample: Sample, lines: Sequence[str], frame: str, height: int = 112) -> str:
    """A figure of one image: `lines` below it, `frame` (a line style and a colour) around it."""
    who = f"{person_name(sample.pid, data, 'person ')}, {camera_name(sample.camid, data, 'camera ')}"
    title = escape(f"{who}, {below(sample.path, data.root)}")
    style = f"height: {height}px; border: 3px {frame}; display: block; margin: auto"
    words = "<br>".join(map(escape, lines))
    return (
        f'<figure style="margin: 0 6px 8px 0; text-align: center; font-size: 11px; line-height: 1.3">'
        f'<img src="{picture(sample.path)}" alt="{title}" title="{title}" style="{style}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def css_frame(right: bool) -> str:
    """The frame of a right or a wrong match, as in the figures: line style and colour."""
    colour, line, _ = VERDICTS[right]
    return f"{'solid' if line == '-' else 'dashed'} {colour}"


def _match_html(ranked: Ranked, match: Match, height: int) -> str:
    data, sample = ranked.data, ranked.data.gallery[match.item]
    lines = [f"{match.rank}  {VERDICTS[match.right][2]} {match.similarity:.2f}"]
    if match.before is not None:
        moved = "" if match.before == match.rank else f"from {match.before}" if match.before else f"from > {DEPTH}"
        lines.append(moved or "–")
    names = f"{person_name(sample.pid, data)} · {camera_name(sample.camid, data, 'c')}"
    return image_html(data, sample, (*lines, names), css_frame(match.right), height)


def list_html(
    ranked: Ranked,
    picked: Sequence[int],
    k: int = 10,
    *,
    earlier: Ranked | None = None,
    camera: int | None = None,
    height: int = 112,
) -> str:
    """Rank lists as one piece of HTML that needs no other file.

    Each row is a query, its first k matches, and, where none of them is right, the right one that comes first. Solid
    frames and ✓ are right, dashed ones and ✗ wrong; numbers are rank and cosine similarity.

    Args:
        ranked: What is shown.
        picked: Query indices.
        k: Matches in a row.
        earlier: Another ranking of the same dataset: each match then says from which rank it came.
        camera: Only gallery images of this camera.
        height: Of an image on the page, in pixels.
    """
    rows, data = [], ranked.data
    for i, matches in zip(picked, ranked.lists(picked, k, camera=camera, earlier=earlier), strict=True):
        query, (_, ap) = data.query[i], ranked.score(i)
        first = ranked.nearest_right(i)
        found = "no right match in the gallery" if first is None else f"first right: {first.rank}"
        score = "" if first is None else f"AP {100 * ap:.1f} %, "
        who = f"{person_name(query.pid, data)} · {camera_name(query.camid, data, 'c')}"
        cells = [image_html(data, query, (f"query {i}", who), "solid #222", height)]
        cells += [_match_html(ranked, match, height) for match in matches]
        if first and first.item not in {match.item for match in matches}:
            cells += ['<div style="padding: 40px 8px 0 2px">…</div>', _match_html(ranked, first, height)]
        label = f"{ranked.label}: " if ranked.label else ""
        head = f'<div style="font-size: 12px; margin: 4px 0"><b>{escape(label)}</b>{score}{found}</div>'
        rows.append(f'{head}<div style="display: flex; flex-wrap: wrap">{"".join(cells)}</div>')
    return f'<div style="background: white; color: #222; padding: 4px">{"".join(rows)}</div>'


# Widgets

Source = Ranked | Callable[[], Ranked]


def explore(
    rankings: Mapping[str, Source],
    *,
    show: str = "worst",
    k: int = 10,
    start: Sequence[int] = (),
    rows: int = 4,
    beside: str = "",
) -> Any:
    """Choose queries and look at their lists; where there is no front end, the first of them as HTML.

    Choose by order, person, camera and file name; step through the queries that are left with the slider, by mouse or
    by arrow keys; set a second ranking below the first, which then says what moved.

    Args:
        rankings: Names → rankings of one dataset, or functions that make one when it is first asked for. The first is
            shown first.
        show: The order to begin with, as in `find_queries`.
        k: Images in a list.
        start: Query indices to begin with; empty: by `show`.
        rows: How many of them.
        beside: Name of a second ranking to set below the first from the beginning.

    Returns:
        A widget, or HTML.
    """
    from IPython.display import HTML

    made: dict[str, Ranked] = {}

    def ranking(name: str) -> Ranked:
        if name not in made:
            source = rankings[name]
            found = source if isinstance(source, Ranked) else source()
            made[name] = found if found.label else replace(found, label=name)
        return made[name]

    first = next(iter(rankings))
    if not is_interactive():
        picked = list(start) or find_queries(ranking(first), show, rows)[0]
        note = "<p><small>With a kernel and a front end, queries can be chosen here with the mouse.</small></p>"
        if not beside:
            return HTML(list_html(ranking(first), picked, k) + note)
        one, two = ranking(first), ranking(beside)
        pairs = (list_html(one, [i], k) + list_html(two, [i], k, earlier=one) for i in picked)
        return HTML("<hr>".join(pairs) + note)
    return ListExplorer(ranking, list(rankings), show, k, list(start), beside).box


class ListExplorer:
    """The widgets of `explore`, and which queries they leave."""

    def __init__(
        self,
        ranking: Callable[[str], Ranked],
        names: list[str],
        show: str,
        k: int,
        start: list[int],
        beside: str,
    ) -> None:
        import ipywidgets as w

        self.ranking, self.start = ranking, start
        data = ranking(names[0]).data
        people = sorted({person_name(s.pid, data) for s in data.query})
        cameras = sorted({camera_name(s.camid, data) for s in data.query})
        orders = [("as given", "chosen")] * bool(start) + [(words, key) for key, words in _ORDERS.items()]
        order = "chosen" if start else show
        wide = w.Layout(width="230px")
        self.order = w.Dropdown(options=orders, value=order, description="order")
        self.person = w.Combobox(options=people, placeholder="any", description="person", layout=wide)
        self.camera = w.Dropdown(options=[("any", ""), *((c, c) for c in cameras)], description="camera", layout=wide)
        self.to = w.Dropdown(options=[("all", None), *_cameras(data)], description="gallery of", layout=wide)
        self.file = w.Text(placeholder="part of a file name", description="file", layout=wide)
        self.which = w.Dropdown(options=names, description="ranking", layout=wide)
        self.beside = w.Dropdown(options=["", *names], value=beside, description="beside it", layout=wide)
        self.length = w.BoundedIntText(k, 1, 100, description="images", layout=w.Layout(width="160px"))
        self.at = w.IntSlider(0, 0, 0, description="query", continuous_update=True, layout=w.Layout(width="520px"))
        self.note, self.shown = w.HTML(), w.HTML()
        self.picked = [0]
        for widget in (self.order, self.person, self.camera, self.file, self.which):
            widget.observe(self.choose, "value")
        for widget in (self.to, self.beside, self.length, self.at):
            widget.observe(self.draw, "value")
        self.box = w.VBox(
            [
                w.HBox([self.order, self.person, self.camera, self.file]),
                w.HBox([self.which, self.beside, self.to, self.length]),
                w.HBox([self.at, self.note]),
                self.shown,
            ]
        )
        self.choose()

    def choose(self, change: Any = None) -> None:
        """Find the queries that are left, and show the first."""
        ranked = self.ranking(self.which.value)
        try:
            which = {"person": self.person.value, "camera": self.camera.value, "file": self.file.value}
            every = len(ranked.data.query)
            self.picked, words = find_queries(ranked, self.order.value, every, chosen=self.start, **which)
        except ValueError as error:
            self.note.value = f"<b>{escape(str(error))}</b>"
            return
        self.note.value = f"{escape(words)}; ← → with the slider in focus"
        self.at.max, self.at.value = len(self.picked) - 1, 0
        self.draw()

    def draw(self, change: Any = None) -> None:
        """Show the lists of the query that the slider stands at."""
        i, ranked = self.picked[min(self.at.value, len(self.picked) - 1)], self.ranking(self.which.value)
        html = list_html(ranked, [i], self.length.value, camera=self.to.value)
        if self.beside.value:
            other = self.ranking(self.beside.value)
            html += list_html(other, [i], self.length.value, earlier=ranked, camera=self.to.value)
        self.shown.value = html


_ORDERS = {"worst": "worst first", "wrong": "wrong at rank 1", "best": "best first", "random": "at random"}


def _cameras(data: ReIDDataset) -> list[tuple[str, int]]:
    return [(str(camera_name(camid, data, "camera ")), camid) for camid in sorted({s.camid for s in data.gallery})]
