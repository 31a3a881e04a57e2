"""The threshold card: at which similarity two images count as one person, and how often that is wrong.

It is calibrated on a labelled dataset, across cameras, at chosen false positive rates, and kept in model.json of the
run under `threshold_card`, with the weights and the data that it belongs to. Images of another domain shift it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from reidlib.errors import unknown_name
from reidlib.evaluation import Features, ranking_inputs
from reidlib.evaluation.protocols import threshold_intervals, verify

if TYPE_CHECKING:
    from reidlib.data.samples import ReIDDataset
    from reidlib.workbook.runs import Run

RATES = (1e-3, 1e-2)  # false positive rates of a card
KEY = "threshold_card"
ELSEWHERE = "Images of another domain (cameras, light, clothes) shift the rates: calibrate on pairs of your own."


@dataclass(frozen=True)
class Threshold:
    """One threshold on the cosine similarity.

    Attributes:
        false_positive_rate: Share of pairs of two people, from two cameras, that are at least so similar.
        threshold: The similarity.
        interval: Its 95 % interval, over draws of other people.
        true_positive_rate: Share of pairs of one person, from two cameras, that are at least so similar.
    """

    false_positive_rate: float
    threshold: float
    interval: tuple[float, float]
    true_positive_rate: float


@dataclass(frozen=True)
class ThresholdCard:
    """Thresholds of one model on one dataset.

    Attributes:
        dataset: What it was calibrated on, with `version` and fingerprint `data`.
        weights, input: What the features depend on; see `Extractor.stamp`.
        people: Number of people in query and gallery.
        num_same, num_different: Pairs of one person and of two, from two cameras.
        thresholds: One for each false positive rate.
    """

    dataset: str
    version: str
    data: str
    weights: str
    input: str
    people: int
    num_same: int
    num_different: int
    thresholds: tuple[Threshold, ...]

    def at(self, false_positive_rate: float) -> Threshold:
        """The threshold at a rate of the card. ValueError for another rate."""
        for found in self.thresholds:
            if abs(found.false_positive_rate - false_positive_rate) < 1e-12:
                return found
        rates = [f"{t.false_positive_rate:g}" for t in self.thresholds]
        raise unknown_name("false positive rate of the threshold card", f"{false_positive_rate:g}", rates)

    def __str__(self) -> str:
        lines = [f"calibrated on {self.dataset}: {self.num_same} pairs of one person, {self.num_different} of two"]
        for t in self.thresholds:
            lines.append(
                f"  similarity {t.threshold:.3f} ({t.interval[0]:.3f} to {t.interval[1]:.3f}): "
                f"{t.false_positive_rate:.1%} of different people accepted, {t.true_positive_rate:.1%} of same ones"
            )
        return "\n".join([*lines, ELSEWHERE])


@dataclass(frozen=True)
class SamePerson:
    """The answer to "is this the same person?", true where it is yes; `print` gives it in words.

    Attributes:
        similarity: Cosine similarity, from -1 to 1.
        same: Whether it reaches the threshold; None without a threshold card.
        threshold, interval: See `Threshold`; None without a card, as the further ones.
        false_positive_rate, true_positive_rate: What the threshold stands for on the data of its calibration.
        calibrated_on: The name of that dataset.
        sentence: All of it in words, and that another domain shifts it.
    """

    similarity: float
    same: bool | None
    threshold: float | None
    interval: tuple[float, float] | None
    false_positive_rate: float | None
    true_positive_rate: float | None
    calibrated_on: str | None
    sentence: str

    def __bool__(self) -> bool:
        return bool(self.same)

    def __str__(self) -> str:
        return self.sentence


def decide(similarity: float, card: ThresholdCard | None, false_positive_rate: float = RATES[0]) -> SamePerson:
    """Compare a similarity with a card's threshold. ValueError where the card has no such rate."""
    if card is None:
        sentence = (
            f"Similarity {similarity:.3f}. There is no threshold: calibrate(dataset) makes one, from labelled images."
        )
        return SamePerson(similarity, None, None, None, None, None, None, sentence)
    at = card.at(false_positive_rate)
    same = similarity >= at.threshold
    sentence = (
        f"{'The same person' if same else 'Two people'}: similarity {similarity:.3f}, threshold {at.threshold:.3f}, "
        f"at which {at.false_positive_rate:.1%} of pairs of two people and {at.true_positive_rate:.1%} of pairs of one "
        f"person are accepted on {card.dataset}. {ELSEWHERE}"
    )
    rates = at.false_positive_rate, at.true_positive_rate
    return SamePerson(similarity, same, at.threshold, at.interval, *rates, card.dataset, sentence)


def make_card(query: Features, gallery: Features, data: "ReIDDataset", stamp: Mapping[str, str]) -> ThresholdCard:
    """Calibrate thresholds on query and gallery features of a labelled dataset.

    Raises:
        ValueError: It has no pair of one person, or none of two people, from two cameras.
    """
    inputs = ranking_inputs(query, gallery)
    try:
        found = verify(*inputs, fars=RATES, across_cameras=True)
    except ValueError as error:
        raise ValueError(f"no threshold can be calibrated on {data.name}: {error}") from error
    intervals = threshold_intervals(*inputs, fars=RATES)
    thresholds = []
    for far in RATES:
        low, high = (1 - distance for distance in reversed(intervals[far]))
        at = 1 - found.threshold[far]
        # NaN: no pair of one person is more similar than nearly all others, and the threshold lies above them.
        thresholds.append(Threshold(far, high if math.isnan(at) else at, (low, high), found.tar[far]))
    people = len({s.pid for s in (*data.query, *data.gallery)} - {-1, 0})
    counts = people, found.num_genuine, found.num_impostor
    about = data.name, data.version, data.fingerprint(files=False)
    return ThresholdCard(*about, stamp["weights"], stamp["input"], *counts, tuple(thresholds))


def rates_on(card: ThresholdCard, query: Features, gallery: Features) -> list[dict[str, float]]:
    """What the thresholds of a card do to other labelled features: does the card hold there?

    Returns:
        For each threshold: itself, the false positive rate it was made for, and the false and true positive rates here,
        over pairs from two cameras; NaN without such pairs.
    """
    inputs = ranking_inputs(query, gallery)
    q, g = (normalize(feats.double()) for feats in inputs[:2])
    qp, gp, qc, gc = inputs[2:]
    counts = torch.zeros(2, 1 + len(card.thresholds), dtype=torch.int64)  # of two people, of one: all, then accepted
    for rows in torch.arange(len(q)).split(1024):
        similarity = q[rows] @ g.T
        kept = (qc[rows, None] != gc) & (qp[rows, None] != -1) & (gp != -1)
        same = qp[rows, None] == gp
        for of, pairs in enumerate((kept & ~same, kept & same)):
            accepted = [int((similarity[pairs] >= t.threshold).sum()) for t in card.thresholds]
            counts[of] += torch.tensor([int(pairs.sum()), *accepted])
    (false, true), all_pairs = counts[:, 1:].double(), counts[:, 0].double()
    return [
        {"threshold": t.threshold, "calibrated": t.false_positive_rate, "false_positive_rate": float(f / all_pairs[0]),
         "true_positive_rate": float(p / all_pairs[1])}
        for t, f, p in zip(card.thresholds, false, true, strict=True)
    ]  # fmt: skip


def save_card(run: "Run", card: ThresholdCard) -> None:
    """Write the card into model.json of the run."""
    run.write_json("model.json", run.read_json("model.json") | {KEY: asdict(card)})


def find_card(run: "Run", stamp: Mapping[str, str]) -> ThresholdCard | None:
    """The card of the run, or None where it has none for these weights and this input."""
    about: dict[str, Any] = dict(run.read_json("model.json").get(KEY) or {})
    if not about or any(about.get(key) != value for key, value in stamp.items()):
        return None
    about["thresholds"] = tuple(Threshold(**t | {"interval": tuple(t["interval"])}) for t in about["thresholds"])
    return ThresholdCard(**about)
