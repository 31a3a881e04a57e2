"""How long looking takes at Market-1501's size: a query's lists, the map, a click, the page.

    python benchmarks/looking.py [--dataset synthetic-large]

Features are those of an untrained osnet_x0_25 (512 numbers) and a random rotation of them into 2,048: what they hold
does not change the times. A change of query is what JupyterLab asks the kernel for when the slider moves, until the
HTML with all images is there: first seen, with their thumbnails to be made, and again. Writes looking.md.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from demo import processor

from reidlib import Run, create_model, load_dataset
from reidlib.evaluation import Features
from reidlib.files import whole_file
from reidlib.workbook import maps, ranked
from reidlib.workbook.ranked import Ranked, list_html

TABLE = Path(__file__).with_suffix(".md")
QUERIES = range(0, 600, 20)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def milliseconds(times: Sequence[float]) -> str:
    """Median and largest."""
    return f"{1000 * median(times):.0f} ({1000 * max(times):.0f})"


def features(name: str) -> Ranked:
    """The dataset ranked by an untrained network, whose features are kept in the runs folder."""
    data = load_dataset(name)
    model = create_model("osnet_x0_25", input_size=(128, 64)).eval()
    run = Run.open("looking", model="osnet_x0_25", weights=untrained(model), size=(128, 64))
    query, gallery = run.features(run.load_model(), data, progress=True)
    return Ranked(data, query, gallery, label="plain")


def untrained(model: torch.nn.Module) -> str:
    """A file of the model's weights."""
    from reidlib.paths import runs_root

    path = runs_root() / "untrained.pth"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return str(path)


def widened(plain: Ranked, width: int) -> Ranked:
    """The same distances from features of `width` numbers."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, plain.query.feats.shape[1])).Q.T
    query, gallery = (Features(f.feats @ rotation, f.pids, f.camids) for f in (plain.query, plain.gallery))
    return replace(plain, query=query, gallery=gallery)


def steps(explorer: Any) -> list[float]:
    """Seconds of each move of the slider."""
    return [timed(lambda i=i: setattr(explorer.at, "value", i))[0] for i in QUERIES[1:]]


def lists(plain: Ranked) -> list[str]:
    """The rows of the table on rank lists."""
    rows = []
    seconds, again = timed(plain.reranked)
    rows.append(f"| k-reciprocal re-ranking of all queries, once | {1000 * seconds:,.0f} |")
    for width in (512, 2048):
        here = plain if width == 512 else widened(plain, width)
        ranked._picture.cache_clear()
        rankings = {"plain": here, "re-ranked": again}
        explorer = ranked.ListExplorer(rankings.__getitem__, list(rankings), "best", 10, [], "")
        first = steps(explorer)
        explorer.at.value = 0
        after = steps(explorer)
        rows.append(f"| another query, {width} numbers, images first seen | {milliseconds(first)} |")
        rows.append(f"| another query, {width} numbers, images seen before | {milliseconds(after)} |")
        explorer.to.value = int(here.gallery.camids[0])
        rows.append(f"| another query, {width} numbers, gallery of one camera | {milliseconds(steps(explorer))} |")
        explorer.to.value, explorer.beside.value = None, "re-ranked"
        rows.append(f"| another query, {width} numbers, re-ranked beside it | {milliseconds(steps(explorer))} |")
    ranked._picture.cache_clear()
    seconds, _ = timed(lambda: list_html(plain, list(range(1000, 1020)), 10))
    rows.append(f"| 20 lists of 10 images, first seen | {1000 * seconds:.0f} |")
    return rows


def points(plain: Ranked) -> list[str]:
    """The rows of the table on the map."""
    feats = torch.cat([plain.query.feats, plain.gallery.feats])
    rows, drawn = [], np.random.default_rng(0)
    keep = np.sort(drawn.choice(len(feats), 5000, replace=False))
    for method in maps.METHODS:
        seconds, embedding = timed(lambda method=method: maps.embed(feats[keep], method))
        rows.append(f"| 5,000 points placed by {method} | {seconds:.1f} s |")
    table = maps.map_table(plain, embedding.points, keep)
    seconds, html = timed(lambda: maps.map_html(plain, table))
    rows.append(f"| the page's map of 5,000 points ({len(html) / 1e6:.1f} MB) | {seconds:.1f} s |")
    seconds, explorer = timed(lambda: maps.MapExplorer([(plain, table)], [plain], "person", 480))
    rows.append(f"| the widget of 5,000 points, with all images | {seconds:.1f} s |")
    times = [timed(lambda i=i: explorer.choose({"new": [i]}))[0] for i in range(0, 5000, 250)]
    rows.append(f"| a click: the image and its rank list | {milliseconds(times)} ms |")
    times = [timed(lambda i=i: explorer.choose({"new": list(range(i, i + 40))}))[0] for i in range(0, 5000, 250)]
    rows.append(f"| a lasso around 40 points | {milliseconds(times)} ms |")
    many = np.resize(np.arange(len(feats)), 50_000)
    table = maps.map_table(plain, drawn.normal(size=(50_000, 2)), many)
    seconds, _ = timed(lambda: maps.MapExplorer([(plain, table)], [plain], "person", 480))
    rows.append(f"| the widget of 50,000 points, without images | {seconds:.1f} s |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="synthetic-large")
    args = parser.parse_args()
    plain = features(args.dataset)
    found = lists(plain)
    mapped = points(plain)
    data = plain.data
    lines = [
        "# How long looking takes",
        "",
        f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}; by",
        f"`python benchmarks/looking.py`. {data.name}: {len(data.query):,} queries and {len(data.gallery):,} gallery",
        "images (Market-1501 has 3,368 and 19,732). Features are cached, lists have 10 images; median (largest).",
        "",
        "| rank lists | ms |",
        "|---|--:|",
        *found,
        "",
        "| map | |",
        "|---|--:|",
        *mapped,
    ]
    with whole_file(TABLE) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
