"""What to do when the loss or a gradient becomes NaN or infinite, and which operations are not deterministic.

Training stops with one sentence that names the batch and the layer. The batch is kept in the run folder, and the last
checkpoint stays as it is.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reidlib.data.loaders import Batch
from reidlib.run_folder import RunFolder
from reidlib.training import record
from reidlib.training.recipes import Recipe


@dataclass(frozen=True)
class TrainingBatch:
    """A batch on the device as the model sees it, and where in the run it belongs."""

    loaded: Batch  # on the CPU, before augmentation
    images: Tensor  # (B, 3, H, W) uint8, augmented; or features (B, D), where losses alone are trained
    labels: Tensor  # (B,) int64
    cameras: Tensor  # (B,) int64
    epoch: int
    step: int
    agreement: Tensor | None = None  # (B, parts), see `refinement`


@dataclass(frozen=True)
class Diagnosis:
    """Finds where a number became NaN or infinite, keeps the batch, and raises FloatingPointError."""

    model: nn.Module
    recipe: Recipe
    run: RunFolder
    samples: Any  # of the training set, for their paths; None if it has none
    rank: int
    world: int

    def stop_at_loss(
        self, batch: TrainingBatch, loss: float, parts: dict[str, Tensor], forward: Callable[[], Any]
    ) -> NoReturn:
        """Stop where the loss, averaged over all processes, is not finite. Every process must call this.

        Args:
            batch: The batch that it is the loss of.
            loss: NaN or infinite.
            parts: The values of the single losses, by name.
            forward: Repeats the forward pass of `model`; the optimizer has not moved the weights yet.
        """
        layers: list[str] = [first_bad_layer(self.model, forward)]
        if self.world > 1:
            gathered: list[Any] = [None] * self.world
            dist.all_gather_object(gathered, layers[0])
            layers = gathered
        rank = next((rank for rank, layer in enumerate(layers) if layer), 0)
        if layers[rank]:
            where = f"first in the output of layer {layers[rank]}"
        else:
            bad = [name for name, value in parts.items() if name != "loss" and not value.isfinite()]
            where = "although the outputs of all layers are finite" + (f": check {', '.join(bad)}" if bad else "")
        self._stop(batch, rank, f"the loss is {loss}, {where}", {"layer": layers[rank]})

    def stop_at_gradient(self, batch: TrainingBatch) -> NoReturn:
        """Stop where the norm of the gradients, which are those of all processes, is not finite."""
        bad = [name for name, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        bad = bad or ["what the losses learn"]
        first = bad[-1]  # gradients are computed from the loss backwards
        count = f"{len(bad)} gradients are" if len(bad) > 1 else "1 gradient is"
        error = f"the loss is finite, but {count} NaN or infinite, starting at {first}"
        self._stop(batch, 0, error, {"layer": first.rpartition(".")[0], "gradients": bad})

    def _stop(self, batch: TrainingBatch, rank: int, error: str, about: dict[str, Any]) -> NoReturn:
        """Keep the batch of process `rank`, and raise `error` in all of them."""
        if self.rank == rank:
            loaded = batch.loaded
            paths = [str(self.samples[i].path) for i in loaded.indices.tolist()] if self.samples else []
            seeds = {"seed": self.recipe.seed, "epoch": batch.epoch, "step": batch.step, "rank": rank}
            about = {"error": error, **about, "drawn_from": seeds, "paths": paths}
            about |= {"labels": loaded.pids.tolist(), "camids": loaded.camids.tolist()}
            record.write_bad_batch(self.run, batch.images if batch.images.ndim == 4 else None, about)
        raise FloatingPointError(
            f"batch {batch.step + 1} of epoch {batch.epoch}: {error}; lower the learning rate (lr={self.recipe.lr:g}), "
            f"or look at bad_batch.json and its images in {self.run.path}; the checkpoint of the epoch before is kept"
        )


@torch.no_grad()
def first_bad_layer(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Find the first layer with a NaN or infinite output.

    Args:
        model: Its modules are watched.
        forward: Runs `model` once.

    Returns:
        The module's name, and whether its own weights are to blame; "" if every output is finite.
    """
    found: list[str] = []

    def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _finite(_tensors(output)):
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            found.append(names[module] + ("" if _finite(own) else " (its weights are NaN or infinite)"))

    names = {module: name or type(module).__name__ for name, module in model.named_modules()}
    hooks = [module.register_forward_hook(check_output) for module in names]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return "".join(found)


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


@contextmanager
def note_nondeterministic(run: RunFolder) -> Iterator[None]:
    """List the operations of the block that torch knows to be nondeterministic in environment.json."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    names = {m[1] for w in caught if (m := re.match(r"(\S+) does not have a deterministic", str(w.message)))}
    names |= {"cuBLAS" for w in caught if "CuBLAS" in str(w.message)}
    if torch.cuda.is_available() and not torch.backends.cudnn.deterministic:
        names.add("cuDNN convolutions")
    run.write_json("environment.json", run.read_json("environment.json") | {"not_deterministic": sorted(names)})
