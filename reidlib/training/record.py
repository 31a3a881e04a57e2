"""What a training writes into its run folder beside the JSON: best weights, and the batch that it stopped at."""

from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reidlib.files import whole_file
from reidlib.run_folder import RunFolder

if TYPE_CHECKING:
    from reidlib.models import ReIDModel


def save_model(run: RunFolder, model: "ReIDModel", **about: Any) -> None:
    """Write the weights of `model`, and beside them in model.json `about` and what it takes to rebuild the model."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(run.path / "model.safetensors") as part:
        save_file(state, part)
    run.write_json("model.json", _describe(model) | about)


def load_weights(run: RunFolder, model: "ReIDModel") -> None:
    """Load the best weights of `run` into `model`.

    Raises:
        ValueError: They belong to another model, or are damaged.
    """
    about = run.read_json("model.json")
    if about.get("name") != model.name:
        raise ValueError(f"{run.path} holds a {about.get('name')}, not a {model.name}: choose another `run`")
    path = run.path / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold the weights that model.json describes: {reason}") from error


def write_bad_batch(run: RunFolder, images: torch.Tensor, about: dict[str, Any]) -> None:
    """Keep the batch that training stopped at.

    Args:
        run: The run folder.
        images: (B, 3, H, W) uint8, as the model saw them.
        about: What is known of the batch, for bad_batch.json.
    """
    with whole_file(run.path / "bad_batch.safetensors") as part:
        save_file({"images": images.cpu().contiguous()}, part)
    run.write_json("bad_batch.json", about)


def bad_batch(run: RunFolder) -> tuple[torch.Tensor, dict[str, Any]] | None:
    """Give what `write_bad_batch` kept; None if training did not stop at a batch."""
    path = run.path / "bad_batch.safetensors"
    return (load_file(path)["images"], run.read_json("bad_batch.json")) if path.is_file() else None


def _describe(model: "ReIDModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "num_classes": model.num_classes,
        "num_cameras": model.num_cameras,
        "input_size": list(model.input_size),
        "feature_dim": model.feature_dim,
        "mean": list(model.mean),
        "std": list(model.std),
        "init": model.init,
    }
