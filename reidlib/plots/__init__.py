"""Figures of a re-identification run: pure functions from arrays and samples to a matplotlib figure."""

from reidlib.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "style": ("save",),
        "images": (
            *("contact_sheet", "class_sheet", "batch_sheet", "pair_sheet"),
            *("rank_list", "rank_list_rows", "cam_figure", "overlay"),
        ),
        "curves": ("training_curves", "cmc_curves", "ap_histogram", "score_matrix", "score_spread"),
        "cam": ("cam_note", "feature_cam", "similarity_cam"),
        "tsne": ("tsne_map", "tsne_figure", "tsne_images"),
        "passport": ("image_counts", "image_sizes"),
        "zoo": ("cost_accuracy",),
    },
)
