"""Figures of a re-identification run: pure functions from arrays and samples to a matplotlib figure."""

from typing import TYPE_CHECKING

from reidlib.lazy import lazy

if TYPE_CHECKING:  # the public names, each imported on first use
    from reidlib.plots.cam import cam_correlation as cam_correlation
    from reidlib.plots.cam import cam_note as cam_note
    from reidlib.plots.cam import feature_cam as feature_cam
    from reidlib.plots.cam import similarity_cam as similarity_cam
    from reidlib.plots.comparison import ap_scatter as ap_scatter
    from reidlib.plots.comparison import learning_curves as learning_curves
    from reidlib.plots.comparison import pair_similarities as pair_similarities
    from reidlib.plots.curves import ap_histogram as ap_histogram
    from reidlib.plots.curves import cmc_curves as cmc_curves
    from reidlib.plots.curves import score_matrix as score_matrix
    from reidlib.plots.curves import score_spread as score_spread
    from reidlib.plots.curves import training_curves as training_curves
    from reidlib.plots.found import found_images as found_images
    from reidlib.plots.found import group_sheet as group_sheet
    from reidlib.plots.images import batch_sheet as batch_sheet
    from reidlib.plots.images import cam_figure as cam_figure
    from reidlib.plots.images import cam_sheet as cam_sheet
    from reidlib.plots.images import class_sheet as class_sheet
    from reidlib.plots.images import contact_sheet as contact_sheet
    from reidlib.plots.images import overlay as overlay
    from reidlib.plots.images import pair_sheet as pair_sheet
    from reidlib.plots.images import rank_list as rank_list
    from reidlib.plots.images import rank_list_rows as rank_list_rows
    from reidlib.plots.images import row_sheet as row_sheet
    from reidlib.plots.names import camera_name as camera_name
    from reidlib.plots.names import person_name as person_name
    from reidlib.plots.passport import image_counts as image_counts
    from reidlib.plots.passport import image_sizes as image_sizes
    from reidlib.plots.style import save as save
    from reidlib.plots.tsne import tsne_figure as tsne_figure
    from reidlib.plots.tsne import tsne_images as tsne_images
    from reidlib.plots.tsne import tsne_map as tsne_map
    from reidlib.plots.zoo import cost_accuracy as cost_accuracy

__getattr__, __dir__, __all__ = lazy(__name__)
