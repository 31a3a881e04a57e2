"""Retrieval features of many pictures, and the file that keeps them, so that metrics can change without the network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib.errors import unknown_name
from reidlib.files import whole_file


@dataclass(frozen=True)
class Features:
    """feats (N, D) float32 as the network gives them (not normalised); pids and camids (N,) int64; all on the CPU."""

    feats: Tensor
    pids: Tensor
    camids: Tensor

    def __len__(self) -> int:
        return len(self.pids)


def extract_features(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    bfloat16: bool = False,
    progress: bool = False,
) -> Features:
    """The features of all `batches` (each with images, pids, camids, cameras) in their order.

    `device` defaults to where the model is. `bfloat16` runs the network (never the ranking) under autocast: faster on a
    GPU, and features then carry its rounding. The model is put into eval mode for the call and back afterwards.
    A `ReIDModel` runs as its `fuse()`d copy, and on a CPU eight pictures at a time: features differ in rounding only.
    Raises ValueError where there is nothing to extract.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="features", unit="batch", leave=False)
    feats, pids, camids = [], [], []
    training = model.training
    # Channels last: convolutions are a good deal faster so, on CPUs as on GPUs; features differ in rounding only.
    model.eval().to(device, memory_format=torch.channels_last)
    network = model.fuse() if hasattr(model, "fuse") else model
    # The maps of a few pictures stay in a CPU's cache; those of 64 take OSNet nearly twice as long each.
    share = 8 if device.type == "cpu" else None
    try:
        # Inference mode begins after the move: parameters moved within it could never be trained again.
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            for batch in batches:
                images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
                cameras = batch.cameras.to(device)
                pieces = zip(images.split(share or len(images)), cameras.split(share or len(images)), strict=True)
                # They stay on the device: copying each batch would make the GPU wait.
                feats += [network(*piece).float() for piece in pieces]
                pids.append(batch.pids)
                camids.append(batch.camids)
    finally:
        model.train(training)
    if not feats:
        raise ValueError("no pictures to extract features from")
    return Features(torch.cat(feats).cpu(), torch.cat(pids), torch.cat(camids))


def ranking_inputs(query: Features, gallery: Features, *, precision: str = "float32") -> tuple[Tensor, ...]:
    """The six tensors that `evaluate_ranking` and `rank_gallery` begin with.

    `precision="float16"`: features normalised and rounded in half precision, as some evaluators compare them; it is
    for explaining their figures. ValueError for another.
    """
    if precision not in ("float32", "float16"):
        raise unknown_name("precision", precision, ("float32", "float16"))
    feats = query.feats, gallery.feats
    if precision == "float16":
        feats = tuple(normalize(f.half()) for f in feats)
    return *feats, query.pids, gallery.pids, query.camids, gallery.camids


def save_features(path: str | Path, splits: dict[str, Features], stamp: dict[str, str]) -> None:
    """Write the features of several splits to one safetensors file; `stamp` says what they were made from."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{field}": getattr(f, field).contiguous()
        for name, f in splits.items()
        for field in ("feats", "pids", "camids")
    }
    with whole_file(path) as part:
        save_file(tensors, part, metadata=stamp)


def load_features(path: str | Path, stamp: dict[str, str]) -> dict[str, Features] | None:
    """What `save_features` wrote, or None where there is no such file or it was made from something else."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != stamp:
                return None
            names = sorted({key.rpartition(".")[0] for key in file.keys()})  # noqa: SIM118 (not a dict)
            return {n: Features(*(file.get_tensor(f"{n}.{x}") for x in ("feats", "pids", "camids"))) for n in names}
    except SafetensorError:
        return None
