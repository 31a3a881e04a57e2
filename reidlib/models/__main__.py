"""`python -m reidlib.models` lists every model; `python -m reidlib.models NAME` shows the card of one."""

import argparse
import sys

from reidlib.models import list_models
from reidlib.models.printed.cards import Card, card, sections
from reidlib.models.printed.costs import exact
from reidlib.models.printed.published import published
from reidlib.models.zoo import MODELS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reidlib.models", description="The models of the zoo.")
    parser.add_argument("name", nargs="?", help="show this one; all are listed without it")
    name = parser.parse_args(arguments).name
    if name is None:
        listing()
        return 0
    try:
        print(card_text(card(name)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def listing() -> None:
    row = "{:<38} {:<20} {:>9} {:>9} {:>8} {:>8}  {}"
    print(row.format("name", "family", "params", "mult-adds", "feature", "input", "published weights"))
    for name in list_models():
        spec, here = MODELS[name], exact(name)
        size = "x".join(map(str, spec.input_size))
        costs = f"{here.params / 1e6:.2f} M", f"{here.macs / 1e9:.2f} G"
        print(row.format(name, spec.family, *costs, here.feature, size, ", ".join(trained_on(name)) or "-"))


def card_text(card: Card) -> str:
    lines = [card.name]
    for title, columns, rows in sections(card):
        table = [columns, *rows] if title else rows
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["", title] if title else []
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return "\n".join(lines)


def trained_on(name: str) -> list[str]:
    """The datasets that a link to trained weights was published for."""
    return list(dict.fromkeys(row.trained_on for row in published(name) if row.link))


if __name__ == "__main__":
    sys.exit(main())
