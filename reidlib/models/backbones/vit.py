"""The vision transformer of TransReID, TransReID-SSL, PersonViT, PASS and CLIP-ReID: what differs is an argument.

Dosovitskiy et al.: "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929.
He, Luo, Wang, Wang, Li, Jiang: "TransReID: Transformer-based Object Re-Identification", ICCV 2021, arXiv 2102.04378.
Luo et al.: "Self-Supervised Pre-Training for Transformer-Based Person Re-Identification", arXiv 2111.12084.
Zhu et al.: "PASS: Part-Aware Self-Supervised Pre-Training for Person Re-Identification", ECCV 2022, arXiv 2203.03931.
Li, Sun, Li: "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text Labels",
AAAI 2023, arXiv 2211.13977.
The blocks are timm's, which is imported where it is used: it takes seconds.
"""

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidlib.models.layers import IBN


class ViT(nn.Module):
    """The trunk: images (B, 3, H, W) to tokens (B, prefix + h * w, width), class token first, before the last block.

    `last`, which is not run here, are the last block and the norm: a wiring may have several copies. With `project` it
    is run, and the trunk gives three vectors: the class token before it (B, width), after it (B, width), and the latter
    projected (B, project). Images of another size than `input_size` take resized position embeddings. `cam_layer` gives
    the patches' tokens as a map (B, width, h, w).

    Args:
        input_size: Height and width of the images.
        num_cameras: Cameras in training, each with an embedding of its own (SIE).
        width: Channels of the tokens; each head of the attention has 64.
        stride: Pixels between the patches of 16 x 16.
        conv_stem: TransReID-SSL's (ICS): three convolutions at half the size, the first two with IBN, then patches of
            8 x 8 of their map.
        part_tokens: PASS's tokens behind the class token. Class and part tokens then have position embeddings apart
            from the patches'. `prefix` is the number of tokens in front of the patches.
        project: Width of the projection of CLIP's transformer, which also has patches without bias, one norm more in
            front of the first block, QuickGELU, and 1e-5 in place of 1e-6 as its norms' epsilon.
        camera_weight: Times what the camera's embedding is added to the tokens; None for no embedding.
        camera_tokens: To which: "all", or "class" only, as CLIP-ReID.
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
        width: int = 768,
        stride: int = 16,
        conv_stem: bool = False,
        part_tokens: int = 0,
        project: int | None = None,
        camera_weight: float | None = None,
        camera_tokens: str = "all",
        unseen_camera: str = "mean",
        imagenet: str = "timm/vit_base_patch16_224.orig_in21k_ft_in1k",
        drop_path: float = 0.1,
        depth: int = 12,
    ) -> None:
        from timm.layers import QuickGELU
        from timm.models.vision_transformer import Block

        super().__init__()
        self.imagenet, self.added = imagenet, r"^sie_embed$|^part|^cls_pos$|^stem\."
        self.channels = (width, project) if project else width
        self.prefix, self.camera_tokens = 1 + part_tokens, camera_tokens
        self.stem = _conv_stem() if conv_stem else nn.Identity()
        self.patch = nn.Conv2d(64, width, 8, 8) if conv_stem else nn.Conv2d(3, width, 16, stride, bias=not project)
        self.grid = tuple((side - 16) // stride + 1 for side in input_size)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, width))

        self.cls_token = zeros(1, 1)
        numbers = range(1, self.prefix)  # PASS's names, which count from 1
        self.part_tokens = [f"part_token{number}" for number in numbers]
        self.part_positions = ["cls_pos", *(f"part{number}_pos" for number in numbers)] if part_tokens else []
        for name in (*self.part_tokens, *self.part_positions):
            self.register_parameter(name, zeros(1, 1))
        self.pos_embed = zeros(1, (not part_tokens) + self.grid[0] * self.grid[1])
        self.camera_weight, self.unseen_camera, self.warned = camera_weight, unseen_camera, False
        self.sie_embed = None if camera_weight is None else zeros(num_cameras or 0, 1)
        norm = partial(nn.LayerNorm, eps=1e-5 if project else 1e-6)
        block = partial(Block, width, width // 64, norm_layer=norm, act_layer=QuickGELU if project else nn.GELU)
        blocks = [block(qkv_bias=True, drop_path=drop_path * number / (depth - 1)) for number in range(depth)]
        self.norm_pre = norm(width) if project else nn.Identity()
        self.blocks = nn.Sequential(*blocks[:-1])
        self.cam_layer = nn.Identity()
        self.last = nn.Sequential(blocks[-1], norm(width))
        self.proj = nn.Parameter(torch.zeros(width, project)) if project else None
        for tensor in self.parameters(recurse=False):
            nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, x: Tensor, camids: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.patch(self.stem(x))  # (B, width, h, w)
        size, tokens = x.shape[2:], x.flatten(2).transpose(1, 2)  # (B, h * w, width)
        prefix = torch.cat([self.cls_token, *(getattr(self, name) for name in self.part_tokens)], dim=1)
        prefix = prefix.expand(x.shape[0], -1, -1)  # len() would fix the batch of an exported network
        tokens = torch.cat([prefix, tokens], dim=1) + self._positions(size)
        if self.sie_embed is not None:
            cameras = self.camera_weight * self._cameras(self.sie_embed, camids)
            if self.camera_tokens == "class":
                cameras = F.pad(cameras, (0, 0, 0, tokens.shape[1] - 1))
            tokens = tokens + cameras
        tokens = self.blocks(self.norm_pre(tokens))
        patches = self.cam_layer(tokens[:, self.prefix :].transpose(1, 2).unflatten(2, size))
        tokens = torch.cat([tokens[:, : self.prefix], patches.flatten(2).transpose(1, 2)], dim=1)
        if self.proj is None:
            return tokens
        whole = self.last(tokens)[:, 0]
        return tokens[:, 0], whole, whole @ self.proj

    @property
    def cam_blocks(self) -> list[nn.Module]:
        """All blocks but the last: of its output only the class token is used."""
        return list(self.blocks)

    def cam_map(self, activation: Tensor) -> Tensor | None:
        """A block's tokens as a map (B, width, h, w), for images of `input_size`; a map stays as it is."""
        patches = activation if activation.ndim == 4 else activation[:, self.prefix :].transpose(1, 2)
        return patches if patches.ndim == 4 else patches.unflatten(2, self.grid)

    def _positions(self, size: torch.Size) -> Tensor:
        table = torch.cat([*(getattr(self, name) for name in self.part_positions), self.pos_embed], dim=1)
        return table if tuple(size) == self.grid else _resized(table, self.grid, size, self.prefix)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """ImageNet's weights with position embeddings of this grid, without that of DeiT's second token."""
        embedding = state["pos_embed"]
        side = math.isqrt(embedding.shape[1] - 1)  # a square of patches, and one token or two
        embedding = torch.cat([embedding[:, :1], embedding[:, -side * side :]], dim=1)
        return state | {"pos_embed": _resized(embedding, (side, side), self.grid)}

    def fit_positions(self, table: Tensor, ratio: float | None = None) -> Tensor:
        """A pretraining's position embeddings for this grid; see `fit_positions`."""
        own = self.pos_embed.shape[1]
        return fit_positions(table, self.grid, prefix=own - math.prod(self.grid), ratio=ratio)

    def _cameras(self, embeddings: Tensor, camids: Tensor | None) -> Tensor:
        """The embedding of each camera, (B, 1, width), or one for all, (1, 1, width)."""
        count = len(embeddings)
        mean = embeddings.mean(0, keepdim=True) if count else embeddings.new_zeros(1, 1, embeddings.shape[2])
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


def fit_positions(table: Tensor, grid: tuple[int, int], *, prefix: int, ratio: float | None = None) -> Tensor:
    """Resize the position embeddings of a pretraining, bilinearly, as CLIP-ReID, TransReID-SSL and PASS do.

    Args:
        table: (prefix + n, C), with or without an axis of length 1 in front, for n patches.
        grid: Rows and columns of patches to resize to.
        prefix: Tokens before the patches, which are kept as they are.
        ratio: Rows divided by columns of the n patches (TransReID-SSL's PRETRAIN_HW_RATIO); None for 2, 1 or 3,
            whichever n allows: no n allows two of them.

    Returns:
        (1, prefix + rows * columns, C), float32; `table` itself where n patches fit no grid of such a ratio.
    """
    count = table.shape[-2] - prefix if table.ndim > 1 else 0
    for tall in (2, 1, 3) if ratio is None else (ratio,):
        columns = round(math.sqrt(max(count, 0) / tall))
        if columns and columns * round(columns * tall) == count:
            table = table.reshape(1, -1, table.shape[-1]).float()
            old = (count // columns, columns)
            return table if old == tuple(grid) else _resized(table, old, grid, prefix)
    return table


def _resized(table: Tensor, grid: tuple[int, int], size: Sequence[int], prefix: int = 1) -> Tensor:
    """Position embeddings (1, prefix + h * w, C), those of other tokens than patches first, of another grid."""
    patches = table[:, prefix:].transpose(1, 2).unflatten(2, grid)
    patches = F.interpolate(patches, tuple(size), mode="bilinear", align_corners=False)
    return torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)


def _conv_stem() -> nn.Sequential:
    """TransReID-SSL's: images (B, 3, H, W) to maps (B, 64, H / 2, W / 2)."""
    layers: list[nn.Module] = []
    for cin, kernel, stride, norm in ((3, 7, 2, IBN), (64, 3, 1, IBN), (64, 3, 1, nn.BatchNorm2d)):
        layers += [nn.Conv2d(cin, 64, kernel, stride, kernel // 2, bias=False), norm(64), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
