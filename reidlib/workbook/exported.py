"""What an exported file costs and gives, beside PyTorch: size, latency, difference of features, mAP."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from reidlib.data.loaders import eval_loader
from reidlib.data.samples import ReIDDataset
from reidlib.evaluation import Features, evaluate_ranking, ranking_inputs
from reidlib.models import ReIDModel, export
from reidlib.workbook.runs import Run


def measure(
    model: ReIDModel, path: Path | None, dataset: ReIDDataset, run: Run, *, threads: int = 1, repeats: int = 5
) -> dict[str, float]:
    """One row of a table: the exported file `path` of a model, or the model itself where it is None.

    Args:
        model: On the CPU.
        path: What `export_model` wrote of it.
        dataset: Whose query and gallery are ranked.
        run: Says how images are resized and ranked.
        threads: Of the processor, for all that is measured.
        repeats: Timed calls; the fastest counts.

    Returns:
        Size in MB (of weights where there is no file), milliseconds for one image and for eight, largest difference
        of a feature from PyTorch over the largest feature, mAP in percent.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            network = model.fuse().to(memory_format=torch.channels_last)
            function = export.load_exported(path, threads=threads) if path else network
            splits, largest, apart = [], 0.0, 0.0
            for samples in (dataset.query, dataset.gallery):
                feats, pids, camids = [], [], []
                for batch in eval_loader(samples, model.input_size, interpolation=run.interpolation, batch_size=8):
                    feats.append(function(batch.images))
                    expected = network(batch.images)
                    largest = max(largest, float(expected.abs().max()))
                    apart = max(apart, float((feats[-1] - expected).abs().max()))
                    pids.append(batch.pids)
                    camids.append(batch.camids)
                splits.append(Features(torch.cat(feats), torch.cat(pids), torch.cat(camids)))
            one, eight = batch.images[:1], batch.images[:1].repeat(8, 1, 1, 1)
            took = [min(_seconds(function, images) for _ in range(repeats + 1)) for images in (one, eight)]
    finally:
        torch.set_num_threads(before)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    parts = [path, path.with_suffix(".bin")] if path and path.suffix == ".xml" else [path] if path else []
    size = sum(part.stat().st_size for part in parts) or weights
    ranking = evaluate_ranking(*ranking_inputs(*splits), metric=run.metric, **dataset.protocol())
    return {
        "MB": round(size / 1e6, 2),
        "ms, 1 image": round(1e3 * took[0], 2),
        "ms, 8 images": round(1e3 * took[1], 2),
        "largest difference": apart / largest,
        "mAP": round(100 * ranking.mAP, 2),
    }


def _seconds(function: Callable[[Tensor], Tensor], images: Tensor) -> float:
    start = time.perf_counter()
    function(images)
    return time.perf_counter() - start
