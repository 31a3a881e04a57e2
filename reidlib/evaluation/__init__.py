"""Evaluation: features out of a model, exact ranking of them, and what else one feature file can tell."""

from typing import TYPE_CHECKING

from reidlib.lazy import lazy

if TYPE_CHECKING:  # the public names, each imported on first use
    from reidlib.evaluation.features import Features as Features
    from reidlib.evaluation.features import average_tracks as average_tracks
    from reidlib.evaluation.features import extract_features as extract_features
    from reidlib.evaluation.features import ranking_inputs as ranking_inputs
    from reidlib.evaluation.protocols import bootstrap as bootstrap
    from reidlib.evaluation.protocols import evaluate_camera_pairs as evaluate_camera_pairs
    from reidlib.evaluation.protocols import pair_histogram as pair_histogram
    from reidlib.evaluation.protocols import permutation_test as permutation_test
    from reidlib.evaluation.protocols import single_shot as single_shot
    from reidlib.evaluation.protocols import verify as verify
    from reidlib.evaluation.ranking import RankingResult as RankingResult
    from reidlib.evaluation.ranking import TopK as TopK
    from reidlib.evaluation.ranking import evaluate_distances as evaluate_distances
    from reidlib.evaluation.ranking import evaluate_ranking as evaluate_ranking
    from reidlib.evaluation.ranking import rank_gallery as rank_gallery
    from reidlib.evaluation.reranking import expand_features as expand_features
    from reidlib.evaluation.reranking import jaccard_graph as jaccard_graph
    from reidlib.evaluation.reranking import rerank as rerank

__getattr__, __dir__, __all__ = lazy(__name__)
