"""A result beside what was published for the same model, training set and test set: reached, or why perhaps not.

Reached is a difference of 0.3 points or less in Rank-1 and in mAP. Beyond that, whatever is known to differ between the
two sides is named, the likeliest first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from reidlib.data.datasets import PUBLISHED
from reidlib.evaluation import Features, evaluate_ranking, ranking_inputs
from reidlib.models.printed.published import Published, published
from reidlib.models.zoo import declaration

TOLERANCE = 0.3  # points


class Parity(NamedTuple):
    """A result and one published row. The differences are in points, ours minus theirs."""

    row: Published
    tested_on: str
    rank1: float
    mAP: float
    causes: tuple[str, ...] = ()  # none at parity
    counted: "Parity | None" = None  # the same features ranked and counted as the source did, where that differs

    @property
    def verdict(self) -> str:
        """ "parity"; else "above", "below" or, where Rank-1 and mAP disagree, "mixed"."""
        far = {points > 0 for points in (self.rank1, self.mAP) if abs(points) > TOLERANCE}
        return "parity" if not far else "mixed" if len(far) > 1 else "above" if far == {True} else "below"

    def __str__(self) -> str:
        said = f"{self.tested_on} beside {self.row.table}: {self.verdict}"
        if self.verdict == "parity":
            return said
        said += f", perhaps because {', '.join(self.causes) or 'of something else: nothing known differs'}"
        if self.counted is None:
            return said
        return f"{said}; ranked and counted as there: {self.counted.scores} ({self.counted.verdict})"

    @property
    def scores(self) -> str:
        """Ours, in percent."""
        return f"Rank-1 {self.row.rank1 + self.rank1:.1f}, mAP {self.row.mAP + self.mAP:.1f}"


def compare(
    about: Mapping[str, Any],
    tested_on: str,
    result: Mapping[str, Any],
    features: tuple[Features, Features] | None = None,
) -> list[Parity]:
    """What was published for the model that `about` describes, beside its `result` on `tested_on`.

    `about` is a model.json, for a run of one's own with the recipe and what is overridden of it from its params.json.
    `result` is an entry of result.json: shares in [0, 1], `metric`, `cameras` (whether the model was told them), the
    data's `version` and `images`, num_valid and num_query; where it was not counted in this workbook's way, also
    `flip`, `multi_query`, `precision` and `means_over`. Published weights are compared with the rows that link to them,
    others with all rows of their name; without a row the list is empty. Short of parity, `features` of query and
    gallery are ranked and counted again in the source's way, to show how much of the gap that is.
    """
    link = about.get("weights", {}).get("link")
    found = []
    for row in published(about["name"]):
        same = row.weights == about["trained_on"] and row.tested_on == tested_on and not row.rerank
        if same and row.rank1 is not None and link in (None, "", row.link):
            parity = _measure(row, tested_on, result)
            if parity.verdict != "parity":
                ours = {
                    "interpolation": "bilinear",
                    "flip": False,
                    "multi_query": "",
                    "precision": "float32",
                    "means_over": "valid",
                    **about,
                    **result,
                }
                causes = tuple(filter(None, (cause(ours, parity) for cause in _CAUSES)))
                again = any(cause(ours, parity) for cause in _COUNTING) and features
                parity = parity._replace(causes=causes, counted=_as_there(row, tested_on, again) if again else None)
            found.append(parity)
    return found


def _measure(row: Published, tested_on: str, result: Mapping[str, Any]) -> Parity:
    return Parity(row, tested_on, *(round(100 * result[key] - getattr(row, key), 6) for key in ("rank1", "mAP")))


def _as_there(row: Published, tested_on: str, features: tuple[Features, Features]) -> Parity:
    ranking = evaluate_ranking(*ranking_inputs(*features, precision=row.precision), metric=row.distance)
    return _measure(row, tested_on, ranking.counted(row.means_over).to_dict())


def table(parities: Sequence[Parity]) -> Any:
    """A pandas table, one row each: what was published, how far we are from it, and the verdict."""
    import pandas as pd

    rows = [
        {
            "tested on": p.tested_on,
            "source": p.row.table,
            "published Rank-1": f"{p.row.rank1:.1f}",
            "published mAP": f"{p.row.mAP:.1f}",
            "Rank-1 here": f"{p.row.rank1 + p.rank1:.1f} ({p.rank1:+.1f})",
            "mAP here": f"{p.row.mAP + p.mAP:.1f} ({p.mAP:+.1f})",
            "verdict": p.verdict,
        }
        for p in parities
    ]
    return pd.DataFrame(rows).set_index("tested on")


# The causes: what is known of our side and of a row, to a sentence of its own, empty where it does not apply.


def _version(ours: Mapping[str, Any], parity: Parity) -> str:
    here, there = ours.get("version", ""), parity.row.version
    if here and here != there:
        return f"the dataset is {here} here, " + (f"{there} there" if there else "and the source does not say which")
    return ""


def _images(ours: Mapping[str, Any], parity: Parity) -> str:
    counts = PUBLISHED.get(parity.tested_on, ())[1:]
    here = [ours.get("images", {}).get(split) for split in ("query", "gallery")]
    wrong = [
        f"{split} has {have:,} images here, {count[0]:,} as published"
        for split, have, count in zip(("query", "gallery"), here, counts, strict=False)
        if None not in (have, count[0]) and have != count[0]
    ]
    return " and ".join(wrong)


def _input(ours: Mapping[str, Any], parity: Parity) -> str:
    here, there = "x".join(map(str, ours["input_size"])), parity.row.input
    return f"images are {here} here, {there} there" if there and here != there else ""


def _interpolation(ours: Mapping[str, Any], parity: Parity) -> str:
    here, there = ours["interpolation"], declaration(parity.row.model).interpolation
    return f"images are resized {here}ly here, {there}ly there".replace("icly", "ically") if here != there else ""


def _flip(ours: Mapping[str, Any], parity: Parity) -> str:
    there = declaration(parity.row.model).mirrored
    return "features are averaged over mirror images here, not there" if ours["flip"] and not there else ""


def _multi_query(ours: Mapping[str, Any], parity: Parity) -> str:
    return "queries are pooled over a person's images under a camera here, not there" if ours["multi_query"] else ""


def _distance(ours: Mapping[str, Any], parity: Parity) -> str:
    here, there = ours.get("metric", ""), parity.row.distance
    return f"ranked by {here} distance here, {there} there" if here and here != there else ""


def _cameras(ours: Mapping[str, Any], parity: Parity) -> str:
    if not parity.row.cameras or ours.get("cameras"):
        return ""
    return f"the model is told no cameras here, {parity.row.cameras} of them there"


def _precision(ours: Mapping[str, Any], parity: Parity) -> str:
    here, there = ours["precision"], parity.row.precision
    return f"features are {here} here, {there} there" if here != there else ""


def _means(ours: Mapping[str, Any], parity: Parity) -> str:
    here, there = ours["means_over"], parity.row.means_over
    valid, every = ours.get("num_valid"), ours.get("num_query")
    if here == there or valid == every:
        return ""
    mean = 100 * ours["mAP"] * (valid / every if there == "all" else every / valid)
    return (
        f"{every - valid} of {every} queries have no match and count 0 {'there' if there == 'all' else 'here'}: "
        f"counted as there, mAP is {mean:.1f} here"
    )


def _training(ours: Mapping[str, Any], parity: Parity) -> str:
    if ours.get("weights", {}).get("link"):
        return ""
    how = f", trained here by the recipe {ours['recipe']}" if ours.get("recipe") else ""
    how += f" with another {' and '.join(ours['overridden'])}" if how and ours.get("overridden") else ""
    return f"these are other weights than the published ones{how}"


_CAUSES: tuple[Callable[[Mapping[str, Any], Parity], str], ...] = (
    _version,
    _images,
    _input,
    _interpolation,
    _flip,
    _multi_query,
    _distance,
    _cameras,
    _precision,
    _means,
    _training,
)
_COUNTING = (_multi_query, _distance, _precision, _means)  # what ranking the same features again can undo
