"""What features cost: images per second of a dozen models, plain and in the ways that extraction can take.

    python benchmarks/extraction.py [--threads 1] [--batch 8] [--device cuda] [--models NAME,...]

Plain is float32, channels first; the others are ratios to it, of the same process, each the better of three runs.
Writes extraction.md.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from reidlib.files import whole_file
from reidlib.models import create_model

MODELS = (
    *("osnet_x1_0", "osnet_ain_x1_0", "mobilenetv2_x1_0", "resnet50", "resnet50_bot", "agw_R50_ibn_fastreid"),
    *("bagtricks_S50_fastreid", "bagtricks_convnext_tiny_fastreid", "mgn_sbs_R50_ibn_fastreid", "resnet50_ap"),
    *("resnet50_abd", "vit_transreid"),
)
WAYS = ("channels last", "channels last, folded norms", "channels last, bfloat16", "all three")


def seconds(model: nn.Module, images: Tensor, camids: Tensor, *, bfloat16: bool) -> float:
    """Of the processor, or by the clock on a GPU: another process on the machine then counts little."""
    clock: Callable[[], float] = time.perf_counter if images.is_cuda else time.process_time
    best = float("inf")
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        for _ in range(4):  # the first warms up, and is beaten
            start = clock()
            model(images, camids).sum().item()
            best = min(best, clock() - start)
    return best


def row(name: str, batch: int, device: str) -> str:
    model = create_model(name, num_cameras=6).eval().to(device)
    images = torch.rand(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    camids = torch.arange(batch, device=device) % 6
    plain = seconds(model, images, camids, bfloat16=False)
    images = images.to(memory_format=torch.channels_last)
    times = []
    for network in (model, model.fuse()):
        network = network.to(memory_format=torch.channels_last)
        times.append([seconds(network, images, camids, bfloat16=half) for half in (False, True)])
    (last, half), (folded, both) = times
    ratios = " | ".join(f"{plain / t:.2f}" for t in (last, folded, half, both))
    return f"| {name} | {batch / plain:.1f} | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "CPU"
    how = f"{args.threads} thread(s), batches of {args.batch}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    lines = [
        "# What features cost",
        "",
        f"{where} ({torch.backends.cpu.get_cpu_capability()}), {how}; by `python benchmarks/extraction.py`.",
        "",
        "Images per second, plain; the other columns are how many times as many.",
        "",
        f"| model | plain | {' | '.join(WAYS)} |",
        "|---|" + "--:|" * (1 + len(WAYS)),
    ]
    for name in args.models.split(","):
        lines.append(row(name, args.batch, args.device))
        print(lines[-1], flush=True)
    with whole_file(Path(__file__).with_suffix(".md")) as part:
        Path(part).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
