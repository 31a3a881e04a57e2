"""Public names that are loaded on first use, so that importing a package costs nothing and has no side effect."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy(
    package: str, rooms: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of `package`, whose modules `rooms` hold the names listed for each."""
    places = {name: f"{package}.{room}" for room, names in rooms.items() for name in names}

    def get(name: str) -> object:
        if name in places:
            return getattr(import_module(places[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(places))}")

    return get, lambda: sorted(places), sorted(places)
