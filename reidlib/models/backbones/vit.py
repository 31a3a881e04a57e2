"""ViT-B/16, with patches that may overlap and an embedding of the camera: TransReID's trunk.

Dosovitskiy et al.: "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929.
He, Luo, Wang, Wang, Li, Jiang: "TransReID: Transformer-based Object Re-Identification", ICCV 2021, arXiv 2102.04378.
The blocks are timm's, which is imported where it is used: it takes seconds.
"""

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ViT(nn.Module):
    """The trunk: images (B, 3, H, W) to tokens (B, 1 + h * w, 768), class token first, before the last block and norm.

    `last`, which is not run here, are these two: a wiring may have several copies. Images of another size than
    `input_size` take resized position embeddings. `cam_layer` gives the patches' tokens as a map (B, 768, h, w).

    Args:
        input_size: Height and width of the images.
        num_cameras: Cameras in training, each with an embedding of its own (SIE).
        stride: Pixels between the patches of 16 x 16.
        camera_weight: Times what the camera's embedding is added to every token; None for no embedding.
        unseen_camera: What is added without camids, or for one that is not below `num_cameras`: "mean" of all
            embeddings, with one warning, or "error": a ValueError.
        imagenet: The library's weights that the trunk may begin with; see `adapt`.
        drop_path: Probability that training leaves out the last block; it grows from 0 at the first.
        depth: Number of blocks.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        num_cameras: int | None,
        *,
        stride: int = 16,
        camera_weight: float | None = None,
        unseen_camera: str = "mean",
        imagenet: str = "timm/vit_base_patch16_224.orig_in21k_ft_in1k",
        drop_path: float = 0.1,
        depth: int = 12,
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.imagenet, self.added = imagenet, "^sie_embed$"
        self.channels = 768
        self.patch = nn.Conv2d(3, self.channels, 16, stride)
        self.grid = tuple((side - 16) // stride + 1 for side in input_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], self.channels))
        self.camera_weight, self.unseen_camera, self.warned = camera_weight, unseen_camera, False
        self.sie_embed = None
        if camera_weight is not None:
            self.sie_embed = nn.Parameter(torch.zeros(num_cameras or 0, 1, self.channels))
        norm = partial(nn.LayerNorm, eps=1e-6)
        blocks = [
            Block(self.channels, 12, qkv_bias=True, norm_layer=norm, drop_path=drop_path * number / (depth - 1))
            for number in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks[:-1])
        self.cam_layer = nn.Identity()
        self.last = nn.Sequential(blocks[-1], norm(self.channels))
        for tensor in (self.cls_token, self.pos_embed, self.sie_embed):
            if tensor is not None:
                nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, x: Tensor, camids: Tensor | None = None) -> Tensor:
        x = self.patch(x)  # (B, 768, h, w)
        size, tokens = x.shape[2:], x.flatten(2).transpose(1, 2)  # (B, h * w, 768)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self._positions(size)
        if self.sie_embed is not None:
            tokens = tokens + self.camera_weight * self._cameras(self.sie_embed, camids)
        tokens = self.blocks(tokens)
        patches = self.cam_layer(tokens[:, 1:].transpose(1, 2).unflatten(2, size))
        return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    @property
    def cam_blocks(self) -> list[nn.Module]:
        """All blocks but the last: of its output only the class token is used."""
        return list(self.blocks)

    def cam_map(self, activation: Tensor) -> Tensor | None:
        """A block's tokens as a map (B, 768, h, w), for images of `input_size`; a map stays as it is."""
        return activation if activation.ndim == 4 else activation[:, 1:].transpose(1, 2).unflatten(2, self.grid)

    def _positions(self, size: torch.Size) -> Tensor:
        return self.pos_embed if tuple(size) == self.grid else _resized(self.pos_embed, self.grid, size)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """ImageNet's weights with position embeddings of this grid, without that of DeiT's second token."""
        embedding = state["pos_embed"]
        side = math.isqrt(embedding.shape[1] - 1)  # a square of patches, and one token or two
        embedding = torch.cat([embedding[:, :1], embedding[:, -side * side :]], dim=1)
        return state | {"pos_embed": _resized(embedding, (side, side), self.grid)}

    def _cameras(self, embeddings: Tensor, camids: Tensor | None) -> Tensor:
        """The embedding of each camera, (B, 1, 768), or one for all, (1, 1, 768)."""
        count = len(embeddings)
        mean = embeddings.mean(0, keepdim=True) if count else embeddings.new_zeros(1, 1, self.channels)
        if camids is None or not count:
            self._unseen("no camids are given" if count else "the model was built without num_cameras")
            return mean
        camids = camids.to(mean.device)
        seen = (camids >= 0) & (camids < count)
        if not (torch.compiler.is_compiling() or seen.is_meta) and not seen.all():  # these two have no values to ask
            self._unseen(f"camids {sorted(set(camids[~seen].tolist()))} are not in 0 to {count - 1}")
        embedding = embeddings[camids.clamp(0, count - 1)]
        return torch.where(seen.view(-1, 1, 1), embedding, mean)

    def _unseen(self, reason: str) -> None:
        if self.unseen_camera == "error":
            raise ValueError(f"the camera embedding has nothing for these images: {reason}")
        if not self.warned and not torch.compiler.is_compiling():
            self.warned = True
            warnings.warn(f"{reason}: their features take the mean camera embedding", stacklevel=2)


def _resized(embedding: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Position embeddings (1, 1 + h * w, C), class token first, of another grid."""
    patches = embedding[:, 1:].transpose(1, 2).unflatten(2, grid)
    patches = F.interpolate(patches, tuple(size), mode="bilinear", align_corners=False)
    return torch.cat([embedding[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
