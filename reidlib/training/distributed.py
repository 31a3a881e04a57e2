"""Several processes that train one run: what they exchange, and how a notebook starts them.

Gradients are averaged by torch's DistributedDataParallel, rows of a batch are gathered by torch's differentiable
collectives, processes are started by torch's elastic launcher. Run as a module, this file is the launcher's process.
"""

import builtins
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reidlib.files import scratch_folder
from reidlib.run_folder import RunFolder
from reidlib.training import record

_STOP_WITH_STDIN = "REID_STOP_WITH_STDIN"  # set for processes whose standard input closes when the notebook is gone
_RAISED_AS = (ValueError, OSError, FloatingPointError)  # errors of a process that reach the notebook as what they are


def rank_and_world() -> tuple[int, int]:
    """Rank and world size from the environment; (0, 1) if not distributed."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# What processes exchange


def average_gradients(module: nn.Module) -> DistributedDataParallel:
    """Wrap `module` so that its gradients are averaged over all processes while the backward pass goes on.

    Made anew for each epoch. Within an epoch the same layers are trained by the same losses, so the graph is static,
    and DistributedDataParallel learns from the first backward pass which parameters get no gradient. A resumed epoch
    thus adds up in the same order as one that was not interrupted.

    Args:
        module: Returns the loss: a part of the model that no loss uses is then seen as unused.
    """
    # Running statistics are averaged after the epoch. The argument had another name before torch 2.13.
    names = inspect.signature(DistributedDataParallel).parameters
    keep_buffers = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    return DistributedDataParallel(module, static_graph=True, init_sync=False, **keep_buffers)


def gradients_averaged(module: nn.Module, average: bool) -> AbstractContextManager[None]:
    """Around forward and backward pass: without `average`, gradients add up in each process by itself."""
    skip = isinstance(module, DistributedDataParallel) and not average
    return module.no_sync() if skip else nullcontext()


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, with gradients.

    Every process computes the same loss of all rows, and the backward pass adds up what they send back for a row. That
    is `world` times the row's gradient; DistributedDataParallel's mean makes it the gradient of that one loss.

    Args:
        rows: (B, …), the same B in each process.

    Returns:
        (world · B, …), in the order of ranks.
    """
    from torch.distributed import _functional_collectives as collectives

    # What torch.distributed.nn.functional.all_gather gave way to; older releases of torch have it under another name.
    names = ("all_gather_single_autograd", "all_gather_tensor_autograd")
    gather = next(getattr(collectives, name) for name in names if hasattr(collectives, name))
    return gather(rows.contiguous(), 0, dist.group.WORLD).clone()  # waits for them, even if no loss uses them


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over all processes, detached."""
    value = value.detach()
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def average_running_statistics(models: Iterable[nn.Module]) -> None:
    """Give the batch norms of `models` the mean of their running statistics over all processes."""
    for model in models:
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(mean(buffer))


def broadcast_state(modules: Iterable[nn.Module]) -> None:
    """Give every process the weights and buffers that `modules` have in the first."""
    for module in modules:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def check_same_epoch(run: RunFolder, epochs: int) -> None:
    """Raise ValueError where the processes found checkpoints of different epochs: they see different folders."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, epochs)
    if len(set(found)) > 1:
        raise ValueError(
            f"the processes of this run do not see the same {run.path}: put it on a disk that all computers share"
        )


# Processes of a notebook


def stop_with_parent() -> None:
    """End this process when the notebook that started it is gone, in whatever way; nothing if none did."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    if _STOP_WITH_STDIN in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def run_processes(
    params: dict[str, Any], model: nn.Module, run: RunFolder, count: int, on_epoch: Any = None
) -> record.History:
    """Train a run in processes of this computer that end with this one.

    Args:
        params: What is trained, as `python -m reidlib.training` reads it; if empty, the run's params.json. It is these
            that count when a run is resumed, not what its params.json said when it began.
        model: Gets the best weights at the end.
        run: The run folder.
        count: How many processes.
        on_epoch: Called with the history as its epochs appear.

    Returns:
        One dict per epoch.

    Raises:
        ValueError, OSError, FloatingPointError: What a process raised, with its message.
        RuntimeError: A process was killed, or failed in another way.
    """
    with run.lock():
        run.begin()
    try:
        _run_processes(params or run.params, run, count, on_epoch)
    except BaseException as error:
        record.write_failure(run, error)  # the first process may have written only that it lost another
        raise
    record.load_weights(run, model)
    return run.metrics


def _run_processes(params: dict[str, Any], run: RunFolder, count: int, on_epoch: Any) -> None:
    environment = os.environ | {_STOP_WITH_STDIN: "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    shown = max(1, len(run.metrics))
    # Begun here already: a restart is not to happen twice.
    where = {"run": run.name if run.folder(run.name) == run.path else str(run.path), "resume": "auto"}
    with scratch_folder() as folder:
        file, logs = Path(folder, "params.json"), Path(folder, "logs")
        file.write_text(json.dumps(params | where), encoding="utf-8")
        logs.mkdir()
        command = [sys.executable, "-m", "reidlib.training.distributed", str(file), str(count), str(logs)]
        with (logs / "launcher.log").open("wb") as log:
            launcher = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            running = True
            while running:
                time.sleep(0.2)
                running = launcher.poll() is None
                history = run.metrics
                for rows in range(shown + 1, len(history) + 1):
                    if on_epoch:
                        on_epoch(history[:rows])
                shown = max(shown, len(history))
        finally:
            launcher.stdin.close()  # ends the processes
            if launcher.poll() is None:
                launcher.terminate()
            try:
                launcher.wait(20)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.wait()
        if launcher.returncode:
            failures = logs / "failures.json"
            if failures.exists():
                raise _first_failure(json.loads(failures.read_text()), count)
            raise RuntimeError(f"the processes could not be started: {_last_line(logs / 'launcher.log')}")


def _first_failure(failures: dict[str, tuple[int, str]], count: int) -> Exception:
    """The error to raise for the exit codes and messages of processes, by rank: of several, what went wrong first.

    A process that was killed makes others fail, and so does one that raised an error of the user's. The launcher ends
    the rest by SIGTERM.
    """
    errors = []
    for rank, (code, message) in failures.items():
        name, _, reason = message.partition(": ")
        kind = getattr(builtins, name, None)
        known = [base for base in _RAISED_AS if isinstance(kind, type) and issubclass(kind, base)]
        if code < 0:
            killed = f"process {rank} of {count} was killed by signal {-code} (9: out of memory?)"
            order = 3 if code == -signal.SIGTERM else 0
            errors.append((order, RuntimeError(f"{killed}; started again, the run resumes from its last epoch")))
        elif known:
            errors.append((1, known[0](reason)))
        else:
            errors.append((2, RuntimeError(f"process {rank} of {count} failed: {message}")))
    return min(errors, key=lambda error: error[0])[1]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it left no message").removeprefix("error: ")


def _launch(params: str, count: str, logs: str) -> int:
    """Start `count` processes that train by the file `params`; leave what made them fail in failures.json of `logs`."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(count),
        run_id="reidlib",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "reidlib.training", params)
    except ChildFailedError as error:
        failures = {}
        for rank, failure in error.failures.items():
            message = failure.message
            if isinstance(message, dict):  # as torch's `record` wrote it
                message = message["message"]
            elif failure.exitcode > 0:
                message = _last_line(next(Path(logs).glob(f"**/{failure.local_rank}/stderr.log"), Path(logs, "none")))
            failures[rank] = failure.exitcode, " ".join(message.split())
        with open(f"{logs}/failures.json", "w", encoding="utf-8") as file:
            json.dump(failures, file)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_launch(*sys.argv[1:]))
