"""Evaluation: features out of a model, exact ranking of them, and what else one feature file can tell."""

from importlib import import_module

_ROOMS = {
    "features": ("Features", "extract_features", "ranking_inputs"),
    "ranking": ("RankingResult", "TopK", "evaluate_distances", "evaluate_ranking", "rank_gallery"),
    "reranking": ("concatenate", "expand_features", "flip_average", "pool_queries", "rerank"),
    "protocols": ("bootstrap", "evaluate_camera_pairs", "permutation_test", "single_shot", "verify"),
}
_PUBLIC = {name: f"reidlib.evaluation.{room}" for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reidlib.evaluation' has no attribute {name!r}; it has {', '.join(__all__)}")
