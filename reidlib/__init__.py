"""reidlib: the thin package behind the person re-identification workbook.

The public names are loaded on first use, so that `import reidlib` costs nothing and has no side effect.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Sample": "reidlib.data.datasets",
    "ReIDDataset": "reidlib.data.datasets",
    "load_dataset": "reidlib.data.datasets",
    "list_datasets": "reidlib.data.datasets",
    "create_model": "reidlib.models",
    "list_models": "reidlib.models",
    "load_checkpoint": "reidlib.models",
    "extract_features": "reidlib.evaluation",
    "evaluate_ranking": "reidlib.evaluation",
    "evaluate_distances": "reidlib.evaluation",
    "rank_gallery": "reidlib.evaluation",
    "rerank": "reidlib.evaluation",
    "fit": "reidlib.training",
    "Run": "reidlib.runs",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reidlib' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
