"""Deterministic weights and inputs under which the upstream networks' features were recorded.

Weights are drawn by the upstream key and shape, so that a model meets them only through its rename rules.
"""

import gzip
import json
from math import prod
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures" / "models"


def read_fixtures() -> dict[str, dict]:
    """What `fixtures/models/pack.py` packed, by model name: upstream keys and shapes, features, counts."""
    models: dict[str, dict] = {}
    for path in sorted(FIXTURES.glob("*.json.gz")):
        models |= json.loads(gzip.decompress(path.read_bytes()))
    return models


def draw_state(fixture: dict, *, seed: int = 20) -> dict[str, Tensor]:
    """An upstream state dict in float32 (counters int64); an alias takes the draw of the key it stands for."""
    aliases, gain = fixture["aliases"], fixture["gain"]
    return {key: _draw(aliases.get(key, key), tuple(shape), gain, seed) for key, shape in fixture["layout"].items()}


def _draw(key: str, shape: tuple[int, ...], gain: float, seed: int) -> Tensor:
    """One entry; the first rule that fits draws it."""
    rng = np.random.default_rng([seed, crc32(key.encode())])
    if key.endswith(("num_batches_tracked", "relative_position_index")):  # the latter is a constant that no model loads
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) > 1 and key.endswith("weight"):
        value = gain * rng.standard_normal(shape) * np.sqrt(1 / prod(shape[1:]))
        value = value * (0.25 if "NL_" in key else 1.0)
        value = np.abs(value) if shape[:2] == (1, 1) else value
    elif len(shape) > 1:
        value = 0.5 * rng.standard_normal(shape)
    elif key.endswith("weight"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith("bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif key.endswith(".p"):
        value = rng.uniform(2.5, 3.5, shape)
    else:
        value = 0.5 * rng.uniform(0, 1, shape)
    return torch.tensor(value, dtype=torch.float32)


def draw_input(height: int, width: int, *, seed: int = 20) -> Tensor:
    """Two images (2, 3, height, width) float32, as a network takes them after normalisation."""
    rng = np.random.default_rng([seed, 7])
    noise = rng.standard_normal((2, 3, height, width))
    blocks = rng.standard_normal((2, 3, height // 32, width // 32))
    offset = rng.standard_normal((2, 3, 1, 1))
    of_noise, of_blocks = np.array([0.25, 1.0]).reshape(2, 1, 1, 1), np.array([1.0, 0.5]).reshape(2, 1, 1, 1)
    x = of_noise * noise + of_blocks * blocks.repeat(32, axis=2).repeat(32, axis=3) + 1.5 * offset
    return torch.tensor(x, dtype=torch.float32)


def golden_error(feats: Tensor, golden: dict, *, cut: int = 0) -> float:
    """Largest error of feats (2, D) over the largest feature value, at the recorded places and precision.

    `cut`: where a feature of two parts of very different size is cut: each part's errors are over its own largest.
    """
    dim = feats.shape[1]
    recorded = golden["float64" if feats.dtype == torch.float64 else "float32"]
    places = torch.tensor([*range(12), *range(dim - 4, dim), *(k * dim // 32 for k in range(32))])
    parts = [torch.tensor(recorded[part], dtype=torch.float64) for part in ("first12", "last4", "spaced32")]
    expected = torch.cat(parts, dim=1)
    errors = [(feats[:, places].double() - expected).abs()[:, places >= cut].max()]
    if cut:
        first = places < cut
        error = (feats[:, places].double() - expected)[:, first].abs().max() / expected[:, first].abs().max()
        errors.append(error * golden["max_abs"])
    lengths = torch.tensor(recorded["l2"], dtype=torch.float64)
    errors.append((feats.double().norm(dim=1) - lengths).abs().max() / dim**0.5)  # every other place, on average
    return (max(errors) / golden["max_abs"]).item()
