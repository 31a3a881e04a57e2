"""Evaluation: features out of a model, exact ranking of them, and what else one feature file can tell."""

from reidlib.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "features": ("Features", "extract_features", "ranking_inputs"),
        "ranking": ("RankingResult", "TopK", "evaluate_distances", "evaluate_ranking", "rank_gallery"),
        "reranking": ("expand_features", "rerank"),
        "protocols": ("bootstrap", "evaluate_camera_pairs", "permutation_test", "single_shot", "verify"),
    },
)
