"""What every room says when a name is wrong: one sentence with the nearest names."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error to raise for a name nobody knows.

    `kind` is what was asked for ("model", "parameter"), `known` the names that exist. The sentence offers up to
    three near names, or the whole list where it is short and nothing is near.
    """
    known = sorted(known)
    folded = {k.casefold(): k for k in known}
    near = [folded[k] for k in get_close_matches(str(name).casefold(), folded, n=3, cutoff=0.5)]
    if near:
        hint = "did you mean " + " or ".join(map(repr, near)) + "?"
    elif len(known) <= 12:
        hint = "known: " + ", ".join(known) + "."
    else:
        hint = f"{len(known)} are known, from {known[0]!r} to {known[-1]!r}."
    return ValueError(f"unknown {kind} {name!r}: {hint}")
