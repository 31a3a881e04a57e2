"""A start from ImageNet: torchvision's or timm's weights into the trunk of a model, before it is wired.

So a trunk that a model cuts or copies (MGN, ABD, TransReID) has them in every copy, as its project has it. Which are
meant stands at the trunk; the classes of ImageNet are dropped by the rules of `checkpoints.RENAMES["imagenet"]`, and
what the re-identification edits added (non-local blocks, attention, camera embeddings) stays as it was built.
"""

import re
from collections.abc import Callable

from torch import nn

from reidlib.models.backbones import library
from reidlib.models.checkpoints import RENAMES, CheckpointError, Layout, Report, match, rename
from reidlib.models.download import DownloadError


def with_imagenet(backbone: Callable[..., nn.Module], name: str, reports: list[Report]) -> Callable[..., nn.Module]:
    """The factory `backbone` of the model `name`, whose trunk begins with ImageNet's weights.

    Each trunk that is built appends its report. It raises ValueError where no library has weights for such a trunk,
    DownloadError where they cannot be fetched, CheckpointError where they do not fit.
    """

    def build(*args: object) -> nn.Module:
        trunk = backbone(*args)
        source = getattr(trunk, "imagenet", "")
        if not source:
            raise ValueError(
                f"neither torchvision nor timm has ImageNet weights for the trunk of {name}: name a file or a run, or "
                "begin with random weights"
            )
        reports.append(_load(trunk, source, name))
        return trunk

    return build


def _load(trunk: nn.Module, source: str, name: str) -> Report:
    try:
        state = library.imagenet_state(source, **getattr(trunk, "imagenet_options", {}))
    except Exception as error:  # each library and each kind of network has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(
            f"the ImageNet weights {source} for {name} cannot be had here ({reason}): fetch them where there is a "
            "network (the caches of torch and huggingface can be copied), or begin with random weights"
        ) from error
    state = trunk.adapt(state) if hasattr(trunk, "adapt") else state
    own, added = trunk.state_dict(), re.compile(getattr(trunk, "added", "(?!)"))
    layout = Layout(name, "imagenet", {key: tuple(own[key].shape) for key in own if not added.search(key)})
    targets = {key: key if key in own else rename(key, RENAMES["imagenet"]) for key in state}
    found = match(state, layout, targets)
    if found.problems:
        raise CheckpointError(f"{source} does not fit the trunk of {name}: {', '.join(found.problems[:8])}")
    trunk.load_state_dict(own | found.tensors)
    return found.report
