"""Public names that are imported on first use, so that importing a package is quick and has no side effect."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules


def lazy(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Define `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: The package's `__name__`.
        names: Its public names by the module, relative to the package, that defines them. The package's own modules
            are reachable as attributes too, and need not be listed.

    Returns:
        The two functions and the list, to be assigned to these three names in the package.
    """
    modules = {name: f"{package}.{module}" for module, public in names.items() for name in public}

    def submodules() -> set[str]:
        return {found.name for found in iter_modules(import_module(package).__path__)} - {"__main__"}

    def get(name: str) -> object:
        if name in modules:
            return getattr(import_module(modules[name]), name)
        if name in submodules():
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(modules))}")

    return get, lambda: sorted({*modules, *submodules()}), sorted(modules)
