"""Pictures of a re-identification run: pure functions from arrays and samples to a matplotlib figure.

The functions are loaded on first use, so that importing the package costs no matplotlib.
"""

from importlib import import_module

_ROOMS = {
    "style": ("save",),
    "pictures": ("contact_sheet", "rank_list", "rank_list_rows", "cam_figure", "overlay"),
    "curves": ("training_curves", "cmc_curves", "ap_histogram", "score_matrix"),
    "cam": ("feature_cam", "similarity_cam"),
    "tsne": ("tsne_map", "tsne_figure", "tsne_pictures"),
    "passport": ("picture_counts", "picture_sizes", "pair_sheet"),
}
_PUBLIC = {name: f"reidlib.plots.{room}" for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reidlib.plots' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
