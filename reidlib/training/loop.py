"""The loop under every training: whole epochs, one code path for CPU, GPU and several processes, exact resume.

An epoch is a function of the weights, the optimizer and the seed: batches, augmentation and dropout are drawn from
(seed, epoch, step), so that a run killed at any moment goes on from its last whole epoch to the same weights.

Several processes compute what one would with the batch of all: losses see the outputs of every process, gradients are
averaged, the learning rate stays unless `scale_lr` is set. They differ in what is drawn for a picture (augmentation and
dropout are each process's own) and, without `sync_bn`, in batch norms, which see the pictures of their process alone.

What is trained on what is not known here: `fit` brings people and mAP, and whoever else calls `train` brings batches
and an evaluation of its own.
"""

import copy
import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reidlib.data.loaders import Batch, loader_errors
from reidlib.data.transforms import Augmentation, build_augmentation
from reidlib.files import whole_file
from reidlib.run_folder import RunFolder
from reidlib.seeds import seeded, torch_generator_for
from reidlib.training import record
from reidlib.training.losses import Criterion
from reidlib.training.optim import begin_epoch, build_optimizer, set_rate
from reidlib.training.recipes import Recipe

History = list[dict[str, Any]]
Evaluate = Callable[[nn.Module], dict[str, float]]
OnEpoch = Callable[[History], None]


@dataclass(frozen=True)
class Setup:
    """How a run is carried out. What it computes is the recipe's, and the number of processes'."""

    workers: int = 0  # loader processes, for sets too large to be kept in memory
    cpu: bool = False  # stay on the CPU even where there is a GPU
    num_processes: int = 1  # on this computer, each with a GPU of its own and a batch of people × images
    scale_lr: bool = False  # multiply the learning rate by the number of processes
    sync_bn: bool = False  # batch norms over the batches of all processes; on GPUs
    bfloat16: bool | None = None  # compute in bfloat16, losses in float32; None: on GPUs that can
    compile: bool = False  # torch.compile: a slow first step, then faster ones
    keep_every: int = 0  # epochs between checkpoints that are kept beside the last and the best; 0: none
    tensorboard: bool = False  # write the metrics for TensorBoard too

    def __post_init__(self) -> None:
        for field, least in (("workers", 0), ("num_processes", 1), ("keep_every", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "Setup":
        """The set-up whose fields stand in `values` under their own names; other entries are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def begin(setup: Setup) -> Any:
    """The processes and the device of a run, as an accelerate.Accelerator: asked for before the loaders are built.

    Its `process_index` and `num_processes` are the loaders' `rank` and `world`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # An earlier run of this kernel may have stayed on the CPU.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    return Accelerator(cpu=setup.cpu)


def batch_line(recipe: Recipe, setup: Setup, processes: int | None = None) -> str:
    """What one step of the optimizer sees, and how fast it goes."""
    processes = processes or setup.num_processes
    factors = f"{recipe.people} × {recipe.images} pictures" + f" × {processes} processes" * (processes > 1)
    factors += f" × {recipe.accumulate} batches" * (recipe.accumulate > 1)
    lr = recipe.lr * (processes if setup.scale_lr else 1)
    scaled = f" ({recipe.lr:g} × {processes} processes)" if setup.scale_lr and processes > 1 else ""
    total = recipe.people * recipe.images * processes * recipe.accumulate
    return f"a step sees {factors} = {total}, at a learning rate of up to {lr:g}{scaled}"


def train(
    model: nn.Module,
    loader: DataLoader[Batch],
    evaluate: Evaluate,
    run: RunFolder,
    recipe: Recipe,
    setup: Setup,
    *,
    accelerator: Any,
    score: str,
    stamp: Mapping[str, Any],
    about: Mapping[str, Any],
    augment: Augmentation | None = None,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train `model` on `loader` by `recipe` into the folder of `run`; the model ends with the best weights.

    `loader` gives Batches whose pids are class labels, and its `sampler.set_epoch(epoch)` decides their order.
    `evaluate(model)` gives scores by name, is called on every process, every `recipe.eval_every` epochs and after the
    last, and gives the same on each; the weights of the epoch with the highest `score` are kept, the earlier of equals.
    `stamp` is what a checkpoint must agree on to be gone on with, beside model and recipe; `about` is for model.json.
    `augment` is what is done to a batch on the device, by default `recipe.augment` alone.

    Returns one dict an epoch, as in metrics.jsonl; epoch 0 is the untrained network, with its scores alone. A run that
    was interrupted goes on, a finished one is loaded. `on_epoch(history)` is called after each epoch. With
    `recipe.patience` training may end early; then the last row says so under "stopped". `setup.scale_lr` multiplies the
    rate by the number of processes (Goyal et al.: "Accurate, Large Minibatch SGD", 2017, arXiv 1706.02677).

    Raises ValueError where the run folder was made by another model, data set or recipe; FloatingPointError where loss
    or gradient is no longer a number, after writing the batch to bad_batch.safetensors and bad_batch.json; OSError for
    unreadable pictures, a full disk, and a run folder in which another process trains; RuntimeError for a loader
    process that was killed. The last checkpoint stays whole.
    """
    world, main = accelerator.num_processes, accelerator.is_main_process
    recipe = replace(recipe, lr=recipe.lr * world) if setup.scale_lr else recipe
    if setup.sync_bn and world > 1:
        if accelerator.device.type != "cuda":
            raise ValueError("sync_bn needs GPUs, torch has it for nothing else: set sync_bn=False")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    augment = augment or build_augmentation(recipe.augment)
    criterion = Criterion(recipe, model)  # refuses what recipe and model cannot do together
    # A run may go on in another number of processes where these see as many people a step.
    stamp = {"model": model.name, "input_size": model.input_size, **stamp, **asdict(recipe)}
    stamp |= {"people": recipe.people * world, "sync_bn": setup.sync_bn}
    stamp = json.loads(json.dumps(stamp))  # plain values, which compare after a round trip
    with loader_errors(), run.lock() if main else nullcontext():
        if main:
            run.begin()
        accelerator.wait_for_everyone()
        state = _load_checkpoint(run.path / "last.pt", stamp)
        _agree(run, state)

        # Channels last: convolutions are half as fast again, on CPUs and in bfloat16.
        model.to(accelerator.device, memory_format=torch.channels_last)
        criterion.to(accelerator.device)
        if world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)
        optimizer = build_optimizer(model, recipe)
        average = Average(model, recipe.ema) if recipe.ema else None
        kept = average.model if average else model  # whose weights are evaluated and kept
        parts = {"model": model, "optimizer": optimizer, "criterion": criterion}
        parts |= {"average": average} if average else {}
        if state:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            history = state["history"]
        else:
            history = [{"epoch": 0, **_timed(evaluate, kept)}]
        epoch_of = _Epochs(model, loader, criterion, optimizer, augment, recipe, setup, accelerator, average, run)
        with closing(_Record(run, setup, history)) if main else nullcontext() as recording:
            for epoch in range(len(history), recipe.epochs + 1):
                if "stopped" in history[-1]:
                    break
                row = {"epoch": epoch, **epoch_of(epoch)}
                if epoch % recipe.eval_every == 0 or epoch == recipe.epochs:
                    row |= _timed(evaluate, kept)
                history.append(row)
                if said := _out_of_patience(history, recipe, score):
                    row["stopped"] = said
                if recording:
                    if score in row and best_row(history, score) is row:
                        record.save_model(run, kept, epoch=epoch, **about)
                    state = {name: part.state_dict() for name, part in parts.items()}
                    recording(history, {"stamp": stamp, "history": history} | state)
                    if on_epoch:
                        on_epoch(history)
        accelerator.wait_for_everyone()
        record.load_weights(run, model)
        return history


class _Record:
    """What the first process writes after each epoch: the checkpoint, then the metrics."""

    def __init__(self, run: RunFolder, setup: Setup, history: History) -> None:
        self.run, self.keep_every, self.board = run, setup.keep_every, None
        run.write_metrics(history)
        self._keep(history[-1]["epoch"])  # where a kill came between
        if setup.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("tensorboard=True needs the package of that name: install it") from error
            folder = run.path / "tensorboard"
            shutil.rmtree(folder, ignore_errors=True)  # all of it is written again, from what the metrics say
            self.board = SummaryWriter(str(folder))
            for row in history:
                self._plot(row)

    def __call__(self, history: History, state: dict[str, Any]) -> None:
        checkpoint = self.run.path / "last.pt"
        # Through a Python file: torch's own writer would hide that the disk is full.
        with whole_file(checkpoint) as part, part.open("wb") as file:
            torch.save(state, file)
        self._keep(history[-1]["epoch"])
        self.run.write_metrics(history)
        if self.board:
            self._plot(history[-1])

    def close(self) -> None:
        if self.board:
            self.board.close()

    def _keep(self, epoch: int) -> None:
        kept = self.run.path / f"epoch-{epoch:04}.pt"
        if self.keep_every and epoch and epoch % self.keep_every == 0 and not kept.exists():
            os.link(self.run.path / "last.pt", kept)  # which is replaced later, never written into

    def _plot(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "epoch":
                self.board.add_scalar(name, value, row["epoch"])
        self.board.flush()


def _agree(run: RunFolder, state: dict[str, Any] | None) -> None:
    """All processes must go on from the same epoch. Raises ValueError where they do not see the same folder."""
    if dist.is_initialized():
        at: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(at, len(state["history"]) if state else 0)
        if len(set(at)) > 1:
            raise ValueError(
                f"the processes of this run do not see the same {run.path}: put it on a disk that all computers share"
            )


def best_row(history: History, score: str) -> dict[str, Any]:
    """The evaluated epoch with the highest `score`, the earlier of equals; the untrained network is not one."""
    return max((row for row in history[1:] if score in row), key=lambda row: row[score])


def _timed(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    start = time.perf_counter()
    return evaluate(model) | {"eval_seconds": round(time.perf_counter() - start, 3)}


def _out_of_patience(history: History, recipe: Recipe, score: str) -> str:
    scores = [row[score] for row in history[1:] if score in row]
    since = len(scores) - 1 - scores.index(max(scores)) if scores else 0
    if not 0 < recipe.patience <= since or score not in history[-1] or history[-1]["epoch"] == recipe.epochs:
        return ""
    best = best_row(history, score)
    return f"no better {score} than {best[score]:.1%} of epoch {best['epoch']} in {since} evaluations"


class Average:
    """A running mean of a model's weights: each step takes `1 - decay` of the new ones.

    The first steps take more of them, 1 - (1 + n) / (10 + n) at step n, or a short run would be judged by its random
    beginning (as TensorFlow's ExponentialMovingAverage has it). Running statistics are averaged alike.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = copy.deepcopy(model).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        mine, new = (list(m.state_dict(keep_vars=True).values()) for m in (self.model, model))
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        floats = [i for i, tensor in enumerate(mine) if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[i] for i in floats], [new[i] for i in floats], share)
        for a, b in zip(mine, new, strict=True):
            if not a.is_floating_point():
                a.copy_(b)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])


class _Epochs:
    """`epoch_of(3)` trains epoch 3 and gives its row of metrics."""

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader[Batch],
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        augment: Augmentation,
        recipe: Recipe,
        setup: Setup,
        accelerator: Any,
        average: Average | None,
        run: RunFolder,
    ) -> None:
        self.model, self.loader, self.criterion, self.optimizer = model, loader, criterion, optimizer
        self.augment, self.recipe, self.average, self.run = augment, recipe, average, run
        self.device, self.rank, self.world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.bfloat16 = setup.bfloat16
        if self.bfloat16 is None:
            self.bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.net = _compiled(model, self.device) if setup.compile else model

    def __call__(self, epoch: int) -> dict[str, float]:
        recipe, steps = self.recipe, len(self.loader)
        sums: dict[str, Tensor] = {}
        begin_epoch(self.model.train(), recipe, epoch)
        self.criterion.epoch = epoch
        self.loader.sampler.set_epoch(epoch)
        clock, shown, updates = _Clock(), 0, 0
        gradient = last = None  # its length, on its way from the device, and the batch that gave it
        with seeded(recipe.seed):  # each step begins anew: any of them can be repeated alone
            for step, batch in enumerate(clock.waiting(self.loader)):
                group = step // recipe.accumulate * recipe.accumulate  # the step in which this update began
                if step == group:
                    rate = recipe.lr * set_rate(self.optimizer, recipe, epoch - 1 + step / steps)
                seen = _Seen(batch, self._images(batch, epoch, step), epoch, step)
                with _unrepeatable(self.run) if (epoch, step, self.rank) == (1, 0, 0) else nullcontext():
                    loss, parts = self._loss(seen)
                    # A GPU is asked for a number only when it already has the next work to do, so it never waits: for
                    # the loss during the backward pass, for the gradient during the next batch's forward pass.
                    number = _soon(self._mean(loss))
                    if gradient and not math.isfinite(gradient()):
                        self._refuse_gradient(last)
                    if step == group:
                        self.optimizer.zero_grad()
                    (loss / min(recipe.accumulate, steps - group)).backward()
                if not math.isfinite(number()):
                    self._refuse_loss(seen, number(), parts)
                gradient = None
                if step + 1 == min(group + recipe.accumulate, steps):
                    parts |= {"gradient_norm": self._update()}
                    gradient, last = _soon(parts["gradient_norm"]), seen
                    updates += 1
                shown += len(batch.pids)
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0) + value  # stays on the device
        if not math.isfinite(gradient()):
            self._refuse_gradient(last)
        if self.world > 1:
            _average([b for n, b in self.model.named_buffers() if n.endswith(("running_mean", "running_var"))])
        counts = {"gradient_norm": updates}
        means = torch.stack([value.float() / counts.get(name, steps) for name, value in sums.items()])
        row = dict(zip(sums, self._mean(means).tolist(), strict=True)) | {"lr": rate}
        return row | clock.row(shown * self.world) | {"memory_mib": _memory(self.device)}

    def _images(self, batch: Batch, epoch: int, step: int) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return self.augment(images, torch_generator_for(self.recipe.seed, "augment", epoch, step, self.rank))

    def _outputs(self, net: nn.Module, seen: "_Seen") -> Any:
        """What the net says of one batch of this process, with the same dropout each time."""
        keys = (seen.epoch, seen.step, self.rank)
        seed = torch_generator_for(self.recipe.seed, "dropout", *keys).initial_seed()
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
        cameras = seen.batch.cameras.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return net(seen.images, cameras)

    def _loss(self, seen: "_Seen") -> tuple[Tensor, dict[str, Tensor]]:
        outputs, labels = self._outputs(self.net, seen), seen.batch.pids.to(self.device, non_blocking=True)
        accuracy = (outputs.logits[0].argmax(1) == labels).float().mean() if outputs.logits else None
        if self.world > 1:
            # Of all processes, so that a triplet is as hard as in one batch. What a loss takes the mean of over
            # pictures (maps) need not be: the mean of the gradients is the same.
            logits, embeddings = (
                [_Gathered.apply(x.float()) for x in xs] for xs in (outputs.logits, outputs.embeddings)
            )
            outputs, labels = outputs._replace(logits=logits, embeddings=embeddings), _Gathered.apply(labels)
        loss, parts = self.criterion(outputs, labels)
        parts = parts if len(parts) > 1 else {}  # a single part is the loss itself
        return loss, parts | {"loss": loss.detach()} | ({} if accuracy is None else {"accuracy": accuracy})

    def _update(self) -> Tensor:
        """One step of the optimizer; gives the length of the gradient before it was clipped."""
        moved = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in moved]
        if self.world > 1:
            _average(gradients)
        norm = nn.utils.get_total_norm(gradients)
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(moved, self.recipe.clip, norm)
        self.optimizer.step()
        self.criterion.update()
        if self.average:
            self.average.update(self.model)
        return norm

    def _mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        if self.world == 1:
            return value.detach()
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / self.world

    def _refuse_loss(self, seen: "_Seen", value: float, parts: dict[str, Tensor]) -> None:
        """The optimizer has not moved yet, so that the same batch gives the same again."""
        layer = self._first_layer(seen)
        layers: list[Any] = [layer]
        if self.world > 1:
            layers = [None] * self.world
            dist.all_gather_object(layers, layer)
        rank = next((rank for rank, layer in enumerate(layers) if layer), 0)
        wrong = ", ".join(name for name, part in parts.items() if name != "loss" and not part.isfinite()) or "the loss"
        said = f"first from the layer {layers[rank]}" if layers[rank] else f"from {wrong} itself, no layer before it"
        self._refuse(seen, rank, f"the loss is {value}, {said}", {"layer": layers[rank]})

    def _refuse_gradient(self, seen: "_Seen") -> None:
        bad = [name for name, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        # Gradients come from the loss backwards: the last of the bad ones came first.
        said = f"the loss is a number, its gradient is not: first that of {bad[-1]}, {len(bad)} in all"
        self._refuse(seen, 0, said, {"layer": bad[-1].rpartition(".")[0], "gradients": bad})

    def _refuse(self, seen: "_Seen", rank: int, said: str, about: dict[str, Any]) -> None:
        epoch, step = seen.epoch, seen.step
        if self.rank == rank:
            samples = getattr(self.loader.dataset, "samples", None)
            at = seen.batch.indices.tolist()
            paths = [str(samples[i].path) for i in at] if samples else []
            drawn = {"seed": self.recipe.seed, "epoch": epoch, "step": step, "rank": rank}
            labels = {"labels": seen.batch.pids.tolist(), "camids": seen.batch.camids.tolist()}
            about = {"said": said, **about, "drawn_from": drawn, "paths": paths, **labels}
            record.write_bad_batch(self.run, seen.images, about)
        raise FloatingPointError(
            f"batch {step + 1} of epoch {epoch}: {said}; lower the learning rate (lr={self.recipe.lr:g}), or look at "
            f"bad_batch.json and its pictures in {self.run.path}; the checkpoint of the epoch before is kept"
        )

    @torch.no_grad()
    def _first_layer(self, seen: "_Seen") -> str:
        """The name of the first module whose output is no number, and whether its weights are; empty if all are."""
        found: list[str] = []

        def look(module: nn.Module, given: Any, output: Any) -> None:
            if not found and any(t.is_floating_point() and not t.isfinite().all() for t in _tensors(output)):
                state = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                broken = any(t.is_floating_point() and not t.isfinite().all() for t in state)
                found.append(names[module] + " (its weights are no numbers)" * broken)

        names = {module: name or type(module).__name__ for name, module in self.model.named_modules()}
        hooks = [module.register_forward_hook(look) for module in names]
        try:
            self._outputs(self.model, seen)
        finally:
            for hook in hooks:
                hook.remove()
        return "".join(found)


@dataclass
class _Seen:
    """A batch, its pictures as the net was given them, and when."""

    batch: Batch
    images: Tensor
    epoch: int
    step: int


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _soon(value: Tensor) -> Callable[[], float]:
    """A number that is on its way from the device: the call waits for it, not for what the device was asked later."""
    value = value.detach()
    if value.device.type != "cuda":
        return value.item
    number, done = value.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def wait() -> float:
        done.synchronize()
        return number.item()

    return wait


class _Gathered(torch.autograd.Function):
    """Rows (B, …) of all processes, (world · B, …), in the order of ranks; gradients go back to where they came from.

    Every process computes the same loss of them and sends its gradient, so that a row's own process gets the sum: their
    mean over processes is then the gradient of that one loss.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def _average(tensors: list[Tensor], size: int = 1 << 24) -> None:
    """Give each tensor its mean over all processes, some 2^24 numbers in one message.

    Called when all gradients are there, rather than by hooks as they come: so parts of a net may be frozen for some
    epochs, and losses may leave a branch out.
    """
    groups: dict[Any, list[list[Tensor]]] = {}
    for tensor in tensors:
        of_kind = groups.setdefault((tensor.dtype, tensor.device), [[]])
        if sum(t.numel() for t in of_kind[-1]) >= size:
            of_kind.append([])
        of_kind[-1].append(tensor)
    sent = []
    for group in (group for of_kind in groups.values() for group in of_kind):
        flat = torch.cat([tensor.flatten() for tensor in group])
        sent.append((group, flat, dist.all_reduce(flat, async_op=True)))
    for group, flat, work in sent:
        work.wait()
        flat /= dist.get_world_size()
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """Raises ValueError where torch.compile finds no compiler."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch wraps what its back end says in many kinds
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"compile=True needs {needs}: install it, or set compile=False ({said})") from error
    return torch.compile(model)


@contextmanager
def _unrepeatable(run: RunFolder) -> Iterator[None]:
    """Write into environment.json which operations of the block may differ from one time to the next, as torch says."""
    import re
    import warnings

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


class _Clock:
    """How long an epoch took, and which share of it was spent waiting for the loader."""

    def __init__(self) -> None:
        self.start, self.waited = time.perf_counter(), 0.0

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each made while the one before is in use, even where there is no loader process."""
        source = iter(batches)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(next, source, None)
            while True:
                before = time.perf_counter()
                batch = coming.result()
                self.waited += time.perf_counter() - before
                if batch is None:
                    return
                coming = ahead.submit(next, source, None)
                yield batch

    def row(self, images: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        return {
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1),
            "loading": round(self.waited / seconds, 4),
        }


def _memory(device: torch.device) -> float:
    """The most memory that this process has held, in MiB: the GPU's where there is one, else its own."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _load_checkpoint(path: Path, stamp: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_by = state["stamp"]
    except Exception as error:  # torch raises many kinds on a file that is not a checkpoint
        raise ValueError(f"{path} is not a checkpoint of this workbook: move it away to start anew") from error
    wrong = [f"{key} {made_by.get(key)} → {value}" for key, value in stamp.items() if made_by.get(key) != value]
    if wrong:
        raise ValueError(
            f"{path.parent} holds a run with other settings ({'; '.join(wrong)}): "
            "choose another `run`, or resume='restart' to replace it"
        )
    return state
