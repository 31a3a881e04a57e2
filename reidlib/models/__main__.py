"""`python -m reidlib.models` lists every model; `python -m reidlib.models NAME` shows the card of one."""

import argparse
import sys

from reidlib.models import list_models
from reidlib.models.printed.cards import Card, card
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
    lines = [
        f"{card.name}, loads the files of {card.family}",
        f"  input      RGB {card.input_size[0]} x {card.input_size[1]}, mean {card.mean}, std {card.std}",
        f"  feature    {card.feature_dim} values",
        f"  cost       {card.cost.params / 1e6:.2f} M parameters, {card.cost.macs / 1e9:.2f} G multiply-adds an image",
        f"  CAM        read at {card.cam_layer}, {' x '.join(map(str, card.cam_map))}" if card.cam_map else "",
        f"  recipe     {card.recipe}",
    ]
    if card.same_network:
        lines.append(f"  same as    {', '.join(card.same_network)}, in other weights")
    for part in card.parts:
        shape = f", gives {' x '.join(map(str, part.output))}" if part.output else ""
        lines.append(f"  {part.name:<20} {part.kind}, {part.params:,} parameters{shape}")
    for figure in card.figures:
        for printed, unit, here, why in (
            (figure.printed_params, "M parameters", figure.params / 1e6, figure.params_why),
            (figure.printed_macs, "G multiply-adds", figure.macs / 1e9, figure.macs_why),
        ):
            if printed:
                said = f"{printed} {unit} in {figure.table}"
                lines.append(f"{said}: {f'here {here:.3f}; {why}' if why else 'as here'}")
    for row in (row for row in card.results if row.rank1 is not None):
        notes = ", ".join(filter(None, ("all images" * row.combineall, row.protocol, row.loss)))
        path = f"{row.table}, {row.trained_on} to {row.tested_on}" + f" ({notes})" * bool(notes)
        lines.append(f"{path}: rank-1 {row.rank1}, mAP {row.mAP}")
    lines += [f"{table}: {note}" for table, note in dict.fromkeys((r.table, r.note) for r in card.results if r.note)]
    for weights in card.weights:
        lines.append(f"weights {weights.name}: {weights.row.link}")
        if weights.by_hand:
            lines.append(f"  needs a browser; looked for as {weights.file_name} in the weights folder")
    return "\n".join(filter(None, lines))


def trained_on(name: str) -> list[str]:
    """The data sets that a link to trained weights was published for."""
    return list(dict.fromkeys(row.trained_on for row in published(name) if row.link))


if __name__ == "__main__":
    sys.exit(main())
