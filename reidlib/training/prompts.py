"""CLIP-ReID's two losses: prompts that are learned for each person, then images against the texts of these prompts.

Li, Sun, Li: "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text Labels",
AAAI 2023, arXiv 2211.13977. Reference: Syliz517/CLIP-ReID. Both compare a model's last embedding, which CLIP's image
encoders have beside the texts, without scaling it. Different here: CLIP's text encoder sees a text up to its end, as
nothing in front of a token attends to what follows; upstream fills up to 77 tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.paths import weights_file, weights_root
from reidlib.seeds import torch_generator_for
from reidlib.training.recipes import Recipe

if TYPE_CHECKING:
    from reidlib.models.wirings import ReIDModel

# "a photo of a X X X X person." between start and end, in CLIP's vocabulary; X are the vectors of the person.
BEFORE, AFTER, LEARNED = (49406, 320, 1125, 539, 320), (2533, 269, 49407), 4


class Prompts(nn.Module):
    """Learns four vectors for each person, so that CLIP's frozen text encoder gives a text near the person's images.

    `prompts(outputs, labels)` is the supervised contrastive loss of images with texts, and of texts with images, at
    temperature 1.

    Args:
        model: Its number of classes, and the width of its last embedding.
        recipe: Its `text_weights` is a file of CLIP with both towers, as OpenAI publishes it.

    Raises:
        ValueError: The file is not there, is of another layout, or of another width than the model's embedding.
    """

    def __init__(self, model: "ReIDModel", *, recipe: Recipe) -> None:
        super().__init__()
        from reidlib.models.backbones.clip_text import read_text_encoder

        encoder, tokens = read_text_encoder(_text_file(recipe.text_weights))
        width, wanted = encoder.projection.shape[1], model.output_shapes().embeddings[-1].shape[1]
        if width != wanted:
            raise ValueError(
                f"the texts of {recipe.text_weights} have {width} numbers, the last embedding of {model.name} has "
                f"{wanted}: set text_weights to the CLIP file that the model's own weights come from"
            )
        self.encoder = [encoder.eval().requires_grad_(False)]  # in a list: it is neither trained nor kept
        self.tokens: Tensor
        self.register_buffer("tokens", tokens[[*BEFORE, *AFTER]], persistent=False)
        shape = model.num_classes or 0, LEARNED, tokens.shape[1]
        self.vectors = nn.Parameter(0.02 * torch.randn(shape, generator=torch_generator_for(recipe.seed, "prompts")))

    def texts(self, labels: Tensor) -> Tensor:
        """What the encoder gives for the prompts of labels (B,): (B, width)."""
        own = self.vectors[labels]  # (B, 4, width of a token)
        before, after = self.tokens.expand(len(own), -1, -1).split([len(BEFORE), len(AFTER)], dim=1)
        return self.encoder[0].to(own.device)(torch.cat([before, own, after], dim=1))

    def forward(self, outputs: Any, labels: Tensor) -> Tensor:
        images, texts = outputs.embeddings[-1].float(), self.texts(labels)
        scores, same = images @ texts.T, labels[:, None] == labels  # (B, B)
        return _contrast(scores, same) + _contrast(scores.T, same)


def _contrast(scores: Tensor, same: Tensor) -> Tensor:
    """Each row's mean log probability of the columns that are of the same person, negated; mean over rows."""
    return -((scores.log_softmax(1) * same).sum(1) / same.sum(1)).mean()


class ImageToText(nn.Module):
    """Cross entropy of each image against the texts of all people, which a stage with `Prompts` has learned before.

    Args:
        model: Its number of classes, and the width of its last embedding.
        recipe: Its `smoothing`.
    """

    def __init__(self, model: "ReIDModel", *, recipe: Recipe) -> None:
        super().__init__()
        self.smoothing = recipe.smoothing
        width = model.output_shapes().embeddings[-1].shape[1]
        self.texts: Tensor
        self.register_buffer("texts", torch.zeros(model.num_classes or 0, width))

    def begin(self, before: Mapping[str, nn.Module]) -> None:
        """Compute the texts of all people.

        Raises:
            ValueError: The stage before did not learn any prompts.
        """
        prompts = before.get("prompts")
        if not isinstance(prompts, Prompts):
            raise ValueError("the loss image_to_text needs a stage with the loss prompts before it: see `stages`")
        people = torch.arange(len(self.texts), device=self.texts.device)
        self.texts.copy_(torch.cat([prompts.texts(some) for some in people.split(64)]))

    def forward(self, outputs: Any, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.embeddings[-1].float() @ self.texts.T, labels, label_smoothing=self.smoothing)


def _text_file(name: str) -> Path:
    """The file that `text_weights` names: a path, or a name in the folder of weights."""
    if found := weights_file(name):
        return found
    what = f"there is no {name}" if name else "none is named"
    raise ValueError(
        f"the loss prompts needs a file of CLIP with its text encoder, and {what}: save ViT-B-16.pt (RN50.pt for a "
        f"ResNet) of openai/CLIP in {weights_root()}, and set text_weights=ViT-B-16.pt"
    )
