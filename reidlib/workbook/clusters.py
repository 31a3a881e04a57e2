"""Clusters of images without labels: a sweep of eps, sheets, questions to a person, and the table that training reads.

What a person says of two images, "same" or "different", is a row of a CSV file. It is applied again after each
clustering as must-link and cannot-link, so that no answer is lost when eps or the model changes.
"""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.data.datasets import ReIDDataset
from reidlib.data.patches import read_verdicts, write_verdicts
from reidlib.data.samples import Sample
from reidlib.files import whole_file
from reidlib.seeds import generator_for
from reidlib.training.clusters import cluster_quality, pseudo_labels

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("same", "different")


class Link(NamedTuple):
    """A row of the table of answers: two images by their paths, and whether they show the same person."""

    path: str
    other: str
    verdict: str
    note: str = ""


# Clusters


def eps_sweep(graph: csr_array, values: Sequence[float], *, min_samples: int = 4, truth: Any = None) -> "pd.DataFrame":
    """`cluster_quality` for each eps, on one graph; those beyond what the graph keeps are left out.

    Args:
        graph: From `jaccard_graph`.
        values: The eps.
        min_samples: See `pseudo_labels`.
        truth: (N,) true people, where they are known: for measuring only.
    """
    import pandas as pd

    rows = {}
    for eps in values:
        if eps <= getattr(graph, "keep", np.inf):
            labels, _ = pseudo_labels(graph, eps=eps, min_samples=min_samples)
            found = cluster_quality(labels, truth=truth)
            measured = ("ari", "pair_precision", "pair_recall")
            rows[eps] = {k: v for k, v in found.items() if k in ("clusters", "outliers", "largest", *measured)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("eps")


def with_links(labels: Tensor, links: Iterable[Link], names: Sequence[str], feats: Tensor) -> Tensor:
    """Labels after the answers of a person: clusters joined by "same", and parted by "different".

    Args:
        labels: (N,), -1 for outliers.
        links: The answers; those about images that are not here are passed over, and so is "different" where "same"
            answers connect the two.
        names: (N,) paths, as in `links`.
        feats: (N, D): images of a parted cluster go with the nearer of the two.

    Returns:
        (N,) int64: joined clusters have the lowest of their numbers, new ones the next; -1 for outliers that nobody
        linked.
    """
    place = {name: n for n, name in enumerate(names)}
    known = [(place[x.path], place[x.other], x.verdict) for x in links if x.path in place and x.other in place]
    same = [(a, b) for a, b, verdict in known if verdict == "same"]
    found = labels.numpy().copy()
    unit = normalize(feats).numpy()
    tied = _components(len(found), same)  # images that answers connect
    for a, b, verdict in known:
        if verdict == "different" and tied[a] != tied[b] and found[a] == found[b] >= 0:
            mine = np.flatnonzero(found == found[a])
            nearer = unit[mine] @ unit[b] > unit[mine] @ unit[a]
            moved = np.where(tied[mine] == tied[b], True, np.where(tied[mine] == tied[a], False, nearer))
            found[mine[moved]] = found.max() + 1
    linked = {n for pair in same for n in pair}
    first: dict[int, int] = {}
    pairs = same + [(first.setdefault(label, n), n) for n, label in enumerate(found.tolist()) if label >= 0]
    parts = _components(len(found), pairs)
    for n in sorted(linked):  # outliers that were linked
        if found[n] < 0:
            found[n] = found.max() + 1
    lowest = np.full(len(found), len(found) * 3)
    np.minimum.at(lowest, parts[found >= 0], found[found >= 0])
    return labels.new_tensor(np.where(found >= 0, lowest[parts], -1))


def _components(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    i, j = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return connected_components(csr_array((np.ones(len(i)), (i, j)), shape=(count, count)), directed=False)[1]


def members(feats: Tensor, labels: Tensor, cluster: int, camids: Sequence[int] = ()) -> list[int]:
    """Images of a cluster, by index: the closest to its mean, the first of each camera, the farthest."""
    mine = (labels == cluster).nonzero()[:, 0]
    unit = normalize(feats[mine])
    order = mine[(unit @ normalize(unit.mean(0), dim=0)).argsort(descending=True, stable=True)].tolist()
    seen: dict[int, int] = {}
    for n in order:
        seen.setdefault(camids[n] if len(camids) else 0, n)
    return list(dict.fromkeys([order[0], *seen.values(), order[-1]]))


def doubtful(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table of `pseudo_labels`, clusters to look at first on top: loose, near another one, of one camera only."""
    one_camera = (table["cameras"] == 1).astype(float)
    return table.assign(doubt=table["mean_distance"] + (1 - table["nearest_distance"]) + 0.5 * one_camera).sort_values(
        "doubt", ascending=False, kind="stable"
    )


# Questions


def questions(
    graph: csr_array, labels: Tensor, table: "pd.DataFrame", *, eps: float, count: int = 20
) -> "pd.DataFrame":
    """Pairs of images to ask a person about: clusters that may be one ("merge"), and one that may be two ("split").

    A merge is asked about the closest pair of a cluster and its nearest; a split about two images of the parts into
    which a cluster falls at eps - 0.1.

    Returns:
        A row for each question: `kind`, `a` and `b` (indices of images) and `distance`, the most telling first.
    """
    import pandas as pd

    found = labels.numpy()
    pairs = graph.tocoo()
    i, j = pairs.coords
    across = (found[i] >= 0) & (found[j] > found[i])
    nearest: dict[tuple[int, int], tuple[float, int, int]] = {}
    for a, b, d in zip(i[across].tolist(), j[across].tolist(), pairs.data[across].tolist(), strict=True):
        key = (int(found[a]), int(found[b]))
        nearest[key] = min(nearest.get(key, (2.0, a, b)), (d, a, b))
    rows = [{"kind": "merge", "a": a, "b": b, "distance": d} for d, a, b in nearest.values()]
    if eps > 0.1:
        tight = pseudo_labels(graph, eps=eps - 0.1)[0].numpy()
        for cluster in table.index:
            mine = np.flatnonzero(found == cluster)
            parts = [mine[tight[mine] == part] for part in np.unique(tight[mine]) if part >= 0]
            if len(parts) > 1:
                largest = sorted(parts, key=len)[-2:]
                rows.append({"kind": "split", "a": int(largest[1][0]), "b": int(largest[0][0]), "distance": eps})
    columns = ["kind", "a", "b", "distance"]
    return pd.DataFrame(rows, columns=columns).sort_values("distance", kind="stable").head(count).reset_index(drop=True)


def random_pairs(graph: csr_array, labels: Tensor, count: int = 50, seed: int = 0) -> "pd.DataFrame":
    """Pairs of images to judge clusters by: half drawn within clusters, half across, of those that the graph has."""
    import pandas as pd

    rng, found = generator_for(seed, "pairs"), labels.numpy()
    pairs = graph.tocoo()
    i, j = pairs.coords
    both = (i < j) & (found[i] >= 0) & (found[j] >= 0)
    rows = []
    for kind, which in (("within", both & (found[i] == found[j])), ("across", both & (found[i] != found[j]))):
        drawn = np.flatnonzero(which)
        for n in rng.permutation(drawn)[: count // 2]:
            rows.append({"kind": kind, "a": int(i[n]), "b": int(j[n]), "distance": float(pairs.data[n])})
    return pd.DataFrame(rows, columns=["kind", "a", "b", "distance"])


def answered(pairs: "pd.DataFrame", links: Iterable[Link], names: Sequence[str]) -> "pd.DataFrame":
    """How many of `pairs` a person called the same, by kind, with the 95 % interval of the share (Wilson, 1927).

    "same" among the pairs within clusters is their precision; among those across it is what clusters miss nearby.
    """
    import pandas as pd

    said = {frozenset((x.path, x.other)): x.verdict for x in links}
    rows = {}
    for kind, part in pairs.groupby("kind", sort=False):
        verdicts = [said.get(frozenset((names[a], names[b]))) for a, b in zip(part["a"], part["b"], strict=True)]
        count, same = sum(v is not None for v in verdicts), verdicts.count("same")
        low, high = share_interval(same, count) if count else (math.nan, math.nan)
        share = same / count if count else math.nan
        rows[kind] = {"asked": len(part), "answered": count, "same": share, "from": low, "to": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def readable(table: "pd.DataFrame", digits: int = 2) -> "pd.DataFrame":
    """A table to look at: column names in words, numbers rounded, nothing where there is no value."""
    words = {name: {"ari": "ARI", "largest": "largest cluster"}.get(name, name.replace("_", " ")) for name in table}
    shown = table.round(digits).astype(object).rename(columns=words)
    return shown.where(table.notna().to_numpy() & (shown.to_numpy() != -1), "")


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score; 0 to 1 without any observation."""
    if not count:
        return 0.0, 1.0
    z2, share = 1.96**2, hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(share * (1 - share) * z2 / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


# Tables


def read_links(file: str | Path) -> list[Link]:
    """Read a table of answers; none where there is no such file. ValueError for other columns or an unknown verdict."""
    if not Path(file).exists():
        return []
    return read_verdicts(file, Link, VERDICTS)


def add_link(file: str | Path, link: Link) -> None:
    """Add an answer to a table, whole or not at all; it replaces an earlier one about the same two images."""
    pair = {link.path, link.other}
    rows = [old for old in read_links(file) if {old.path, old.other} != pair] + [link]
    write_verdicts(file, Link, rows)


def export_clusters(
    file: str | Path,
    samples: Sequence[Sample],
    labels: Tensor,
    data: ReIDDataset,
    *,
    tested: float = 0.0,
    seed: int = 0,
) -> dict[str, int]:
    """Write clusters as the table `path,pid,camid,split` that `load_dataset` reads; outliers are left out.

    Args:
        file: The table; paths are written from its folder.
        samples: The images.
        labels: (N,) clusters, -1 for outliers.
        data: Knows the names of cameras.
        tested: Share of the clusters of two cameras or more that become query (an image of each camera) and gallery.
        seed: Of the choice of these clusters.

    Returns:
        How many images each split has.
    """
    file, rng = Path(file).resolve(), generator_for(seed, "export")
    cameras: dict[int, set[int]] = {}
    for sample, label in zip(samples, labels.tolist(), strict=True):
        cameras.setdefault(label, set()).add(sample.camid)
    several = sorted(label for label, seen in cameras.items() if label >= 0 and len(seen) > 1)
    test = set(rng.permutation(several)[: round(tested * len(several))].tolist())
    rows, asked = [], set()
    for sample, label in zip(samples, labels.tolist(), strict=True):
        if label >= 0:
            split = "train" if label not in test else "gallery" if (label, sample.camid) in asked else "query"
            asked.add((label, sample.camid))
            path = os.path.relpath(Path(sample.path).resolve(), file.parent)
            camera = data.cameras.get(sample.camid, sample.camid)
            rows.append((Path(path).as_posix(), f"cluster{label:05}", camera, split))
    with whole_file(file) as part, open(part, "w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("path", "pid", "camid", "split"), *rows])
    return {split: sum(row[3] == split for row in rows) for split in ("train", "query", "gallery")}


# Buttons


def ask(pairs: "pd.DataFrame", samples: Sequence[Sample], names: Sequence[str], file: str | Path) -> Any:
    """Show pairs one by one with buttons; each answer is in the table at once.

    Returns:
        A widget; without a front end a sentence that says how many there are.
    """
    from reidlib.workbook.views import Note, is_interactive

    if not is_interactive():
        return Note(f"{len(pairs)} pairs, to be answered in JupyterLab; answers go into {Path(file).name}")
    return _Ask(pairs, samples, names, Path(file)).box


class _Ask:
    """The widgets of `ask`."""

    def __init__(self, pairs: "pd.DataFrame", samples: Sequence[Sample], names: Sequence[str], file: Path) -> None:
        import ipywidgets as w

        self.pairs, self.samples, self.names, self.file = pairs, samples, names, file
        self.at = w.IntSlider(0, 0, max(len(pairs) - 1, 0), description="pair", layout=w.Layout(width="480px"))
        self.state, self.images = w.HTML(), [w.Image(height=256, layout=w.Layout(height="256px")) for _ in range(2)]
        self.note = w.Text(placeholder="note (optional)")
        self.buttons = {}
        for verdict in VERDICTS:
            self.buttons[verdict] = w.Button(description=f"{verdict} person", tooltip=verdict)
            self.buttons[verdict].on_click(lambda button: self.decide(button.tooltip))
        self.at.observe(self.draw, "value")
        self.box = w.VBox(
            [w.HBox([self.at, self.state]), w.HBox(self.images), w.HBox([*self.buttons.values(), self.note])]
        )
        self.draw()

    def pair(self) -> tuple[int, int]:
        row = self.pairs.iloc[self.at.value]
        return int(row["a"]), int(row["b"])

    def decide(self, verdict: str) -> None:
        """Write a verdict on the pair that is shown, and show the next one."""
        a, b = self.pair()
        add_link(self.file, Link(self.names[a], self.names[b], verdict, self.note.value))
        self.note.value = ""
        if self.at.value < self.at.max:
            self.at.value += 1
        else:
            self.draw()

    def draw(self, change: Any = None) -> None:
        if not len(self.pairs):
            self.state.value = "there is nothing to ask"
            return
        a, b = self.pair()
        links = read_links(self.file)
        said = {frozenset((x.path, x.other)): x.verdict for x in links}
        this = said.get(frozenset((self.names[a], self.names[b])), "open")
        self.state.value = f"{self.pairs.iloc[self.at.value]['kind']}; {len(links)} answers; this one: {this}"
        for image, n in zip(self.images, (a, b), strict=True):
            image.value = Path(self.samples[n].path).read_bytes()
            image.format = Path(self.samples[n].path).suffix.lower().lstrip(".").replace("jpg", "jpeg")
