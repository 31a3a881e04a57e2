"""The scores: their keys in result.json, metrics.jsonl and `Ranking.to_dict`, and their names in tables and figures.

Scores are fractions from 0 to 1 wherever they are computed or stored; only what a person reads is in percent.
"""

RETRIEVAL = ("rank1", "rank5", "rank10", "mAP", "mINP")
CLASSIFICATION = ("top1", "top5")
SCORES = RETRIEVAL + CLASSIFICATION
HEADLINE = ("mAP", "rank1", *CLASSIFICATION)  # what a line or a figure shows where there is no room for all

NAMES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mAP": "mAP",
    "mINP": "mINP",
    "top1": "top-1",
    "top5": "top-5",
    "accuracy": "accuracy",
    "largest": "in the largest cluster",
    "agreement": "agreement with the epoch before",
    "ari": "ARI with true people",
}


def percent(score: float) -> str:
    """A score as text: 0.719 is "71.9%"."""
    return f"{score:.1%}"
