"""`python -m reidlib.models` lists every model; `python -m reidlib.models NAME` shows one."""

import argparse
import sys

import torch

from reidlib.models import ReIDModel, complexity, create_model, list_models
from reidlib.models.published import published

CLASSES = 751  # Market-1501's, where a size depends on them


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reidlib.models", description="The models of the zoo.")
    parser.add_argument("name", nargs="?", help="show this one; all are listed without it")
    name = parser.parse_args(arguments).name
    if name is None:
        listing()
        return 0
    try:
        print(card(empty(name)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def empty(name: str) -> ReIDModel:
    """The model without memory: shapes are all that is shown."""
    with torch.device("meta"):
        return create_model(name, num_classes=CLASSES)


def listing() -> None:
    row = "{:<34} {:<18} {:>9} {:>9} {:>8} {:>8}  {}"
    print(row.format("name", "family", "params", "mult-adds", "feature", "input", "published weights"))
    for name in list_models():
        model = empty(name)
        size = "x".join(map(str, model.input_size))
        print(row.format(name, model.family, *cost(model), model.feature_dim, size, ", ".join(weights(name)) or "-"))


def card(model: ReIDModel) -> str:
    params, macs = cost(model)
    layer = next(name for name, module in model.named_modules() if module is model.cam_layer)
    lines = [
        f"{model.name}, loads the files of {model.family}",
        f"  input      RGB {model.input_size[0]} x {model.input_size[1]}, mean {model.mean}, std {model.std}",
        f"  feature    {model.feature_dim} values",
        f"  cost       {params} parameters, {macs} multiply-adds an image",
        f"  CAM        read at {layer}",
    ]
    for key, part in model.network.named_children():
        count = sum(p.numel() for p in part.parameters())
        lines.append(f"  {key:<10} {type(part).__name__}, {count / 1e6:.2f} M parameters at {CLASSES} classes")
    for table, counting in dict.fromkeys((row.table, row.counting) for row in published(model.name) if row.params):
        rows = [row for row in published(model.name) if row.table == table]
        printed = f"{rows[0].params} M parameters" + f", {rows[0].macs} G multiply-adds" * bool(rows[0].macs)
        lines.append(f"published in {table}: {printed}")
        count = complexity(model, counting=counting)
        lines.append(f"  counted that way ({counting}) here: {count.params / 1e6:.3f} M, {count.macs / 1e9:.3f} G")
        lines += [f"  {note}" for note in dict.fromkeys(row.note for row in rows if row.note)]
        for row in (row for row in rows if row.rank1 is not None):
            notes = ", ".join(filter(None, ("all images" * row.combineall, row.protocol, row.loss)))
            path = f"{row.trained_on} to {row.tested_on}" + f" ({notes})" * bool(notes)
            lines.append(f"  {path}: rank-1 {row.rank1}, mAP {row.mAP}  {row.link}".rstrip())
    for row in published(model.name):
        if row.rank1 is None:
            lines.append(f"weights for {row.trained_on} in {row.table}: {row.link}")
    return "\n".join(lines)


def cost(model: ReIDModel) -> tuple[str, str]:
    params, macs = complexity(model)
    return f"{params / 1e6:.2f} M", f"{macs / 1e9:.2f} G"


def weights(name: str) -> list[str]:
    """The data sets that a link to trained weights was published for."""
    return list(dict.fromkeys(row.trained_on for row in published(name) if row.link))


if __name__ == "__main__":
    sys.exit(main())
