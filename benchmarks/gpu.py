"""What this workbook does on a GPU, in one table: every test marked gpu, then each of its parts beside the plain way.

    make gpu                 # or: python benchmarks/gpu.py [--minutes 10] [--parts tests,market,...]
    make gpu REHEARSE=1      # the same code on a CPU: Triton's interpreter, tiny sizes, nothing is kept

Each part runs in a process of its own, in at most so many seconds, and one that fails or is stopped is a line of the
table. gpu.json and gpu.md are written after each part, with machine, driver and versions. Times lie between two CUDA
events, the median of several calls after a warm-up; what reads files is timed by the clock. × is how many times as fast
a way is as the first way of its group, both measured in one process. Needs neither network nor notebooks.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # where reidlib is not installed

from reidlib.files import whole_file  # noqa: E402

MODELS = ("osnet_x1_0", "agw_R50_ibn_fastreid", "vit_transreid")
GOALS = {"msmt17": 100, "million": 50}  # milliseconds
VERSIONS = ("torch", "triton", "torchvision", "timm", "accelerate", "numba", "numpy")
PLAIN = "plain: float32 (as torch has it: convolutions may take TF32), PIL, JPEGs"
SIZE, WORKERS = (256, 128), min(8, os.cpu_count() or 1)


class Row(NamedTuple):
    """A line of the table."""

    what: str
    way: str
    value: float
    unit: str
    ratio: float | None = None  # speed over that of the first way of `what`
    note: str = ""


class World(NamedTuple):
    """Where and how large everything is measured."""

    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def sized(self, real: Any, tiny: Any) -> Any:
        return tiny if self.rehearse else real


def compared(what: str, ways: Iterable[tuple[str, float, str]], *, images: bool = False) -> Iterator[Row]:
    """Rows of (way, seconds, note); with `images` the seconds are those of one image."""
    first = 0.0
    for way, seconds, note in ways:
        first = first or seconds
        value, unit = (1 / seconds, "images/s") if images else (1000 * seconds, "ms")
        yield Row(what, way, value, unit, first / seconds, note)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_files() -> list[str]:
    """The files that have tests for a GPU."""
    return [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8")]


def tests(world: World) -> Iterator[Row]:
    """Every test marked gpu."""
    files = test_files()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *world.sized(files, files[:1])]
        code = subprocess.run(command, cwd=ROOT).returncode
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [f"{case.get('classname')}::{case.get('name')}" for case in cases if {"failure", "error"} & _tags(case)]
    skipped = [case.find("skipped").get("message", "") for case in cases if "skipped" in _tags(case)]
    why = "; ".join(sorted(set(skipped)))
    yield Row("tests marked gpu", "passed", len(cases) - len(bad) - len(skipped), "")
    yield Row("", "skipped", len(skipped), "", note=why)
    if code:
        raise RuntimeError(f"{len(bad)} tests failed: {', '.join(bad)}" if bad else f"pytest ended with {code}")


def _tags(case: ElementTree.Element) -> set[str]:
    return {child.tag for child in case}


def evaluator(name: str, world: World) -> Iterator[Row]:
    """The evaluator at one of the shapes of evaluator.py, beside the bare product and one argsort a query."""
    from evaluator import SHAPES

    shape = world.sized(SHAPES[name], (24, 200, 160, 8, 3))
    yield from compared(f"{name}, {' x '.join(f'{n:,}' for n in shape[:3])}", ranked(name, shape, world))


def ranked(name: str, shape: tuple[int, ...], world: World) -> Iterator[tuple[str, float, str]]:
    import torch
    from evaluator import argsort_queries, by_torch, draw, first_queries, product
    from measuring import measure

    from reidlib.evaluation import fused, kernels, ranking, spaces

    problem, device = tuple(t.to(world.device) for t in draw(shape)), torch.device(world.device)
    timed = partial(measure, device=world.device, repeats=world.sized(7, 1), warm_up=1)

    yield "product, float32", timed(product, *problem[:2]).seconds, ""
    torch.set_float32_matmul_precision("high")
    yield "product, TF32", timed(product, *problem[:2]).seconds, ""
    torch.set_float32_matmul_precision("highest")
    yield "product, bfloat16", timed(product, *(feats.bfloat16() for feats in problem[:2])).seconds, ""

    def evaluated(kind: str, tile: tuple[int, int] = fused.TILE) -> tuple[float, float, Any]:
        with patch.object(kernels, "kind", lambda _: kind), patch.object(fused, "TILE", tile):
            return timed(ranking.evaluate_ranking, *problem)

    seconds, memory, best = evaluated("triton")
    goal = GOALS.get(name, 0)
    met = f", goal {goal} ms: {'met' if 1000 * seconds < goal else 'missed'}" if goal else ""
    yield "**this evaluator**", seconds, f"mAP {best.mAP:.4f}, {memory:.0f} MiB{met}"
    others = {"tiles of 128 x 128": ("triton", (128, 128)), "plain torch, no kernel": ("torch",)}
    for way, how in others.items():
        seconds, memory, result = evaluated(*how)
        if not torch.equal(result.ap.nan_to_num(-1), best.ap.nan_to_num(-1)):
            raise RuntimeError(f"{way} gives another ranking")
        yield way, seconds, f"{memory:.0f} MiB"

    def pairs() -> ranking.Pairs:
        return ranking.Pairs.of(spaces.Ids(*problem[2:]), device)

    seconds, _, of_pairs = timed(pairs)
    yield "of it: ids and pairs", seconds, ""
    yield "of it: scores from ranks", timed(ranking._result, of_pairs, 50).seconds, ""
    few = min(argsort_queries(shape), 1000)
    part = first_queries(problem, few)
    seconds, _, mean = measure(by_torch, *part, device=world.device, warm_up=1)
    off = abs(mean - best.ap[:few].nanmean().item())
    yield "torch, argsort a query", seconds * len(problem[0]) / few, f"from {few} queries, mAP off by {off:.0e}"


def reranking(world: World) -> Iterator[Row]:
    """Neighbours and re-ranking at Market-1501's shape."""
    from evaluator import SHAPES

    shape = world.sized(SHAPES["market"], (24, 200, 160, 8, 3))
    yield from compared(f"re-ranking, {shape[0]:,} + {shape[1]:,} x {shape[2]:,}", reranked(shape, world))


def reranked(shape: tuple[int, ...], world: World) -> Iterator[tuple[str, float, str]]:
    import torch
    from evaluator import draw
    from measuring import measure

    from reidlib.evaluation import reranking

    q, g = (feats.to(world.device) for feats in draw(shape)[:2])
    timed, feats = partial(measure, device=world.device, repeats=world.sized(3, 1), warm_up=1), torch.cat([q, g])

    def plainly() -> None:
        for part in feats.split(2048):
            (part @ feats.T).topk(21)

    def neighbours() -> Any:
        space, ids = reranking._space(feats, "euclidean", world.device)
        return reranking.search(space, feats, 21, ids, mutual=True)

    yield "product and topk in torch", timed(plainly).seconds, "float32, ties as they come"
    yield "**neighbours**", timed(neighbours).seconds, "21 of each image, exact"
    seconds, _, result = timed(reranking.rerank, q, g)
    yield "**re-ranking**", seconds, f"neighbours on the GPU, encodings by {torch.get_num_threads()} threads"
    seconds, _, on_cpu = measure(reranking.rerank, q.cpu(), g.cpu(), device="cpu")
    off = (result - on_cpu).abs().max().item()
    yield "re-ranking on the CPU", seconds, f"{torch.get_num_threads()} threads, off by {off:.0e} at most"


@contextmanager
def packed(data: Any, size: tuple[int, int]) -> Iterator[None]:
    """The dataset is packed within the block, and only there."""
    from reidlib.data.packing import pack
    from reidlib.paths import packs_root

    pack(data, size)
    try:
        yield
    finally:
        shutil.rmtree(packs_root())


def extraction(name: str, world: World) -> Iterator[Row]:
    """Features of one model: the network alone, then from files."""
    from extraction import WAYS, network_seconds

    name, size, batch = *world.sized((name, SIZE), ("osnet_x0_25", (64, 32))), world.sized(256, 4)
    ways = network_seconds(name, batch, world.device, size=size, compiled=True)
    alone = compared(
        f"features, {name} alone", ((way, s / batch, f"batches of {batch}") for way, s in ways), images=True
    )
    rates = {}
    for row in islice(alone, 1 + len(WAYS)):
        rates[row.way] = row.value
        yield row
    from_files = files_to_features(name, size, rates[WAYS[-1]], world)
    yield from compared(f"files to features, {name}", from_files, images=True)
    yield from alone  # compiled, which takes longest and needs a compiler


def files_to_features(name: str, size: tuple[int, int], rate: float, world: World) -> Iterator[tuple[str, float, str]]:
    from plain import extract_plainly

    from reidlib import create_model, extract_features, load_dataset
    from reidlib.data.loaders import eval_loader
    from reidlib.training.loop import _Clock

    data, count = load_dataset(world.sized("synthetic-small", "synthetic-tiny")), world.sized(2048, 8)
    samples = (data.samples * (1 + count // len(data.samples)))[:count]
    model = create_model(name, num_cameras=6, input_size=size).eval().to(world.device)

    def features(bfloat16: bool, **loading: Any) -> tuple[float, Any, str]:
        start, clock = time.perf_counter(), _Clock()
        loader = eval_loader(samples, size, **loading)
        found = extract_features(model, clock.batches(loader), device=world.device, bfloat16=bfloat16).feats
        seconds = (time.perf_counter() - start) / count
        share = 1 / seconds / rate
        return seconds, found, f"waiting for data {clock.row(count)['loading']:.0%}, card used {share:.0%}"

    extract_plainly(model, samples[:200], batch=100, workers=0, device=world.device)  # warms up
    plain, seconds = extract_plainly(model, samples, batch=100, workers=WORKERS, device=world.device)
    yield PLAIN, seconds / count, f"{WORKERS} processes"
    seconds, found, _ = features(False)
    off = ((found - plain).abs().max() / plain.abs().max()).item()
    yield "float32, as it is by default", seconds, f"decoded into memory first; off by {off:.0e}"
    seconds, _, note = features(True, workers=WORKERS, cache_gib=0)
    yield "**bfloat16, JPEGs**", seconds, f"{WORKERS} processes, {note}"
    with packed(data, size):
        features(True, cache_gib=0)  # reads the pack from the disk
        seconds, _, note = features(True, cache_gib=0)
    yield "**bfloat16, packed**", seconds, note


def training(name: str, world: World) -> Iterator[Row]:
    """Training of one model, beside the plain loop."""
    name, size = world.sized((name, SIZE), ("osnet_x0_25", (64, 32)))
    yield from compared(f"training, {name}", trained(name, size, world), images=True)


def trained(name: str, size: tuple[int, int], world: World) -> Iterator[tuple[str, float, str]]:
    import torch
    from training import RECIPE, Plain, Watch, Workbook, matrix_rate

    from reidlib import create_model, load_dataset
    from reidlib.models import complexity
    from reidlib.training import Setup

    data, device = load_dataset(world.sized("synthetic-small", "synthetic-tiny")), torch.device(world.device)
    people, images, count = world.sized((16, 4, 2560), (2, 2, 16))
    data = replace(data, train=data.train[:count])
    recipe, rate = replace(RECIPE, people=people, images=images), matrix_rate(device, world.sized(8192, 64))

    def model() -> Any:
        return create_model(name, num_classes=data.num_classes, num_cameras=6, input_size=size)

    bound = rate / (3 * complexity(model()).macs)  # images a second; a backward pass costs two forward ones

    def best(way: Any) -> tuple[float, str]:
        """Seconds an image of the better of two epochs, after one that warms up, and the use of the card."""
        found = []
        for _ in range(3):
            watch, start = Watch(), time.perf_counter()
            trained_on = way.epoch(watch)
            if not world.rehearse:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            found.append((seconds / trained_on, watch.spent["loading"] / seconds))
        seconds, waiting = min(found[1:])
        return seconds, f"waiting for data {waiting:.0%}, {1 / seconds / bound:.0%} of the card's bfloat16 products"

    seconds, note = best(Plain(model(), data, device, recipe, workers=WORKERS))
    yield PLAIN, seconds, f"{WORKERS} processes, {note}"
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(cpu=world.rehearse, bfloat16=True, workers=WORKERS)
        seconds, note = best(Workbook(model(), data, setup, Path(folder), recipe))
        yield "**bfloat16, channels last, JPEGs**", seconds, f"{WORKERS} processes, {note}"
        with packed(data, size):
            for way, compiled in (("**the same, packed**", False), ("the same, packed, compiled", True)):
                setup = Setup(cpu=world.rehearse, bfloat16=True, compile=compiled)
                yield way, *best(Workbook(model(), data, setup, Path(folder), recipe))


def demo(world: World) -> Iterator[Row]:
    """The demo trained in float32 and in bfloat16, and features in bfloat16 of the weights trained in float32."""
    from demo import demo_parameters

    from reidlib import evaluate_ranking, extract_features
    from reidlib.data.loaders import eval_loader
    from reidlib.evaluation import ranking_inputs
    from reidlib.training import Job

    params = demo_parameters()[0] | {"cpu": world.rehearse}
    tiny = {"dataset": "synthetic-tiny", "epochs": 2, "people": 4, "height": 64, "width": 32}
    scores = {}
    for precision, bfloat16 in (("float32", False), ("bfloat16", True)):
        job = Job.from_params(params | {"run": f"demo-{precision}", "bfloat16": bfloat16} | world.sized({}, tiny))
        history = job.train()
        scores[precision] = job.run.read_json("result.json")["results"][job.tested_on]["mAP"]
        note = f"{sum(row.get('seconds', 0) for row in history):.0f} s, from seed 0"
        yield Row("demo, mAP", f"trained in {precision}", 100 * scores[precision], "%", note=note)
        if not bfloat16:
            splits = [eval_loader(split, job.model.input_size) for split in (job.data.query, job.data.gallery)]
            mAP = []
            for half in (False, True):
                feats = [extract_features(job.model, s, device=world.device, bfloat16=half) for s in splits]
                mAP.append(evaluate_ranking(*ranking_inputs(*feats), metric=job.recipe.metric).mAP)
            yield Row(
                "demo, mAP",
                "these weights, features in bfloat16",
                100 * mAP[1],
                "%",
                note=f"{100 * mAP[0]:.2f} in float32",
            )


class Part(NamedTuple):
    seconds: int  # limit
    run: Callable[[World], Iterator[Row]]


PARTS = {
    "tests": Part(150, tests),
    **{shape: Part(60, partial(evaluator, shape)) for shape in ("market", "msmt17", "million")},
    "reranking": Part(60, reranking),
    "demo": Part(150, demo),
    **{f"features-{model}": Part(100, partial(extraction, model)) for model in MODELS},
    **{f"training-{model}": Part(120, partial(training, model)) for model in MODELS},
}


# ---- in the process of a part ----------------------------------------------------------------------------------------


def machine(world: World) -> dict[str, str]:
    """What the figures depend on. Raises RuntimeError where there is no GPU."""
    import torch
    from demo import processor

    found = {"processor": f"{processor()}, {os.cpu_count()} cores", "python": platform.python_version()}
    found |= {name: getattr(importlib.import_module(name), "__version__", "?") for name in VERSIONS}
    if world.rehearse:
        return found
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device: make gpu REHEARSE=1 runs the same code on a CPU")
    about = torch.cuda.get_device_properties(0)
    found["gpu"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
    found["cuda"] = str(torch.version.cuda)
    with suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.check_output(query, text=True).split("\n")[0]
    return found


def measure_parts(names: Sequence[str], lines: Path, world: World) -> None:
    """Run parts in this process, and append what they find to a file of JSON lines."""

    def write(**line: Any) -> None:
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    write(machine=machine(world))
    gc.freeze()  # what the libraries have made is not searched before each measurement
    for name in names:
        try:
            for row in PARTS[name].run(world):
                write(part=name, row=row)
        except Exception as error:
            traceback.print_exc()
            write(part=name, error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


# ---- in the process that starts them ---------------------------------------------------------------------------------


def start_parts(names: Sequence[str], seconds: float, scratch: Path, world: World) -> list[dict[str, Any]]:
    """Run parts in a process of their own, for at most so many seconds. Returns the lines that it wrote."""
    lines, log = scratch / f"{names[0]}.jsonl", scratch / f"{names[0]}.log"
    command = [sys.executable, __file__, "--inside", *names, "--lines", str(lines)] + ["--rehearse"] * world.rehearse
    folders = {"REID_RUNS": str(scratch / "runs"), "REID_DATA_PATHS": str(scratch / "data_paths.yaml")}
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
    environment = os.environ | folders | paths | (on_cpu if world.rehearse else {})
    ended = ""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            if code := process.wait(seconds):
                ended = f"ended with {code}: {log.read_text(errors='replace').strip().splitlines()[-1:]}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.exists() else []
    if ended:
        found.append({"part": ([line["part"] for line in found if "part" in line] or names)[-1], "error": ended})
    if any("error" in line for line in found):
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
    return found


def table(found: dict[str, Any]) -> str:
    """gpu.md."""
    about, lines = found["machine"], ["| what | way | measured | × | |", "|---|---|--:|--:|---|"]
    where = about.get("gpu", "no GPU: a rehearsal") + (f", driver {about['driver']}" if "driver" in about else "")
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", *VERSIONS, "cuda") if name in about)
    for part, result in found["parts"].items():
        before = ""
        for row in (Row(*row) for row in result["rows"]):
            value = f"{row.value:,.{0 if row.value >= 100 or not row.unit else 2}f} {row.unit}".strip()
            ratio = "" if row.ratio is None else f"{row.ratio:{'.2f' if row.ratio >= 0.1 else '.1g'}}"
            lines.append(f"| {row.what if row.what != before else ''} | {row.way} | {value} | {ratio} | {row.note} |")
            before = row.what
        if "error" in result:
            lines.append(f"| {part} | **failed** | | | {result['error'].replace('|', '/')} |")
    head = f"{where}; {about.get('processor')}; {versions}; {found['date']}; by `make gpu`, which says how."
    said = "× is how many times as fast a way is as the first of its group, in one process."
    return "\n".join(["# On a GPU", "", head, "", said, "", *lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="in all; parts for which none are left are not run")
    parser.add_argument("--parts", default="", help=f"comma-separated, of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny; keeps nothing unless --out is given")
    parser.add_argument("--out", type=Path, help="folder of gpu.md and gpu.json; default: this script's")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    world = World(args.rehearse)
    if args.inside:
        measure_parts(args.inside, args.lines, world)
        return 0
    names = args.parts.split(",") if args.parts else [*PARTS]
    if world.rehearse and not args.parts:  # the code of each kind of part once
        names = ["tests", "million", "reranking", "demo", f"features-{MODELS[0]}", f"training-{MODELS[0]}"]
    end = time.monotonic() + 60 * args.minutes
    if unknown := set(names) - PARTS.keys():
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    out = args.out or (None if world.rehearse else Path(__file__).parent)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": {}, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "data_paths.yaml").write_text("synthetic: data\nsynthetic_b: data\n")
        for group in [names] if world.rehearse else [[name] for name in names]:  # imports alone take seconds
            limit = min(sum(PARTS[name].seconds for name in group), end - time.monotonic())
            none = [{"part": name, "error": f"the {args.minutes:g} minutes were over"} for name in group]
            for line in start_parts(group, limit, scratch, world) if limit > 1 else none:
                found["machine"] |= line.get("machine", {})
                if "part" in line:
                    result = found["parts"].setdefault(line["part"], {"rows": []})
                    result["rows"] += [line["row"]] if "row" in line else []
                    result |= {"error": line["error"]} if "error" in line else {}
            if out:
                for name, text in (("gpu.json", json.dumps(found, indent=1) + "\n"), ("gpu.md", table(found))):
                    with whole_file(out / name) as part:
                        part.write_text(text, encoding="utf-8")
    print(table(found))
    failed = [name for name in names if not found["parts"].get(name, {}).get("rows") or "error" in found["parts"][name]]
    if failed:
        print(f"error: {', '.join(failed)} failed", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
