"""Evaluation: features out of a model, and exact ranking of them."""

from reidlib.evaluation.features import Features, extract_features, ranking_inputs
from reidlib.evaluation.ranking import evaluate_ranking, rank_gallery

__all__ = ["Features", "evaluate_ranking", "extract_features", "rank_gallery", "ranking_inputs"]
