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
    """Per model: `layout` (upstream key: shape), `golden` (features), `counts` and sizes; one file a family."""
    models: dict[str, dict] = {}
    for path in sorted(FIXTURES.glob("*.json.gz")):
        models |= json.loads(gzip.decompress(path.read_bytes()))
    return models


def draw_state(layout: dict[str, list[int]], *, gain: float, seed: int = 20) -> dict[str, Tensor]:
    """An upstream state dict in float32 (counters int64). The first rule that fits an entry draws it."""
    return {key: _draw(key, tuple(shape), gain, seed) for key, shape in layout.items()}


def _draw(key: str, shape: tuple[int, ...], gain: float, seed: int) -> Tensor:
    rng = np.random.default_rng([seed, crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
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


def golden_error(feats: Tensor, golden: dict) -> float:
    """Largest error at the recorded places (first 12, last 4, 32 spread) over the largest recorded value."""
    dim = feats.shape[1]
    assert dim == golden["dim"]
    spread = [k * dim // 32 for k in range(32)]
    got = torch.cat([feats[:, :12], feats[:, -4:], feats[:, spread]], dim=1).double()
    parts = [golden["first12"], golden["last4"], golden["spaced32"]]
    want = torch.cat([torch.tensor(part, dtype=torch.float64) for part in parts], dim=1)
    return ((got - want).abs().max() / golden["max_abs"]).item()
