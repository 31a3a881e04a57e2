"""Public names that are imported on first use, so that importing a package is quick and has no side effect."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules


def lazy(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Define `__getattr__`, `__dir__` and `__all__` of a package from the imports under its `if TYPE_CHECKING:`.

    That block is the only list of the public names: type checkers and editors read it as ordinary imports, and this
    function reads it from the source without running it. The package's own modules are reachable as attributes too,
    and need not be listed.

    Args:
        package: The package's `__name__`.

    Returns:
        The two functions and the list, to be assigned to these three names in the package.

    Raises:
        ImportError: If the package has no `if TYPE_CHECKING:` block of imports, or its source is not there.
    """
    spec = sys.modules[package].__spec__
    source = getattr(spec.loader, "get_source", lambda name: None)(package) if spec else None
    modules = {
        alias.name: node.module
        for block in ast.parse(source or "").body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    if not modules:
        raise ImportError(f"{package}/__init__.py has no source with public names under `if TYPE_CHECKING:`")

    def submodules() -> set[str]:
        return {found.name for found in iter_modules(import_module(package).__path__)} - {"__main__"}

    def get(name: str) -> object:
        if name in modules:
            return getattr(import_module(modules[name]), name)
        if name in submodules():
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(modules))}")

    return get, lambda: sorted({*modules, *submodules()}), sorted(modules)
