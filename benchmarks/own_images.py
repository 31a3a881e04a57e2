"""What searching images of one's own costs: an index of a million features, searched from disk and from memory.

    python benchmarks/own_images.py [--count 1000000] [--dim 512] [--threads 2] [--folder DIR]

The features are random (clusters of ten), written as an index writes them; only for the last table images are read:
files to features, beside the notebooks' way. Writes own_images.md.
"""

import argparse
import json
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

import reidlib
from reidlib.data.loaders import eval_loader
from reidlib.evaluation import extract_features
from reidlib.evaluation.kernels import squares
from reidlib.files import whole_file
from reidlib.workbook import image_index
from reidlib.workbook.image_index import ImageIndex, group_features


class Features:
    """Stands for an extractor whose features are there already."""

    run, weights = None, "random"

    def __init__(self, dim: int) -> None:
        self.stamp = {"weights": "random", "input": "none"}
        self.model = SimpleNamespace(feature_dim=dim)


def features(count: int, dim: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(-(-count // 10), dim, generator=draw)
    return centre.repeat_interleave(10, 0)[:count] + 0.5 * torch.randn(count, dim, generator=draw)


def write_index(path: Path, folder: Path, count: int, dim: int) -> None:
    """An index as `update` leaves it, without the images."""
    index = ImageIndex(Features(dim), folder, path)
    with sqlite3.connect(path / "manifest.sqlite") as manifest:
        for number, start in enumerate(range(0, count, image_index.ROWS), 1):
            feats = features(min(image_index.ROWS, count - start), dim, number)
            save_file({"feats": feats, "squares": squares(feats)}, index._file(number))
            rows = ((f"{start + i:07}.jpg".encode(), "", f"{start + i}", number, i, "", 1) for i in range(len(feats)))
            manifest.executemany(image_index._INSERT, rows)


def memory() -> int:
    """Bytes that this process holds of its own, without pages of mapped files."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


def search(path: Path, folder: Path, dim: int, way: str, threads: int) -> None:
    """In a process of its own: prints seconds to open, of the first and of the best later search, and memory."""
    torch.set_num_threads(threads)
    query = features(image_index.ROWS, dim, 7)[5:6]
    reidlib.rank_gallery(query, features(200, dim, 1), [1], torch.zeros(200, dtype=torch.int64), [0],
                         torch.zeros(200, dtype=torch.int64))  # fmt: skip
    before, began = memory(), time.perf_counter()
    index = ImageIndex(Features(dim), folder, path)
    _ = index._layout
    index = index.load() if way == "memory" else index
    opened, took, worked = time.perf_counter() - began, [], []
    for _ in range(5):
        start, spent = time.perf_counter(), time.process_time()
        rows, similarity = index.ranked(query, 10)
        took.append(time.perf_counter() - start)
        worked.append(time.process_time() - spent)
    top = (rows[0, 0].item() - 6 * image_index.ROWS, round(similarity[0, 0].item(), 4))
    print(json.dumps([opened, took[0], min(took), min(worked), memory() - before, top]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default="")
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.search:
        path, folder, way = args.search
        search(Path(path), Path(folder), args.dim, way, args.threads)
        return
    root = Path(args.folder or tempfile.mkdtemp())
    path, folder = root / "index", root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    if not (path / "index.json").is_file():
        write_index(path, folder, args.count, args.dim)
    load = f"load {Path('/proc/loadavg').read_text().split()[0]}"
    how = f"{args.threads} threads, torch {torch.__version__}, {load}, {time.strftime('%Y-%m-%d')}"
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**30
    lines = [
        "# Images of one's own",
        "",
        f"{platform.processor() or 'CPU'} ({torch.backends.cpu.get_cpu_capability()}), {how}; by `python "
        "benchmarks/own_images.py`.",
        "",
        f"Exact search for one query in {args.count:,} features of {args.dim} numbers ({size:.1f} GiB). From",
        "disk is `ImageIndex.find` as it is; in memory is the same after `load()`. Seconds are by the clock and, in",
        "brackets, of the processor over all threads, which others on the machine change less. Memory is what the",
        "process holds of its own, without pages of the mapped files, above what it holds without an index.",
        "",
        "| | open, s | first search, s | further searches, s | memory, MiB |",
        "|---|--:|--:|--:|--:|",
    ]
    for way in ("disk", "memory"):
        command = [sys.executable, __file__, "--dim", str(args.dim), "--threads", str(args.threads), "--search"]
        done = subprocess.run([*command, path, folder, way], capture_output=True, text=True, check=True)
        opened, first, best, cpu, held, top = json.loads(done.stdout)
        assert top == [5, 1.0], f"another image was found: {top}"
        lines.append(f"| {way} | {opened:.1f} | {first:.2f} | {best:.2f} ({cpu:.2f}) | {held / 2**20:.0f} |")
        print(lines[-1], flush=True)
    torch.set_num_threads(args.threads)
    feats = features(10_000, args.dim, 3)
    group_features(feats[:100], 0.5)
    start = time.process_time()
    groups = group_features(feats, 0.5)
    right = len(set(zip(groups.tolist(), (np.arange(10_000) // 10).tolist(), strict=True))) == 1000
    took = time.process_time() - start
    what = "exactly the 1,000 clusters" if right else f"{groups.max() + 1} groups of 1,000"
    lines += ["", f"Grouping 10,000 features at a threshold takes {took:.1f} s of processor time and finds {what}."]
    data, model = reidlib.load_dataset("synthetic-small"), reidlib.create_model("osnet_x0_25").eval()
    extractor, rows = reidlib.Extractor(model), []
    samples = data.gallery[:128]
    paths = [s.path for s in samples]
    ways = {
        "`extract_features(eval_loader)`": lambda: extract_features(model, eval_loader(samples, model.input_size)),
        "`Extractor`": lambda: extractor(paths),
    }
    for name, way in ways.items():
        seconds = []
        for _ in range(2):
            start = time.process_time()
            way()
            seconds.append(time.process_time() - start)
        rows.append(f"| {name} | {len(samples) / min(seconds):.0f} |")
        print(rows[-1], flush=True)
    lines += [
        "",
        "Files to features, OSNet ×0.25, images per second of processor time:",
        "",
        "| | images/s |",
        "|---|--:|",
        *rows,
    ]
    if not args.folder:
        shutil.rmtree(root)
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
