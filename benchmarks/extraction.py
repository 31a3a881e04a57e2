"""What features cost: images per second of a dozen models, plain and in the ways that extraction can take.

    python benchmarks/extraction.py [--threads 1] [--batch 8] [--models NAME,...] [--images 128]

Of the network alone: plain is float32, channels first; the others are ratios to it, of the same process, each the best
of three runs. From files to features: `benchmarks/plain.py` against `extract_features` as it is. Writes extraction.md.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from demo import processor
from measuring import measure
from plain import extract_plainly
from torch import nn

from reidlib import extract_features, load_dataset
from reidlib.data.loaders import eval_loader
from reidlib.data.samples import Sample
from reidlib.files import whole_file
from reidlib.models import create_model

MODELS = (
    *("osnet_x1_0", "osnet_ain_x1_0", "mobilenetv2_x1_0", "resnet50", "resnet50_bot", "agw_R50_ibn_fastreid"),
    *("bagtricks_S50_fastreid", "bagtricks_convnext_tiny_fastreid", "mgn_sbs_R50_ibn_fastreid", "resnet50_ap"),
    *("resnet50_abd", "vit_transreid", "clipreid_vit_b16", "solider_swin_tiny"),
)
WAYS = ("channels last", "channels last, bfloat16", "channels last, folded norms", "all three")


def network_seconds(
    name: str, batch: int, device: str, *, size: tuple[int, int] | None = None, compiled: bool = False
) -> Iterator[tuple[str, float]]:
    """Seconds of a batch by the plain way ("plain") and by each of WAYS, the last one also compiled."""
    model = create_model(name, num_cameras=6, input_size=size).eval().to(device)
    images = torch.rand(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    camids = torch.arange(batch, device=device) % 6

    def seconds(network: nn.Module, bfloat16: bool) -> float:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            return measure(network, images, camids, device=device, repeats=3, warm_up=1).seconds

    yield "plain", seconds(model, False)
    images = images.to(memory_format=torch.channels_last)
    networks = [network.to(memory_format=torch.channels_last) for network in (model, model.fuse())]
    for way, (network, bfloat16) in zip(WAYS, product(networks, (False, True)), strict=True):
        yield way, seconds(network, bfloat16)
    if compiled:
        yield f"{WAYS[-1]}, compiled", seconds(torch.compile(networks[1]), True)


def row(name: str, batch: int) -> str:
    times = dict(network_seconds(name, batch, "cpu"))
    ratios = " | ".join(f"{times['plain'] / times[way]:.2f}" for way in WAYS)
    return f"| {name} | {batch / times['plain']:.1f} | {ratios} |"


PIPELINES = ("osnet_x0_25", "osnet_x1_0", "resnet50", "vit_base_transreid", "clipreid_vit_b16", "solider_swin_tiny")


def pipeline(name: str, samples: Sequence[Sample]) -> str:
    """From files to features, decoding included; the better of two runs each, one way after the other."""
    plainly, here = [], []
    for _ in range(2):
        model = create_model(name).eval()
        feats, took = extract_plainly(model, samples, batch=100, workers=2)
        plainly.append(took)
        start = time.perf_counter()
        found = extract_features(model, eval_loader(samples, model.input_size)).feats
        here.append(time.perf_counter() - start)
    plain, ours = min(plainly), min(here)
    apart = ((found - feats).abs().max() / feats.abs().max()).item()
    count = len(samples)
    return f"| {name} | {count / plain:.1f} | {count / ours:.1f} | {plain / ours:.2f} | {apart:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--images", type=int, default=128)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    how = f"{args.threads} thread(s), batches of {args.batch}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    lines = [
        "# What features cost",
        "",
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {how}; by `python benchmarks/extraction.py`.",
        "",
        "Images per second, plain; the other columns are how many times as many.",
        "",
        f"| model | plain | {' | '.join(WAYS)} |",
        "|---|" + "--:|" * (1 + len(WAYS)),
    ]
    for name in args.models.split(","):
        lines.append(row(name, args.batch))
        print(lines[-1], flush=True)
    torch.set_num_threads(threads)
    data = load_dataset("synthetic-small")
    lines += [
        "",
        f"From files to features: {args.images} drawn images of 256 x 128 as JPEG, {threads} threads. Plain is the",
        "loop of the original projects (`benchmarks/plain.py`: PIL, batches of 100, 2 loader processes, float32);",
        "here is `extract_features` with its defaults (float32 too). Images per second, their ratio, and the largest",
        "difference of a feature over the largest feature.",
        "",
        "| model | plain | here | ratio | difference |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in PIPELINES:
        lines.append(pipeline(name, data.gallery[: args.images]))
        print(lines[-1], flush=True)
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        Path(part).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
