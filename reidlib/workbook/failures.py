"""What went wrong in a ranking, in groups with a rule each, and which labels the features doubt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.data.patches import Correction, apply_corrections, person_key, read_corrections, write_corrections
from reidlib.data.samples import ReIDDataset
from reidlib.plots.names import camera_name, person_name
from reidlib.workbook.ranked import Match, Ranked, css_frame, image_html
from reidlib.workbook.views import below, is_interactive

if TYPE_CHECKING:
    import pandas as pd

# The kinds of failure, in the order in which the rules are tried; the last is what none of them explains.
RULES = {
    "suspected label": "at least 4 of the first 5 images are of one other person, from 2 or more cameras",
    "low similarity": "the first image is less similar than those of 90 % of all queries (occluded, cut off)",
    "distractor": "more than half of the images ahead of the first right one are distractors",
    "lookalike": "the person of the first image stands ahead of the first right one at least twice",
    "camera look": "at least 80 % of 3 or more images ahead of the first right one come from one camera",
    "other": "none of these",
}
DEPTH = 10  # images of a list that the rules look at


def explain(ranked: Ranked) -> "pd.DataFrame":
    """Every query whose first image is wrong, with the first rule that it fits.

    Args:
        ranked: What is looked at.

    Returns:
        A row a query, the worst first: `query` (its index), `kind` (of `RULES`), `ap` (0 to 1), `first_right` (rank),
        `similarity` of the first image, and `instead`: the person or camera that the kind is about, by name.
    """
    import pandas as pd

    valid = torch.nonzero(ranked.result.first_match > 0).flatten().tolist()
    lists = dict(zip(valid, ranked.lists(valid, DEPTH), strict=True))
    tops = torch.tensor([matches[0].similarity for matches in lists.values()])
    low = float(tops.quantile(0.1)) if len(tops) else 0.0
    rows = []
    for i, matches in lists.items():
        first = int(ranked.result.first_match[i])
        if first > 1:
            kind, instead = _kind(ranked, matches, first, low)
            ap = float(ranked.result.ap[i])
            rows.append((i, kind, ap, first, matches[0].similarity, instead))
    table = pd.DataFrame(rows, columns=["query", "kind", "ap", "first_right", "similarity", "instead"])
    return table.sort_values("ap", kind="stable", ignore_index=True)


def _kind(ranked: Ranked, matches: Sequence[Match], first: int, low: float) -> tuple[str, str]:
    data = ranked.data
    shown = [data.gallery[match.item] for match in matches]
    ahead = shown[: first - 1]
    near = [s for s, match in zip(shown[:5], matches, strict=False) if s.pid > 0 and not match.right]
    person, votes = Counter(s.pid for s in near).most_common(1)[0] if near else (0, 0)
    if votes >= 4 and len({s.camid for s in near if s.pid == person}) > 1:
        return "suspected label", person_name(person, data)
    if matches[0].similarity < low:
        return "low similarity", ""
    if sum(s.pid == 0 for s in ahead) > len(ahead) / 2:
        return "distractor", ""
    if ahead[0].pid > 0 and sum(s.pid == ahead[0].pid for s in ahead) > 1:
        return "lookalike", person_name(ahead[0].pid, data)
    camid, count = Counter(s.camid for s in ahead).most_common(1)[0]
    if count >= 3 and count >= 0.8 * len(ahead):
        return "camera look", camera_name(camid, data, "camera ")
    return "other", ""


def lost_map(ranked: Ranked, failures: "pd.DataFrame") -> "pd.DataFrame":
    """How many points of mAP each kind of failure costs: what would be won if all its queries were perfect.

    Args:
        ranked: What was looked at.
        failures: From `explain`.

    Returns:
        A row a kind and one for queries that are right at rank 1 and find later matches late: `queries`, `points of
        mAP`, `share of what is lost (%)`, and the `rule`.
    """
    import pandas as pd

    count, lost = ranked.result.num_valid, 100 * (1 - ranked.result.mAP)
    rows = {}
    for kind, rule in RULES.items():
        ap = failures.loc[failures["kind"] == kind, "ap"]
        rows[kind] = (len(ap), float((1 - ap).sum()) * 100 / count, rule)
    right = ranked.result.first_match == 1
    points = float((1 - ranked.result.ap[right]).sum()) * 100 / count
    rows["right at rank 1"] = (int(right.sum()), points, "later matches come late")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["queries", "points of mAP", "rule"])
    table.insert(2, "share of what is lost (%)", 100 * table["points of mAP"] / (lost or 1))
    return table.round(1)


class Suspect(NamedTuple):
    """An image whose label the features doubt.

    Attributes:
        at: Its index among query and gallery together.
        proposed: The pid that it looks like.
        own, other: Mean similarity to the two most similar images of its own person, and of that one.
        partner: Index of a suspect labelled `proposed` that looks like this one's pid: the two may have been swapped;
            -1 without one.
    """

    at: int
    proposed: int
    own: float
    other: float
    partner: int = -1


def suspects(feats: Tensor, pids: Tensor, *, count: int | None = None, block: int = 512) -> list[Suspect]:
    """Images in the order of doubt: how much more alike the two nearest images of another person are than its own.

    A person of one image has nobody to compare with and is left out, as are junk and distractors.

    Args:
        feats: (N, D) float features.
        pids: (N,) int64 labels.
        count: How many to return; all by default.
        block: Rows at a time; memory is `block` × N floats.
    """
    people, label, sizes = pids.unique(return_inverse=True, return_counts=True)
    unit = normalize(feats.float())
    real = people > 0
    found = []
    for rows in torch.arange(len(pids)).split(block):
        near = unit[rows] @ unit.T  # (B, N)
        near[torch.arange(len(rows)), rows] = -2  # an image is no evidence for its own label
        first = _highest(near, label, len(people))
        near[near == first.gather(1, label.expand(len(rows), -1))] = -2
        second = _highest(near, label, len(people))
        mean = torch.where(second > -2, (first + second) / 2, first)  # (B, people)
        own = mean.gather(1, label[rows, None])[:, 0]
        mean[:, ~real] = -2
        mean.scatter_(1, label[rows, None], -2)
        other, proposed = mean.max(dim=1)
        found += [
            Suspect(int(at), int(people[p]), float(mine), float(theirs))
            for at, p, mine, theirs in zip(rows, proposed, own, other, strict=True)
            if real[label[at]] and sizes[label[at]] > 1
        ]
    found.sort(key=lambda s: s.own - s.other)
    best = {(int(pids[s.at]), s.proposed): s.at for s in reversed(found[: len(found) // 4])}
    partners = (best.get((s.proposed, int(pids[s.at])), -1) for s in found)
    return [s._replace(partner=partner) for s, partner in zip(found, partners, strict=True)][:count]


def _highest(near: Tensor, label: Tensor, people: int) -> Tensor:
    """(B, N) similarities → (B, people): the highest to each person, -2 where there is none."""
    highest = near.new_full((len(near), people), -2.0)
    return highest.scatter_reduce_(1, label.expand(len(near), -1), near, "amax")


def with_swapped_labels(data: ReIDDataset, share: float, *, seed: int = 0) -> ReIDDataset:
    """A dataset in which this share of the query and gallery images of people carry another one's label, in pairs.

    Args:
        data: The dataset; it stays as it is.
        share: From 0 to 1.
        seed: Of the choice.
    """
    if not share:
        return data
    samples = [*data.query, *data.gallery]
    draw = np.random.default_rng(seed)
    order = draw.permutation([i for i, s in enumerate(samples) if s.pid > 0])
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for a, b in zip(order[::2].tolist(), order[1::2].tolist(), strict=False):
        if len(taken) < round(share * len(order)) and samples[a].pid != samples[b].pid:
            pairs.append((a, b))
            taken |= {a, b}
    for a, b in pairs:
        samples[a], samples[b] = samples[a]._replace(pid=samples[b].pid), samples[b]._replace(pid=samples[a].pid)
    count = len(data.query)
    note = f"the labels of {len(taken)} test images were swapped (seed {seed})"
    notes = (*data.notes, note)
    return replace(data, query=tuple(samples[:count]), gallery=tuple(samples[count:]), notes=notes, version=note)


def corrected(ranked: Ranked, file: str | Path) -> Ranked:
    """The same features ranked by corrected labels.

    Args:
        ranked: What was looked at; re-ranked distances stay as they are.
        file: A table of corrections.
    """
    data = apply_corrections(ranked.data, file)
    query, gallery = (
        replace(feats, pids=torch.tensor([s.pid for s in samples]))
        for feats, samples in ((ranked.query, data.query), (ranked.gallery, data.gallery))
    )
    return replace(ranked, data=data, query=query, gallery=gallery)


def suspected_labels(ranked: Ranked, count: int | None = None) -> list[Suspect]:
    """`suspects` among the query and gallery images of a ranked dataset."""
    feats = torch.cat([ranked.query.feats, ranked.gallery.feats])
    return suspects(feats, torch.cat([ranked.query.pids, ranked.gallery.pids]), count=count)


def suspect_html(ranked: Ranked, suspect: Suspect, k: int = 5) -> str:
    """A suspect, its k nearest images of its own person, and those of the person it looks like."""
    data = ranked.data
    samples = [*data.query, *data.gallery]
    unit, sample = torch.cat(ranked.unit), samples[suspect.at]
    near = unit @ unit[suspect.at]
    pids = torch.tensor([s.pid for s in samples])
    pids[suspect.at] = -1
    cells = [image_html(data, sample, ("labelled", person_name(sample.pid, data)), "solid #222")]
    for pid, words, right in ((sample.pid, "its label:", True), (suspect.proposed, "looks like:", False)):
        frame = css_frame(right)
        name = escape(person_name(pid, data))
        cells.append(f'<div style="padding: 30px 8px 0 12px; font-size: 11px">{words}<br><b>{name}</b></div>')
        of_them = pids == pid
        for at in near.masked_fill(~of_them, -2).topk(min(k, int(of_them.sum()))).indices.tolist():
            lines = (f"{near[at]:.2f}", camera_name(samples[at].camid, data, "c"))
            cells.append(image_html(data, samples[at], lines, frame))
    return f'<div style="display: flex; flex-wrap: wrap; background: white; color: #222">{"".join(cells)}</div>'


def corrections(ranked: Ranked, suspect: Suspect, verdict: str, note: str = "") -> list[Correction]:
    """What a verdict on a suspect means as rows of the table: two of them for a swap.

    Args:
        ranked: What is looked at.
        suspect: The image.
        verdict: "same", "other", "swap" or "junk".
        note: Anything.

    Raises:
        ValueError: A swap where there is no partner.
    """
    data = ranked.data
    samples = [*data.query, *data.gallery]
    sample = samples[suspect.at]
    mine, theirs = person_key(data, sample.pid), person_key(data, suspect.proposed)
    if verdict == "swap" and suspect.partner < 0:
        raise ValueError(f"no image of {theirs} looks like {mine}: choose other")
    new = {"same": mine, "junk": "junk"}.get(verdict, theirs)
    rows = [Correction(data.relative(sample), mine, new, verdict, note)]
    if verdict == "swap":
        rows.append(Correction(data.relative(samples[suspect.partner]), theirs, mine, verdict, note))
    return rows


def repair(ranked: Ranked, file: str | Path, *, count: int = 100, shown: int = 5) -> Any:
    """Decide on suspected labels one by one; each verdict is in the CSV at once.

    Args:
        ranked: What is looked at.
        file: The table of corrections; it is continued if it is there.
        count: Suspects to go through.
        shown: How many are shown where nobody can press a button.

    Returns:
        A widget; without a front end the first suspects as HTML.
    """
    from IPython.display import HTML

    found = suspected_labels(ranked, count)
    if not is_interactive():
        sheets = "".join(f"<p>{_sentence(ranked, s)}</p>{suspect_html(ranked, s)}" for s in found[:shown])
        return HTML(sheets + "<p><small>With a kernel and a front end, each can be decided with a button.</small></p>")
    return _Repair(ranked, found, Path(file)).box


def _sentence(ranked: Ranked, suspect: Suspect) -> str:
    data = ranked.data
    sample = [*data.query, *data.gallery][suspect.at]
    path, own, other = below(sample.path, data.root), person_name(sample.pid, data), person_name(suspect.proposed, data)
    text = f"{path} is labelled {own} (similarity {suspect.own:.2f}) and looks like {other} ({suspect.other:.2f})"
    return escape(text)


class _Repair:
    """The widgets of `repair`."""

    def __init__(self, ranked: Ranked, found: Sequence[Suspect], file: Path) -> None:
        import ipywidgets as w

        self.ranked, self.found, self.file = ranked, found, file
        self.rows = read_corrections(file) if file.exists() else []
        self.at = w.IntSlider(0, 0, max(len(found) - 1, 0), description="suspect", layout=w.Layout(width="480px"))
        self.note = w.Text(placeholder="note (optional)")
        self.text, self.sheet, self.state = w.HTML(), w.HTML(), w.HTML()
        self.buttons = {}
        for verdict, words in _VERDICTS.items():
            self.buttons[verdict] = w.Button(description=words, tooltip=verdict)
            self.buttons[verdict].on_click(lambda button: self.decide(button.tooltip))
        self.at.observe(self.draw, "value")
        self.box = w.VBox(
            [w.HBox([self.at, self.state]), self.text, self.sheet, w.HBox([*self.buttons.values(), self.note])]
        )
        self.draw()

    def decide(self, verdict: str) -> None:
        """Write a verdict on the suspect that is shown, and show the next one."""
        self.rows += corrections(self.ranked, self.found[self.at.value], verdict, self.note.value)
        write_corrections(self.file, self.rows)
        self.rows = read_corrections(self.file)
        self.note.value = ""
        if self.at.value < self.at.max:
            self.at.value += 1
        else:
            self.draw()

    def draw(self, change: Any = None) -> None:
        if not self.found:
            self.text.value = "no label is doubted"
            return
        suspect = self.found[self.at.value]
        path = self.ranked.data.relative([*self.ranked.data.query, *self.ranked.data.gallery][suspect.at])
        decided = {row.path: row.verdict for row in self.rows}
        self.state.value = f"{len(self.rows)} in {escape(self.file.name)}" + f"; this one: {decided.get(path, 'open')}"
        self.text.value, self.sheet.value = _sentence(self.ranked, suspect), suspect_html(self.ranked, suspect)
        self.buttons["swap"].disabled = suspect.partner < 0


_VERDICTS = {"same": "same person", "other": "other person", "swap": "swapped", "junk": "junk"}
