"""Heads: from a trunk's map to the feature that is ranked by, and to class scores in training."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.models.layers import ChannelSelfAttention, GeM, PositionSelfAttention, init_weights, stripes


class Outputs(NamedTuple):
    """What a network returns in training: one entry a branch, so that one loss serves every model.

    logits: (B, classes) each, empty where the model has no classifier; embeddings: (B, D) each, for metric losses;
    maps: (B, C, h, w) each, that a penalty on features looks at, of any number and most often none.
    """

    logits: list[Tensor]
    embeddings: list[Tensor]
    maps: Sequence[Tensor] = ()


class RetrievalModule(nn.Module):
    """A head or a whole network: `features` gives what is ranked by, `outputs` what losses see, each in either mode.

    Calling the module gives `outputs` in training mode and `features` in eval mode; the two methods are for whoever
    wants the other one. `feature_dim`, an attribute or a property, is the width of the features.
    """

    def features(self, *inputs: Any, **named: Any) -> Tensor:
        """Give the retrieval features, (B, feature_dim)."""
        raise NotImplementedError

    def outputs(self, *inputs: Any, **named: Any) -> Outputs:
        """Give class scores, embeddings and maps for the losses."""
        raise NotImplementedError

    def forward(self, *inputs: Any, **named: Any) -> Tensor | Outputs:
        return self.outputs(*inputs, **named) if self.training else self.features(*inputs, **named)


class CosineLinear(nn.Linear):
    """Scores are the cosines between the embedding and each class's weight, times `scale`.

    FastReID trains its "sbs" models with circle softmax (Sun et al.: "Circle Loss", CVPR 2020, arXiv 2002.10857). This
    is the part of it without labels; the margin belongs to the loss.
    """

    scale = 64.0

    def forward(self, x: Tensor) -> Tensor:
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, enabled=False):  # half precision could not tell a score of 63.8 from 64
            x = x.to(self.weight.dtype)
            return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


_POOLS = {
    "avg": partial(nn.AdaptiveAvgPool2d, 1),
    "max": partial(nn.AdaptiveMaxPool2d, 1),
    "gem": GeM,
    "gem3": partial(GeM, trainable=False),  # p stays 3, and is in no file
}


class Head(RetrievalModule):
    """Pooling, an optional embedding, an optional neck, a classifier.

    The neck is the batch norm before the classifier of Luo et al. ("Bag of Tricks", CVPR workshops 2019, arXiv
    1903.07071): its shift stays zero and the classifier has no bias.

    Args:
        channels: Of the map (B, channels, h, w) that the head is called with, or the vector (B, channels), which is not
            pooled.
        num_classes: Identities in training; None or 0 leaves the classifier out.
        pool: "avg", "max", "gem" with a learned exponent, or "gem3" with exponent 3.
        embed: Width of an embedding by linear layer, batch norm and ReLU; None for no embedding.
        reduce: Width of an embedding by a linear layer alone.
        dropout: Share of the embedding that training drops before the classifier.
        neck: "bn", or None.
        feats: What is ranked by: the vector "before" or "after" the neck.
        metric_feats: What metric losses see, likewise.
        classifier: "linear" or "cosine".
    """

    def __init__(
        self,
        channels: int,
        num_classes: int | None,
        *,
        pool: str = "avg",
        embed: int | None = None,
        reduce: int | None = None,
        dropout: float = 0.0,
        neck: str | None = None,
        feats: str = "after",
        metric_feats: str = "before",
        classifier: str = "linear",
    ) -> None:
        super().__init__()
        self.feature_dim = embed or reduce or channels
        self.pool = _POOLS[pool]()
        self.embedding: nn.Module | None = _embedding(channels, embed) if embed else None
        if reduce:
            self.embedding = nn.Linear(channels, reduce, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.neck = nn.BatchNorm1d(self.feature_dim) if neck == "bn" else None
        self.feats, self.metric_feats = feats, metric_feats
        linear = CosineLinear if classifier == "cosine" else nn.Linear
        self.classifier = linear(self.feature_dim, num_classes, bias=self.neck is None) if num_classes else None
        self.apply(init_weights)
        if self.neck is not None:
            self.neck.bias.requires_grad_(False)

    def embed(self, x: Any) -> Tensor:
        """Pool and embed a map (B, channels, h, w), or embed a vector, to (B, feature_dim): what the neck takes."""
        x = self.pool(x).flatten(1) if x.ndim == 4 else x  # (B, channels)
        return x if self.embedding is None else self.embedding(x)

    def features(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return x if self.neck is None or self.feats == "before" else self.neck(x)

    def outputs(self, x: Tensor) -> Outputs:
        before = self.embed(x)
        after = before if self.neck is None else self.neck(before)
        after = after if self.dropout is None else self.dropout(after)
        logits = [] if self.classifier is None else [self.classifier(after)]
        return Outputs(logits, [before if self.neck is not None and self.metric_feats == "before" else after])


class MidHead(Head):
    """Several maps, one after another block: all but the last are pooled and embedded together, the last only pooled.

    `mid_first` says which half of the feature that embedding is: torchreid's first since 2018-11, its last before.
    """

    embedding: nn.Sequential

    def __init__(
        self, channels: tuple[int, ...], num_classes: int | None, *, embed: int, mid_first: bool = True
    ) -> None:
        super().__init__(embed + channels[-1], num_classes)
        self.mid_first = mid_first
        self.embedding = _embedding(sum(channels[:-1]), embed)
        self.embedding.apply(init_weights)

    def embed(self, maps: tuple[Tensor, ...]) -> Tensor:
        *mid, last = (self.pool(x).flatten(1) for x in maps)
        mid = self.embedding(torch.cat(mid, dim=1))
        return torch.cat([mid, last] if self.mid_first else [last, mid], dim=1)


class MeanHead(Head):
    """MLFN's: a map, pooled, and the gates (B, channels, 1, 1), each embedded by a bare 1x1 convolution, norm and ReLU;
    the feature is their mean.
    """

    def __init__(self, channels: tuple[int, int], num_classes: int | None, *, embed: int) -> None:
        super().__init__(embed, num_classes)
        self.embeddings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, embed, 1, bias=False), nn.BatchNorm2d(embed), nn.ReLU(inplace=True))
            for c in channels
        )
        self.embeddings.apply(init_weights)

    def embed(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        x, gates = maps
        of_map, of_gates = self.embeddings
        return (of_map(self.pool(x)) + of_gates(gates)).flatten(1) / 2


class AttentionHead(RetrievalModule):
    """ABD-Net's: a map (B, channels, h, w), reduced to `width` channels and cut into `parts` stripes; each stripe goes
    through three streams (plain, channel attention, position attention), which the stripes share, and is pooled.

    The feature is the parts' in a row, (B, parts * width); in training each has its own classifier.
    """

    def __init__(
        self, channels: int, num_classes: int | None, *, width: int = 1024, parts: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.parts, self.feature_dim = parts, parts * width
        self.reduction = _conv_norm_relu(channels, width, 1)
        hidden = width // 2
        attentions = {
            "before": nn.Identity(),
            "cam": ChannelSelfAttention(),
            "pam": PositionSelfAttention(hidden),
        }
        self.streams = nn.ModuleDict(
            {
                name: nn.Sequential(
                    _conv_norm_relu(width, hidden, 3),
                    attention,
                    _conv_norm_relu(hidden, hidden, 3),
                    nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(hidden, width, 1)),
                )
                for name, attention in attentions.items()
            }
        )
        self.merge = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, width, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(parts if num_classes else 0))
        self.apply(init_weights)

    def _parts(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The vector (B, width) of each part, and the maps that a penalty looks at."""
        feats, maps = [], []
        for part in stripes(self.reduction(x), self.parts):
            streams = [stream(part) for stream in self.streams.values()]
            merged = self.merge(sum(streams))
            # A penalty is quadratic in the map: of the stripes' it is the mean that upstream takes.
            maps += [y * self.parts**-0.5 for y in (*streams, merged)]
            feats.append(self.pool(merged).flatten(1))
        return feats, maps

    def features(self, x: Tensor) -> Tensor:
        return torch.cat(self._parts(x)[0], dim=1)

    def outputs(self, x: Tensor) -> Outputs:
        feats, maps = self._parts(x)
        return Outputs([score(y) for score, y in zip(self.classifiers, feats, strict=False)], feats, maps)


class StripHead(RetrievalModule):
    """PCB's: a map (B, channels, h, w), averaged in each of `parts` rows; the feature is the parts' vectors, each of
    length 1, channel by channel: (B, channels * parts). Training reduces each part to `width` channels, by a layer that
    all share, and gives it a classifier of its own.

    Sun, Zheng, Yang, Tian, Wang: "Beyond Part Models", ECCV 2018, arXiv 1711.09349.
    """

    def __init__(self, channels: int, num_classes: int | None, *, parts: int, width: int = 256) -> None:
        super().__init__()
        self.feature_dim = channels * parts
        self.pool = nn.AdaptiveAvgPool2d((parts, 1))
        self.dropout = nn.Dropout(0.5)
        self.embedding = _conv_norm_relu(channels, width, 1)
        self.classifier = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(parts if num_classes else 0))
        self.apply(init_weights)

    def features(self, x: Tensor) -> Tensor:
        return F.normalize(self.pool(x), dim=1).flatten(1)

    def outputs(self, x: Tensor) -> Outputs:
        x = self.pool(x)  # (B, channels, parts, 1)
        parts = self.embedding(self.dropout(x)).flatten(2).unbind(2)
        logits = [score(part) for score, part in zip(self.classifier, parts, strict=False)]
        return Outputs(logits, [F.normalize(x, dim=1).flatten(1)])


class TokenHead(RetrievalModule):
    """PASS's: the class token and part tokens (B, tokens, channels), of which the parts count by their mean.

    Zhu et al.: "PASS: Part-Aware Self-Supervised Pre-Training for Person Re-Identification", ECCV 2022.

    Args:
        channels: Of a token.
        num_classes: Identities in training; None or 0 leaves the classifier out.
        join: "cat" puts the class token and the parts' mean side by side, "mean" takes the mean of the two.
        necks: Batch norms: one for each token, or 1 behind the joined tokens.
        feats: What is ranked by: tokens "before" or "after" their necks.
        normalise: Scale to length 1 what comes out of each neck.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int | None,
        *,
        join: str = "cat",
        necks: int = 4,
        feats: str = "before",
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.join, self.feats, self.normalise = join, feats, normalise
        self.feature_dim = 2 * channels if join == "cat" else channels
        self.necks = nn.ModuleList(nn.BatchNorm1d(self.feature_dim if necks == 1 else channels) for _ in range(necks))
        self.classifier = nn.Linear(self.feature_dim, num_classes, bias=False) if num_classes else None
        self.apply(init_weights)
        for neck in self.necks:
            neck.bias.requires_grad_(False)

    def _joined(self, tokens: Tensor) -> Tensor:
        whole, parts = tokens[:, 0], tokens[:, 1:].mean(1)
        return torch.cat([whole, parts], dim=1) if self.join == "cat" else (whole + parts) / 2

    def _after(self, tokens: Tensor) -> Tensor:
        if len(self.necks) == 1:
            x = self.necks[0](self._joined(tokens))
            return F.normalize(x, dim=1) if self.normalise else x
        x = torch.stack([neck(token) for neck, token in zip(self.necks, tokens.unbind(1), strict=True)], dim=1)
        return self._joined(F.normalize(x, dim=2) if self.normalise else x)

    def features(self, tokens: Tensor) -> Tensor:
        return self._joined(tokens) if self.feats == "before" else self._after(tokens)

    def outputs(self, tokens: Tensor) -> Outputs:
        after = self._after(tokens)
        logits = [] if self.classifier is None else [self.classifier(after)]
        return Outputs(logits, [self._joined(tokens) if self.feats == "before" else after])


class ScoreHead(RetrievalModule):
    """The feature is the scores of the classes: 1x1 convolution, ReLU, average pooling. ValueError without classes."""

    def __init__(self, channels: int, num_classes: int | None, *, dropout: float = 0.0) -> None:
        super().__init__()
        if not num_classes:
            raise ValueError("this model's feature is its class scores: give num_classes")
        self.feature_dim = num_classes
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Conv2d(channels, num_classes, 1)  # not "classifier": without it there is no feature
        self.pool = nn.AdaptiveAvgPool2d(1)

    def features(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.scores(self.dropout(x)))).flatten(1)

    def outputs(self, x: Tensor) -> Outputs:
        x = self.features(x)
        return Outputs([x], [x])


def _conv_norm_relu(cin: int, cout: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


def _embedding(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
