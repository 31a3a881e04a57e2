"""Training: losses, recipes, and the loop that survives being killed."""

from reidlib.training.fit import fit
from reidlib.training.loop import Setup
from reidlib.training.pretrain import CLASS_RECIPES, class_recipe, pretrain
from reidlib.training.recipes import RECIPES, Recipe

__all__ = ["CLASS_RECIPES", "RECIPES", "Recipe", "Setup", "class_recipe", "fit", "pretrain"]
