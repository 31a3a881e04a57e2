"""Retrieval features of many images, and the file that keeps them, so that metrics can change without the network."""

import copy
from collections.abc import Callable, Iterable, Sequence
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


def feature_function(
    model: nn.Module,
    device: torch.device | str | None = None,
    *,
    bfloat16: bool = False,
    flip: bool = False,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Prepare a model once for many batches: the function that `extract_features` calls for each of them.

    Args:
        model: See `extract_features`, also for `device`, `bfloat16` and `flip`.

    Returns:
        A function of images (B, 3, H, W) and camera labels (B,) that gives features (B, D) float32 on `device`.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    network = model.fuse() if hasattr(model, "fuse") else copy.deepcopy(model).eval()
    network.to(device).to(memory_format=torch.channels_last)
    flip, units = flip or getattr(model, "mirrored", False), getattr(model, "unit_parts", 1)
    # The maps of a few images stay in a CPU's cache; those of 64 take OSNet nearly twice as long each.
    share = 8 if device.type == "cpu" else None

    def features_of(images: Tensor, cameras: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            parts, size = [], share or len(images)
            for part, camera in zip(images.split(size), cameras.to(device).split(size), strict=True):
                found = network(part, camera).float()
                parts.append((found + network(part.flip(-1), camera).float()) / 2 if flip else found)
            feats = torch.cat(parts)
            return normalize(feats.unflatten(1, (-1, units)), dim=1).flatten(1) if units > 1 else feats

    return features_of


def extract_features(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    bfloat16: bool = False,
    flip: bool = False,
    progress: bool = False,
) -> Features:
    """The features of all images of `batches`, in their order.

    A copy of the model runs, in eval mode, in channels last (faster on CPUs and GPUs) and, for a `ReIDModel`, fused; on
    a CPU eight images at a time. Features differ by rounding only, and the model stays as it is: the mode of each
    module, its device and memory format.

    Args:
        model: Takes images (B, 3, H, W) and camera labels (B,), gives features (B, D).
        batches: Each with images, pids, camids and cameras.
        device: Where to run; default: where the model is.
        bfloat16: Run the network (never the ranking) under autocast: faster on a GPU; features carry its rounding.
        flip: Take the mean of the features of each image and of its mirror image, as many projects test; a model whose
            attribute `mirrored` is true always does. Where its `unit_parts` is N > 1, the feature is cut into N parts,
            of every N-th number each, and each part is scaled to length 1.
        progress: Show a bar.

    Returns:
        One row per image.

    Raises:
        ValueError: There is no image.
    """
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="features", unit="batch", leave=False)
    features_of = feature_function(model, device, bfloat16=bfloat16, flip=flip)
    feats, pids, camids = [], [], []
    for batch in batches:  # read outside of inference mode: what a loader makes may be used elsewhere
        feats.append(features_of(batch.images, batch.cameras))
        # Features stay on the device: copying each batch would make the GPU wait.
        pids.append(batch.pids)
        camids.append(batch.camids)
    if not feats:
        raise ValueError("no images to extract features from")
    return Features(torch.cat(feats).cpu(), torch.cat(pids), torch.cat(camids))


def ranking_inputs(
    query: Features, gallery: Features, *, precision: str = "float32", multi_query: str = ""
) -> tuple[Tensor, ...]:
    """The six tensors that `evaluate_ranking`, `rank_gallery` and the protocols begin with.

    Args:
        query: Q images.
        gallery: G images.
        precision: "float16" normalises features and rounds them to half precision, as some evaluators compare them: to
            explain their figures.
        multi_query: "mean" or "max": one query for each person and camera, whose feature is that of all images of this
            person under this camera, in the query set and in the gallery (which such a query never ranks). Zheng et
            al., ICCV 2015, who take the images of Market-1501's gt_bbox in place of the gallery's.

    Returns:
        Features (Q, D) and (G, D), pids (Q,) and (G,), camids (Q,) and (G,).

    Raises:
        ValueError: Another `precision` or `multi_query`.
    """
    if precision not in ("float32", "float16"):
        raise unknown_name("precision", precision, ("float32", "float16"))
    if multi_query:
        query = _pooled(query, gallery, multi_query)
    feats = query.feats, gallery.feats
    if precision == "float16":  # the smallest half instead of 0, so that a row of zeros stays one
        feats = tuple(normalize(f.half(), eps=2.0**-24) for f in feats)
    return *feats, query.pids, gallery.pids, query.camids, gallery.camids


def _pooled(query: Features, gallery: Features, how: str) -> Features:
    """One row for each pid and camid of `query`, by pid, then camid."""
    if how not in (reductions := {"mean": "mean", "max": "amax"}):
        raise unknown_name("multi_query", how, reductions)
    ids = torch.stack([torch.cat([query.pids, gallery.pids]), torch.cat([query.camids, gallery.camids])], dim=1)
    groups, group = ids.unique(dim=0, return_inverse=True)
    asked = group[: len(query)].unique()
    row = torch.full((len(groups),), -1)
    row[asked] = torch.arange(len(asked))
    row = row[group]  # of each image, -1 where no query asks for its person and camera
    feats = torch.cat([query.feats, gallery.feats[row[len(query) :] >= 0]])
    index = row[row >= 0][:, None].expand_as(feats)
    pooled = feats.new_zeros(len(asked), feats.shape[1])
    pooled.scatter_reduce_(0, index, feats, reductions[how], include_self=False)
    return Features(pooled, *groups[asked].unbind(1))


def average_tracks(features: Features, tracks: Sequence[str], *, quality: Any = None) -> tuple[Features, Tensor]:
    """One feature a tracklet: the mean of the normalised features of its images.

    Args:
        features: N images.
        tracks: N names of tracklets, unique within a camera; "" for an image that is one by itself.
        quality: (N,) weights of 0 or more, such as a detector's confidence; None: all images count alike.

    Returns:
        The features of T tracklets, normalised, in the order of their first images; and which of them each image is in,
        (N,) int64.

    Raises:
        ValueError: The lengths differ, a tracklet has two pids, or its weights are negative, not finite or all 0.
    """
    weights = torch.ones(len(features)) if quality is None else torch.as_tensor(quality, dtype=torch.float32)
    if len(tracks) != len(features) or weights.shape != (len(features),):
        raise ValueError(
            f"{len(features)} features, {len(tracks)} tracks and weights {tuple(weights.shape)} do not fit"
        )
    if not ((weights >= 0) & weights.isfinite()).all():
        raise ValueError("the quality of an image is a finite number of 0 or more")
    keys = [
        (camid, track) if track else i
        for i, (camid, track) in enumerate(zip(features.camids.tolist(), tracks, strict=True))
    ]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    track = torch.tensor([number[key] for key in keys], dtype=torch.int64)
    first = torch.full((len(number),), len(keys)).scatter_reduce_(0, track, torch.arange(len(keys)), "amin")
    if len(wrong := (features.pids != features.pids[first][track]).nonzero()):
        at = int(wrong[0])
        pids = int(features.pids[first][track][at]), int(features.pids[at])
        raise ValueError(
            f"the track {tracks[at]!r} of camera {int(features.camids[at])} has two people, {pids[0]} and {pids[1]}"
        )
    total = torch.zeros(len(number)).index_add_(0, track, weights)
    if (total == 0).any():
        raise ValueError(f"all images of the track {tracks[int(first[total == 0][0])]!r} have the quality 0")
    feats = torch.zeros(len(number), features.feats.shape[1])
    feats.index_add_(0, track, normalize(features.feats.float()) * weights[:, None])
    return Features(normalize(feats), features.pids[first], features.camids[first]), track


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
