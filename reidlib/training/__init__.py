"""Training: recipes, losses, the loop, and the job that puts them together."""

from typing import TYPE_CHECKING

from reidlib.lazy import lazy

if TYPE_CHECKING:  # the public names, each imported on first use
    from reidlib.training.clusters import cluster_quality as cluster_quality
    from reidlib.training.clusters import cluster_table as cluster_table
    from reidlib.training.clusters import pseudo_labels as pseudo_labels
    from reidlib.training.job import Job as Job
    from reidlib.training.loop import Setup as Setup
    from reidlib.training.memory import ClusterMemory as ClusterMemory
    from reidlib.training.recipes import CLASS_RECIPES as CLASS_RECIPES
    from reidlib.training.recipes import RECIPES as RECIPES
    from reidlib.training.recipes import Recipe as Recipe
    from reidlib.training.tasks import fit as fit
    from reidlib.training.tasks import pretrain as pretrain

__getattr__, __dir__, __all__ = lazy(__name__)
