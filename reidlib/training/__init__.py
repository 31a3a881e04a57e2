"""Training: losses, recipes, and the loop that survives being killed."""

from reidlib.training.fit import fit
from reidlib.training.loop import Setup
from reidlib.training.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "Setup", "fit"]
