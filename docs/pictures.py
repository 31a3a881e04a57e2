"""Make every picture of README and docs/ from today's code, and note what each was made from: `make pictures`.

The figures come from the run of `make demo`, made by the notebooks as a user gets them. pictures.json keeps a hash of
each picture and of its sources; `tests/test_docs.py` fails for a picture whose sources have changed since. Comments,
docstrings and outputs of notebooks count as no change.
"""

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS, NOTES = ROOT / "docs", ROOT / "docs" / "pictures.json"
_PRINTED = ("reidlib/models/printed/published.csv", "reidlib/models/printed/measured.csv")


class Picture(NamedTuple):
    """What a picture is made of.

    Attributes:
        width: Its width at most, in pixels.
        sources: Files that decide what it looks like.
        figure: Pattern of the figure in a run folder; "" for pictures that are not of a run.
        trained: Whether it shows what the demo has learned.
    """

    width: int
    sources: tuple[str, ...]
    figure: str = ""
    trained: bool = True


def _plot(module: str, *others: str) -> tuple[str, ...]:
    return (f"reidlib/plots/{module}.py", "reidlib/plots/style.py", *others)


PICTURES = {
    "people.jpg": Picture(900, _plot("images", "reidlib/data/drawn/people.py"), trained=False),
    "ranklist.jpg": Picture(1200, _plot("images", "notebooks/ranklist.ipynb"), "*ranklist*worst*.png"),
    "gradcam.jpg": Picture(
        1200, _plot("images", "reidlib/plots/cam.py", "notebooks/gradcam.ipynb"), "*gradcam_synthetic*.png"
    ),
    "tsne.jpg": Picture(950, _plot("tsne", "notebooks/tsne.ipynb"), "*tsne*images*.png"),
    "curves.jpg": Picture(1200, _plot("curves", "notebooks/train.ipynb"), "*training_curves*.png"),
    "cmc.jpg": Picture(900, _plot("curves", "notebooks/test.ipynb"), "*cmc*.png"),
    "lists.jpg": Picture(1100, ("reidlib/workbook/ranked.py",)),
    "map.jpg": Picture(900, ("reidlib/workbook/maps.py",)),
    "zoo.jpg": Picture(1400, _plot("zoo", *_PRINTED), trained=False),
    "zoo_table.jpg": Picture(1400, ("reidlib/workbook/zoo_table.py", *_PRINTED), trained=False),
}
# Fewer rows than a page has: these stand side by side in README.
_SMALL = {"ranklist": ["-p", "queries", "3", "-p", "k", "8"], "gradcam": ["-p", "queries", "3", "-p", "k", "3"]}
_STYLE = "body{margin:12px;font:14px sans-serif} table{border-collapse:collapse} th,td{padding:5px 8px;text-align:left}"
_STYLE += "tr:nth-child(even){background:#f5f5f5} thead{border-bottom:1px solid #bbb} a{color:#0a3d91}"
# The pointer goes over the map until it meets a point.
_HOVER = """() => {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
  for (let y = 0.3; y < 1; y += 0.02) for (let x = 0.3; x < 0.8; x += 0.01) {
    const at = {clientX: box.left + box.width * x, clientY: box.top + box.height * y, bubbles: true};
    canvas.dispatchEvent(new MouseEvent("mousemove", at));
    if (document.querySelector(".reid-map > div").style.display === "block") return;
  }
}"""


# What pictures are made from


def changed(name: str) -> list[str]:
    """The sources of a picture that differ from those it was made from; itself, if it is not the one that was made."""
    noted = json.loads(NOTES.read_text("utf-8")).get(name, {}) if NOTES.is_file() else {}
    now = stamp(name)
    return sorted(source for source in {*noted, *now} if noted.get(source) != now.get(source))


def stamp(name: str) -> dict[str, str]:
    """A hash of each source of a picture, and of the picture."""
    picture = PICTURES[name]
    texts = {source: "\n".join(code_of(ROOT / source)) for source in picture.sources}
    if picture.trained:
        texts["make demo"] = shlex.join(demo_command())
        texts["its recipe"] = recipe_of_demo()
    hashes = {source: hashlib.sha256(text.encode()).hexdigest()[:16] for source, text in texts.items()}
    return hashes | {name: hashlib.sha256((DOCS / name).read_bytes()).hexdigest()[:16]}


def code_of(path: Path) -> Iterator[str]:
    """The lines of a file that decide what it does: no comments of their own, docstrings, blank lines, no outputs."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
        text = "\n".join("".join(cell["source"]) for cell in cells)
    if path.suffix not in (".py", ".ipynb"):
        yield from text.splitlines()
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree, left_out = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            left_out |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for number, line in enumerate(text.splitlines(), 1):
        if number not in left_out and line.strip() and not line.lstrip().startswith("#"):
            yield line.rstrip()


def demo_command() -> list[str]:
    """The words after `reidlib.batch` of the Makefile's rule `demo`."""
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1]
    words = shlex.split(rule.replace("\\\n", " "))
    return words[words.index("reidlib.batch") + 1 :]


def recipe_of_demo() -> str:
    """What the demo's recipe sets: fields at their defaults change nothing."""
    from reidlib.training.recipes import RECIPES, Recipe

    recipe = RECIPES["demo"]
    return ", ".join(f"{name}={getattr(recipe, name)!r}" for name in sorted(recipe.changed(Recipe())))


# Making them


def check_demo(run: Path) -> None:
    """Raise ValueError if the run of the demo was trained with other settings than `make demo` has today."""
    from reidlib.training import Job
    from reidlib.workbook.batch import parameters, sort_parameters

    words = demo_command()
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    defaults = {name: p.default for name, p in parameters("train").items() if not p.in_settings}
    asked = Job.from_params(defaults | sort_parameters(words[: words.index("-p")], given)["train"])
    trained = Job.from_params(json.loads((run / "params.json").read_text("utf-8")))
    wrong = asked.recipe.changed(trained.recipe)
    wrong += [what for what in ("model", "dataset") if getattr(asked.plan, what) != getattr(trained.plan, what)]
    if wrong:
        raise ValueError(f"{run} was trained with another {', '.join(wrong)} than `make demo` takes: call it again")


def draw(run: Path) -> Iterator[tuple[str, Path]]:
    """Every picture as a PNG that exists until the next one is asked for.

    Args:
        run: The folder of the demo's run, which stays as it is.
    """
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "runs" / "demo"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("notebooks", "last.pt"))
        environment = os.environ | {"REID_RUNS": str(copy.parent)}
        for notebook, given in _SMALL.items():
            for figure in (copy / "figures").rglob(f"*{notebook}*"):
                figure.unlink()
            command = [sys.executable, "-m", "reidlib.batch", notebook, *given, "-p", "run", "demo"]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
        for name, picture in PICTURES.items():
            if picture.figure:
                found = sorted((copy / "figures").rglob(picture.figure))
                if not found:
                    raise FileNotFoundError(f"{name}: the notebooks left no figure {picture.figure}")
                yield name, found[0]
        yield from screenshots(copy, Path(folder))
        yield from draw_others(Path(folder))


def screenshots(run: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """What a browser shows of the rank lists and of the map of a run, and of the zoo's table."""
    import torch

    import reidlib
    from reidlib.workbook import maps, ranked, zoo_table
    from reidlib.workbook.views import choose_people

    browser = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if browser is None:
        print("lists, map and zoo_table are screenshots, and no Chromium is installed: they stay", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    plain = ranked.of_run(reidlib.Run(run), reidlib.load_dataset("synthetic-small"))
    worst = ranked.find_queries(plain, "wrong", 99)[0][-1]  # the best of those whose first match is wrong
    after = plain.reranked()
    lists = ranked.list_html(plain, [worst], 9) + ranked.list_html(after, [worst], 9, earlier=plain)
    keep = choose_people([*plain.data.query, *plain.data.gallery], 20)
    points, _ = maps.embed(torch.cat([plain.query.feats, plain.gallery.feats])[keep])
    rows = zoo_table.select(zoo_table.zoo_table(), "ibn", tested_on="msmt17")
    pages = {
        "lists": (720, lists),
        "map": (800, maps.map_html(plain, maps.map_table(plain, points, keep))),
        "zoo_table": (1880, zoo_table.show(rows, 12).data),
    }
    with sync_playwright() as play:
        options = {"executable_path": browser, "args": ["--no-sandbox", "--disable-gpu"]}
        with play.chromium.launch(**options) as chromium:
            for name, (width, html) in pages.items():
                (folder / f"{name}.html").write_text(f"<meta charset='utf-8'><style>{_STYLE}</style>{html}", "utf-8")
                view = chromium.new_page(viewport={"width": width, "height": 300})
                view.goto((folder / f"{name}.html").as_uri())
                if name == "map":
                    view.evaluate(_HOVER)
                view.screenshot(path=folder / f"{name}.png", full_page=True)
    for name in pages:
        yield f"{name}.jpg", folder / f"{name}.png"


def draw_others(folder: Path) -> Iterator[tuple[str, Path]]:
    """The pictures that are not of a run."""
    import reidlib
    from reidlib import plots
    from reidlib.workbook import zoo_table

    data = reidlib.load_dataset("synthetic-small")
    sheet = plots.contact_sheet(data.train, people=2, title=f"{data.name}: people × cameras")
    yield "people.jpg", plots.save(sheet, folder / "people.png")
    yield "zoo.jpg", plots.save(zoo_table.cost_figure("market1501"), folder / "zoo.png")


def main() -> None:
    """Make all pictures, and note their sources."""
    from reidlib.paths import runs_root

    run = runs_root() / "demo"
    if not (run / "result.json").is_file():
        raise SystemExit(f"there is no run at {run}: call `make demo`")
    check_demo(run)
    notes = json.loads(NOTES.read_text("utf-8")) if NOTES.is_file() else {}
    for name, png in draw(run):
        image = Image.open(png).convert("RGB")
        if image.width > (width := PICTURES[name].width):
            image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        image.save(DOCS / name, quality=85, optimize=True)
        notes[name] = stamp(name)
        print(f"docs/{name}: {image.width} × {image.height}, {(DOCS / name).stat().st_size / 1024:.0f} KiB")
    kept = {name: notes[name] for name in PICTURES if name in notes}
    NOTES.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
