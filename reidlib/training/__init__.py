"""Training: recipes, losses, the loop, and the job that puts them together."""

from reidlib.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "job": ("Job",),
        "tasks": ("fit", "pretrain"),
        "loop": ("Setup",),
        "recipes": ("CLASS_RECIPES", "RECIPES", "Recipe"),
    },
)
