"""The training loop: epochs and steps, the same for a CPU, a GPU and several processes, with exact resume.

An epoch is a function of the weights, the optimizer and the seed: batches, augmentation and dropout are drawn from
(seed, epoch, step). A run that is killed at any moment therefore resumes from its last whole epoch and ends with the
same weights.

Several processes compute what one would with the batch of all: losses see the outputs of every process, gradients are
averaged, and the learning rate stays as it is unless `scale_lr` is set. Two things differ: each process draws its own
augmentation and dropout, and batch norms see the images of their process alone, unless `sync_bn` is set.

The loop does not know what is trained. The caller of `train` brings batches and an evaluation; see `tasks`. accelerate
chooses the device, sets up the processes and holds the trackers; the steps themselves are plain torch.
"""

import json
import math
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reidlib.data.loaders import Batch, loader_errors
from reidlib.data.transforms import Augmentation
from reidlib.models.heads import Outputs
from reidlib.run_folder import RunFolder, check_formats
from reidlib.seeds import seeded, torch_generator_for
from reidlib.training import distributed, record
from reidlib.training.diagnose import Diagnosis, TrainingBatch, note_nondeterministic
from reidlib.training.fixed import FixedFeatures
from reidlib.training.losses import Criterion
from reidlib.training.norms import split_norms
from reidlib.training.optim import AveragedWeights, begin_epoch, build_optimizer, set_rate
from reidlib.training.recipes import Recipe
from reidlib.training.record import History
from reidlib.training.refinement import MutualPair, set_classifiers
from reidlib.training.relabel import Relabel
from reidlib.training.settings import check_limits, setting

Evaluate = Callable[[nn.Module], dict[str, float]]
OnEpoch = Callable[[History], None]


@dataclass(frozen=True)
class Setup:
    """How a training is carried out. What it computes is up to the recipe and the number of processes.

    Raises:
        ValueError: On building, for a value that makes no sense, naming it.
    """

    workers: int = setting(0, "loader processes, for datasets too large to be kept in memory", may_change=True)
    cpu: bool = setting(False, "stay on the CPU even if there is a GPU", may_change=True)
    num_processes: int = setting(
        1, "processes on this computer, each with a GPU and a batch of its own", least=1, may_change=True
    )
    scale_lr: bool = setting(False, "multiply the learning rate by the number of processes")
    sync_bn: bool = setting(False, "batch norms over the batches of all processes; on GPUs")
    bfloat16: bool | None = setting(
        None, "compute in bfloat16, losses in float32; None: on GPUs that can", may_change=True
    )
    compile: bool = setting(False, "torch.compile: a slow first step, then faster ones", may_change=True)
    keep_every: int = setting(
        0, "epochs between checkpoints kept beside the last and the best; 0: none", may_change=True
    )
    trackers: str = setting(
        "", "comma-separated: tensorboard, wandb, mlflow, trackio, comet_ml …, as accelerate has them", may_change=True
    )

    formats: tuple[str, ...] = setting(("png",), "formats of saved figures: png, jpg, pdf, svg", may_change=True)

    def __post_init__(self) -> None:
        check_limits(self)
        check_formats(self.formats)


def begin(setup: Setup) -> Any:
    """Set up the device and the processes of a run, before its loaders are built.

    Returns:
        An accelerate.Accelerator; its `process_index` and `num_processes` are the loaders' `rank` and `world`.

    Raises:
        ValueError: A tracker is unknown or not installed.
    """
    record.tracker_names(setup.trackers)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # An earlier run of this kernel may have stayed on the CPU.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    # Only where it is told so does accelerate join processes on computers without a GPU.
    return Accelerator(cpu=setup.cpu or not torch.accelerator.is_available())


def batch_line(recipe: Recipe, setup: Setup, processes: int | None = None) -> str:
    """Say in one line how many images a step of the optimizer sees, and at what learning rate."""
    processes = processes or setup.num_processes
    factors = f"{recipe.people} × {recipe.images} images" + f" × {processes} processes" * (processes > 1)
    factors += f" × {recipe.accumulate} batches" * (recipe.accumulate > 1)
    lr = recipe.lr * (processes if setup.scale_lr else 1)
    scaled = f" ({recipe.lr:g} × {processes} processes)" if setup.scale_lr and processes > 1 else ""
    total = recipe.people * recipe.images * processes * recipe.accumulate
    return f"a step sees {factors} = {total}, at a learning rate of up to {lr:g}{scaled}"


def train(
    model: nn.Module,
    stages: Sequence["Stage"],
    evaluate: Evaluate,
    run: RunFolder,
    recipe: Recipe,
    setup: Setup,
    *,
    accelerator: Any,
    score: str,
    stamp: Mapping[str, Any],
    about: Mapping[str, Any],
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> History:
    """Train `model` into the folder of `run`. A run that was interrupted is resumed, a finished one is loaded.

    Args:
        model: Ends with the best weights.
        stages: One for each of `recipe.in_stages()`, with its batches. The checkpoint holds the present stage; the next
            begins with the model, and with what losses have learned, as they are at the end of it.
        evaluate: `evaluate(model)` returns scores by name. It is called on every process, in the last stage every
            `recipe.eval_every` epochs and after the last, and must return the same on each.
        run: The run folder. run.json says "training" from the first evaluation on, then "ended" or "failed".
        recipe: Losses, optimizer, schedule and batch. With `patience` training may end early; the last row of the
            history then says why under "stopped".
        setup: How it is carried out. `scale_lr` multiplies the learning rate by the number of processes (Goyal et al.:
            "Accurate, Large Minibatch SGD", 2017, arXiv 1706.02677).
        accelerator: From `begin(setup)`.
        score: The weights of the epoch with the highest of this score are kept, the earlier of equals.
        stamp: Values that must match for a checkpoint to be resumed, beside model and recipe.
        about: For model.json.
        on_epoch: `on_epoch(history)` is called after each epoch, on the first process.
        progress: Show a bar of the epoch that is being trained, with images per second and the time left.

    Returns:
        One dict per epoch, as in metrics.jsonl; epoch 0 is the untrained network, with its scores alone.

    Raises:
        ValueError: The run folder was made with another model, dataset or recipe.
        FloatingPointError: The loss or a gradient became NaN or infinite; the batch is in bad_batch.safetensors and
            bad_batch.json.
        OSError: An image cannot be read, the disk is full, or another process trains in this folder.
        RuntimeError: A loader process was killed. In all cases the last checkpoint stays whole.
    """
    world, main = accelerator.num_processes, accelerator.is_main_process
    if setup.scale_lr:
        recipe = replace(recipe, lr=recipe.lr * world)
        stages = [replace(stage, recipe=replace(stage.recipe, lr=stage.recipe.lr * world)) for stage in stages]
    if setup.sync_bn and world > 1:
        if accelerator.device.type != "cuda":
            raise ValueError("sync_bn needs GPUs, torch has it for nothing else: set sync_bn=False")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if recipe.trained == "losses":
        raise ValueError("the last stage trains the network: set trained='all', or trained='losses' in `stages` alone")
    criteria = [Criterion(stage.recipe, model) for stage in stages]  # refuse what recipe and model cannot do together
    ends = list(accumulate(stage.recipe.epochs for stage in stages))  # the last epoch of each
    net = MutualPair(model) if recipe.mutual else model  # what is trained; `model` is what is evaluated and kept
    if recipe.bn_group or recipe.domain_bn:
        if setup.sync_bn:
            raise ValueError("sync_bn and norms over parts of a batch exclude each other: set sync_bn=False")
        learned = criteria[-1].learned
        norms = [split_norms(module, recipe.bn_group, recipe.domain_bn) for module in (net, learned)]
        if recipe.domain_bn:
            learned["source_norms"] = nn.ModuleList([norm for found in norms for norm in found])
    stamp = {"model": model.name, "input_size": model.input_size, **stamp, **asdict(recipe)}
    # The number of processes may change where a step sees as many people as before.
    stamp |= {"people": recipe.people * world, "sync_bn": setup.sync_bn}
    stamp = json.loads(json.dumps(stamp))  # plain values, which compare after a round trip
    with run.lock() if main else nullcontext():
        if main:
            run.begin()
        accelerator.wait_for_everyone()
        checkpoint = record.load_checkpoint(run.path / "last.pt", stamp)
        history: History = checkpoint["history"] if checkpoint else []
        if world > 1:
            distributed.check_same_epoch(run, len(history))

        # Channels last: convolutions are half as fast again, on CPUs and in bfloat16.
        net.to(accelerator.device).to(memory_format=torch.channels_last)
        if world > 1:
            distributed.broadcast_state([net])
        if checkpoint:
            _note_stop(history, recipe, score)  # `patience` may have changed
        finished = bool(history) and (history[-1]["epoch"] >= recipe.epochs or "stopped" in history[-1])
        state = record.training_state(run, history, finished=finished) if main else nullcontext()
        with state, loader_errors():
            if not history:
                history.append({"epoch": 0, **_timed(evaluate, model)})
            begun = len(stages) if finished else bisect_left(ends, history[-1]["epoch"])
            with closing(_recorder(run, history, setup, accelerator, stamp)) if main else nullcontext() as recorder:
                for number in range(begun, len(stages)):
                    stage, criterion = stages[number], criteria[number].to(accelerator.device)
                    if not checkpoint:
                        criterion.begin(criteria[number - 1] if number else None)
                    if world > 1:
                        distributed.broadcast_state([criterion])
                    optimizer = build_optimizer(net, stage.recipe, criterion.learned)
                    moving = stage.recipe.ema and stage.recipe.trained == "all"
                    average = AveragedWeights(net, stage.recipe.ema) if moving else None
                    evaluated = average.module if average else net  # also what is kept
                    evaluated = evaluated.first if recipe.mutual else evaluated
                    parts: dict[str, Any] = {"model": net, "optimizer": optimizer, "criterion": criterion}
                    parts |= {"average": average} if average else {}
                    parts |= {"relabel": stage.relabel} if stage.relabel else {}
                    if checkpoint:
                        for name, part in parts.items():
                            part.load_state_dict(checkpoint[name])
                        checkpoint = None  # of this stage alone
                    trainer = Trainer(
                        model=net,
                        loader=stage.loader,
                        criterion=criterion,
                        optimizer=optimizer,
                        augment=stage.augment,
                        recipe=stage.recipe,
                        setup=setup,
                        accelerator=accelerator,
                        average=average,
                        run=run,
                        progress=progress and main,
                        relabel=stage.relabel,
                        first=ends[number] - stage.recipe.epochs,
                    )
                    with closing(trainer):
                        while history[-1]["epoch"] < ends[number] and "stopped" not in history[-1]:
                            epoch, last_stage = len(history), number == len(stages) - 1
                            row = {"epoch": epoch, **trainer.train_epoch(epoch)}
                            row |= {"stage": number + 1} if len(stages) > 1 else {}
                            if last_stage and (epoch % recipe.eval_every == 0 or epoch == recipe.epochs):
                                row |= _timed(evaluate, evaluated)
                            history.append(row)
                            _note_stop(history, recipe, score)
                            if recorder:
                                if record.chosen_row(history, score, recipe.keep) is row:
                                    record.save_model(run, evaluated, epoch=epoch, **about)
                                states = {name: part.state_dict() for name, part in parts.items()}
                                recorder(history, {"stamp": stamp} | states)
                                if on_epoch:
                                    on_epoch(history)
            accelerator.wait_for_everyone()
        record.load_weights(run, model)
        return history


def _recorder(
    run: RunFolder, history: History, setup: Setup, accelerator: Any, stamp: dict[str, Any]
) -> record.Recorder:
    settings = {name: value if isinstance(value, int | float | str) else str(value) for name, value in stamp.items()}
    trackers = record.tracker_names(setup.trackers)
    return record.Recorder(run, history, setup.keep_every, trackers, accelerator, settings)


def _note_stop(history: History, recipe: Recipe, score: str) -> None:
    """Say under "stopped" in the last row why `recipe.patience` ends training with it, if it does."""
    history[-1].pop("stopped", None)
    if stopped := record.out_of_patience(history, recipe, score):
        history[-1]["stopped"] = stopped


def _timed(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    start = time.perf_counter()
    return evaluate(model) | {"eval_seconds": round(time.perf_counter() - start, 3)}


def train_feats(net: Any, images: Tensor, cameras: Tensor) -> Tensor:
    """The features (B, D) that are ranked by, in training mode; of a user's network without them its embeddings."""
    if hasattr(net.network, "features"):
        return net.network.features(net.normalise(images), cameras)
    return torch.cat(net(images, cameras).embeddings, dim=1)


def of_tracklets(outputs: Outputs, frames: int) -> Outputs:
    """Scores and embeddings (B, ...) averaged over each run of `frames` rows: (B / frames, ...). Maps stay as they are.

    As torchreid trains on tracklets (its `pooling_method` "avg").
    """
    mean = {n: [x.unflatten(0, (-1, frames)).mean(1) for x in getattr(outputs, n)] for n in ("logits", "embeddings")}
    return outputs._replace(**mean)


class ImagesToLoss(nn.Module):
    """The model and its losses in one module, so that DistributedDataParallel sees which parameters the loss uses.

    Args:
        net: The model, or its compiled form.
        criterion: Only `learned` of it becomes a submodule: centers average their gradients themselves.
        world: The number of processes.
    """

    def __init__(self, net: nn.Module, criterion: Criterion, world: int, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.net = None if criterion.recipe.trained == "losses" else net
        self.learned, self.world = criterion.learned, world
        self.criterion, self.teacher = [criterion], [teacher]  # in lists: not parts of this module
        self.contrast = bool(criterion.recipe.contrast_weight)
        self.branches = list(getattr(net, "branches", {}).values()) or [slice(None)]

    def forward(
        self, images: Tensor, cameras: Tensor, labels: Tensor, agreement: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            images: (B, 3, H, W) uint8; for two networks (2 B, 3, H, W), a view for each; where losses alone are trained
                their features (B, D).
            cameras: (B,) int64.
            labels: (B,) int64.
            agreement: (B, parts) of `Relabel`.

        Returns:
            The loss (), and its value, its parts and the accuracy by name, detached.
        """
        (criterion,), (teacher,), taught = self.criterion, self.teacher, None
        if self.net is None:
            outputs = Outputs([], [images[:, columns] for columns in self.branches])
        elif self.contrast:
            outputs = Outputs([], [train_feats(self.net, images, cameras)])
        elif "parts" in self.learned:
            outputs = self.learned["parts"].outputs(self.net, images)
        else:
            outputs = self.net(images, cameras)
        if (frames := criterion.recipe.frames) > 1:
            outputs, labels = of_tracklets(outputs, frames), labels[::frames]
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(images, cameras)
        if criterion.classes:
            outputs, taught = (
                x and x._replace(logits=[y[:, : criterion.classes] for y in x.logits]) for x in (outputs, taught)
            )
        values = {"accuracy": (outputs.logits[0].argmax(1) == labels).float().mean()} if outputs.logits else {}
        if self.world > 1:
            # Of all processes, so that a triplet is as hard as in one batch. Maps need not be gathered: their loss is a
            # mean over images, and so is the mean of its gradients.
            gather = distributed.gather_rows
            outputs, taught = (
                x
                and x._replace(
                    **{name: [gather(y.float()) for y in getattr(x, name)] for name in ("logits", "embeddings")}
                )
                for x in (outputs, taught)
            )
            labels, agreement = gather(labels), agreement if agreement is None else gather(agreement)
        loss, parts = criterion(outputs, labels, taught, agreement)
        parts = parts if len(parts) > 1 else {}  # a single part is the loss itself
        return loss, parts | {"loss": loss.detach()} | values


@dataclass(frozen=True)
class Stage:
    """What `train` needs for a part of the training that has settings of its own.

    Attributes:
        recipe: Its settings: one of `in_stages()` of the whole recipe.
        loader: Gives Batches whose pids are class labels; its `sampler.set_epoch(epoch)` decides their order. Where the
            recipe trains losses alone, its dataset is a `FixedFeatures`.
        augment: What is done to a batch on the device.
        relabel: Called before each epoch: it sets the labels that batches are drawn by, the memory or the rows of the
            classifiers, and the row that each image has in place of its label.
    """

    recipe: Recipe
    loader: DataLoader[Batch]
    augment: Augmentation
    relabel: Relabel | None = None


@dataclass
class Trainer:
    """Trains one epoch after the other: `trainer.train_epoch(3)` returns the metrics of epoch 3."""

    model: nn.Module
    loader: Any  # a DataLoader of Batches whose sampler has `set_epoch`
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    augment: Augmentation
    recipe: Recipe
    setup: Setup
    accelerator: Any
    average: AveragedWeights | None
    run: RunFolder
    progress: bool = False
    relabel: Relabel | None = None
    first: int = 0  # epochs of the stages before
    bar: Any = None  # one for all epochs, so that a notebook shows one

    def __post_init__(self) -> None:
        self.device: torch.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.bfloat16 = self.setup.bfloat16
        if self.bfloat16 is None:
            self.bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        net = _compile(self.model, self.device) if self.setup.compile else self.model
        r = self.recipe
        soft = r.mutual or r.soft_cross_entropy or r.soft_triplet
        self.teacher = self.average.module if self.average and soft else None
        self.images_to_loss = ImagesToLoss(net, self.criterion, self.world, self.teacher)
        samples = getattr(self.loader.dataset, "samples", None)
        self.diagnosis = Diagnosis(self.model, self.recipe, self.run, samples, self.rank, self.world)

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train epoch `epoch`, counted from 1.

        A GPU is asked for a number only when it already has the next work to do, so it never waits: for the loss during
        the backward pass, for the norm of the gradients during the next batch's forward pass.

        Returns:
            The means of the loss, its parts, the accuracy (over batches) and the norm of the gradients (over updates),
            all over all processes; the last learning rate; and what the epoch took.
        """
        recipe, steps, of_stage = self.recipe, len(self.loader), epoch - self.first
        found = self._relabel(epoch)
        if isinstance(self.loader.dataset, FixedFeatures):
            self.loader.dataset.extract(self.model, self.device)
        begin_epoch(self.model.train(), recipe, of_stage)
        if self.teacher is not None:
            self.teacher.train()  # its norms see the batch, as those of the networks do
        if recipe.reset_optimizer:
            self.optimizer.state.clear()
        self.criterion.epoch = of_stage
        self.loader.sampler.set_epoch(epoch)
        images_to_loss = self.images_to_loss
        if self.world > 1:  # after layers were frozen
            images_to_loss = distributed.average_gradients(images_to_loss)
        clock, sums, updated = _Clock(), _Sums(), None
        # Closed at once where an error ends the epoch: torch would tell of killed loader processes later and elsewhere.
        batches = closing(clock.batches(self.loader))
        with seeded(recipe.seed), self._progress_bar(epoch) as show_progress, batches as loaded_batches:
            for step, loaded in enumerate(loaded_batches):
                first = step - step % recipe.accumulate  # batches first … last make one update of the weights
                last = min(first + recipe.accumulate, steps) - 1
                if step == first:
                    lr = recipe.lr * set_rate(self.optimizer, recipe, of_stage - 1 + step / steps)
                batch = self.prepare(loaded, epoch, step)
                noting = note_nondeterministic(self.run) if (epoch, step, self.rank) == (1, 0, 0) else nullcontext()
                # DistributedDataParallel must see whole backward passes before it may leave any out.
                with noting, distributed.gradients_averaged(images_to_loss, step == last or first == 0):
                    loss, values = self.forward(images_to_loss, batch)
                    loss_value = _copy_to_cpu(distributed.mean(loss))
                    self._check_update(updated)
                    if step == first:
                        self.optimizer.zero_grad()
                    (loss / (last - first + 1)).backward()
                self._check_loss(batch, loss_value(), values)
                updated = None
                if step == last:
                    norm = self.update()
                    sums.add({"gradient_norm": norm})
                    updated = batch, _copy_to_cpu(norm)
                sums.add(values)
                show_progress(len(loaded.pids) * self.world)
        self._check_update(updated)
        if self.world > 1:
            distributed.average_running_statistics(m for m in (self.model, self.average) if m is not None)
        return (
            sums.means()
            | found
            | {"lr": lr}
            | clock.row(clock.images * self.world)
            | {"memory_mib": _peak(self.device)}
        )

    def _relabel(self, epoch: int) -> dict[str, Any]:
        if self.relabel is None:
            return {}
        criterion, relabel = self.criterion, self.relabel
        parts: Any = criterion.learned["parts"] if self.recipe.parts else None
        found = relabel(self.model if self.teacher is None else self.teacher, parts)
        criterion.memory, criterion.source_rows = [relabel.memory] if relabel.memory else [], relabel.source_rows
        if self.recipe.clusters:
            criterion.classes = len(relabel.centers)
            for network in (self.model, self.average):
                if network is not None:
                    set_classifiers(network, relabel.centers)
            for head, centers in zip(parts or (), relabel.part_centers, strict=True):
                set_classifiers(head, centers)
        return found

    def prepare(self, loaded: Batch, epoch: int, step: int) -> TrainingBatch:
        """Move a batch to the device and augment its images there."""
        if loaded.images.ndim == 4:
            images = loaded.images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            key = ("augment", epoch, step, self.rank)
            views = [key, (*key, 1)] if self.recipe.mutual else [key]
            images = torch.cat([self.augment(images, torch_generator_for(self.recipe.seed, *view)) for view in views])
        else:  # features
            images = loaded.images.to(self.device)
        labels, cameras = (x.to(self.device, non_blocking=True) for x in (loaded.pids, loaded.cameras))
        if self.relabel:
            labels = self.relabel.rows[loaded.indices.to(self.device)]
        every = self.relabel.agreement if self.relabel else None
        agreement = None if every is None else every[loaded.indices.to(self.device)]
        return TrainingBatch(loaded, images, labels, cameras, epoch, step, agreement)

    def forward(self, images_to_loss: nn.Module, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch and, by name, its value, its parts and the accuracy, detached."""
        with self._repeatable(batch):
            return images_to_loss(batch.images, batch.cameras, batch.labels, batch.agreement)

    def update(self) -> Tensor:
        """Take one step of the optimizer; return the norm of all gradients before they were clipped."""
        trained = [p for p in self.images_to_loss.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(trained, self.recipe.clip, norm)
        self.optimizer.step()
        self.criterion.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    @contextmanager
    def _repeatable(self, batch: TrainingBatch) -> Iterator[None]:
        """Around a forward pass of `batch`: bfloat16 where it is used, and the same dropout each time."""
        keys = (batch.epoch, batch.step, self.rank)
        seed = torch_generator_for(self.recipe.seed, "dropout", *keys).initial_seed()
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def _check_loss(self, batch: TrainingBatch, loss: float, values: dict[str, Tensor]) -> None:
        def forward() -> None:
            if batch.images.ndim == 4:
                with self._repeatable(batch):
                    self.model(batch.images, batch.cameras)

        if not math.isfinite(loss):
            self.diagnosis.stop_at_loss(batch, loss, values, forward)

    def _check_update(self, updated: tuple[TrainingBatch, Callable[[], float]] | None) -> None:
        """Stop if the gradients of the latest update, which `zero_grad` has not yet cleared, were not finite."""
        if updated and not math.isfinite(updated[1]()):
            self.diagnosis.stop_at_gradient(updated[0])

    @contextmanager
    def _progress_bar(self, epoch: int) -> Iterator[Callable[[int], Any]]:
        """Give what is to be called with the number of images after each step."""
        if not self.progress:
            yield lambda images: None
            return
        from tqdm.auto import tqdm

        total = len(self.loader) * self.recipe.people * self.recipe.images * self.world
        total *= 2 if self.criterion.source_rows else 1
        self.bar = self.bar or tqdm(total=total, unit=" images", leave=False)
        self.bar.reset(total)
        of_stage = f" of a stage of {self.recipe.epochs}" if self.first else f" of {self.recipe.epochs}"
        self.bar.set_description(f"epoch {epoch - self.first}{of_stage}")
        yield self.bar.update
        self.bar.clear()  # room for what is printed between two epochs

    def close(self) -> None:
        """Remove the progress bar."""
        if self.bar is not None:
            self.bar.close()


def _copy_to_cpu(value: Tensor) -> Callable[[], float]:
    """Start to copy a number from the device. The call waits for it, not for what the device was asked later."""
    value = value.detach()
    if value.device.type != "cuda":
        return value.item
    number, done = value.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def wait() -> float:
        done.synchronize()
        return number.item()

    return wait


def _compile(model: nn.Module, device: torch.device) -> Any:
    """Raises ValueError where torch.compile finds no compiler."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch wraps what its back end raises in many kinds
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"compile=True needs {needs}: install it, or set compile=False ({reason})") from error
    return torch.compile(model)


class _Sums:
    """Sums of values by name, which stay on the device until their means are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The means, over all processes."""
        means = torch.stack([value.float() / self.counts[name] for name, value in self.sums.items()])
        return dict(zip(self.sums, distributed.mean(means).tolist(), strict=True))


class _Clock:
    """How long an epoch took, and which share of it was spent waiting for the loader."""

    def __init__(self) -> None:
        self.start, self.waited, self.images = time.perf_counter(), 0.0, 0

    def batches(self, loader: Iterable[Batch]) -> Generator[Batch, None, None]:
        """The batches, each loaded while the one before is in use, even where there is no loader process."""
        source = iter(loader)
        try:
            with ThreadPoolExecutor(1) as ahead:
                coming = ahead.submit(next, source, None)
                while True:
                    before = time.perf_counter()
                    try:
                        batch = coming.result()
                    except (ConnectionError, EOFError) as error:
                        raise RuntimeError("a DataLoader worker closed its connection") from error
                    self.waited += time.perf_counter() - before
                    if batch is None:
                        return
                    coming = ahead.submit(next, source, None)
                    self.images += len(batch.pids)
                    yield batch
        finally:
            # A traceback may keep `source`. Until its processes are taken off torch's list, a signal of any child that
            # ends could raise the error of a killed one again, wherever the main thread is then.
            with suppress(RuntimeError):
                getattr(source, "_shutdown_workers", lambda: None)()

    def row(self, images: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        return {
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1),
            "loading": round(self.waited / seconds, 4),
        }


def _peak(device: torch.device) -> float:
    """The most memory that this process has held, in MiB: of the GPU where there is one, else of the computer."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)
