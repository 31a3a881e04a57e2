"""reidlib: the thin package behind the person re-identification workbook."""

from typing import TYPE_CHECKING

from reidlib.lazy import lazy

if TYPE_CHECKING:  # the public names, each imported on first use
    from reidlib.data.datasets import ReIDDataset as ReIDDataset
    from reidlib.data.datasets import Sample as Sample
    from reidlib.data.datasets import list_datasets as list_datasets
    from reidlib.data.datasets import load_dataset as load_dataset
    from reidlib.evaluation import evaluate_distances as evaluate_distances
    from reidlib.evaluation import evaluate_ranking as evaluate_ranking
    from reidlib.evaluation import extract_features as extract_features
    from reidlib.evaluation import rank_gallery as rank_gallery
    from reidlib.evaluation import rerank as rerank
    from reidlib.models import create_model as create_model
    from reidlib.models import list_models as list_models
    from reidlib.models import load_checkpoint as load_checkpoint
    from reidlib.training import fit as fit
    from reidlib.training import pretrain as pretrain
    from reidlib.workbook.extractor import Extractor as Extractor
    from reidlib.workbook.runs import Run as Run

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy(__name__)
