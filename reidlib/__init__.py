"""reidlib: the thin package behind the person re-identification workbook."""

from reidlib.lazy import lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "data.datasets": ("ReIDDataset", "Sample", "list_datasets", "load_dataset"),
        "models": ("create_model", "list_models", "load_checkpoint"),
        "evaluation": ("evaluate_distances", "evaluate_ranking", "extract_features", "rank_gallery", "rerank"),
        "training": ("fit", "pretrain"),
        "workbook.runs": ("Run",),
    },
)
