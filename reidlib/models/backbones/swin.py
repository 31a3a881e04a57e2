"""Swin Transformer with SOLIDER's semantic controller.

Liu et al.: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, arXiv 2103.14030.
Chen et al.: "Beyond Appearance: a Semantic Controllable Self-Supervised Learning Framework for Human-Centric Visual
Tasks" (SOLIDER), CVPR 2023, arXiv 2303.17602.

Layers and initial weights are timm's, which is imported where it is used: it takes seconds. SOLIDER's code comes from
mmsegmentation, and differs from timm's in three things that its weights depend on: a map is padded before its windows
are shifted, not after; it is shifted even where one window covers it; and where four places are merged, the channel
counts before the place.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Swin(nn.Module):
    """The trunk: images (B, 3, H, W) to a map (B, channels, H / 32, W / 32), behind the last norm.

    Args:
        input_size: Height and width of the images; others are taken too.
        size: "tiny", "small" or "base".
        semantic_weight: How much of the semantics, from 0 (appearance) to 1, the three modulations let through. The
            project's configuration says 1; its published weights and its commands say 0.2.
        drop_path: Probability that training leaves out the last block; it grows from 0 at the first.
    """

    def __init__(
        self, input_size: tuple[int, int], size: str = "tiny", *, semantic_weight: float = 0.2, drop_path: float = 0.1
    ) -> None:
        from timm import create_model

        super().__init__()
        options = {"img_size": input_size, "always_partition": True, "strict_img_size": False}
        net: Any = create_model(f"swin_{size}_patch4_window7_224", num_classes=0, drop_path_rate=drop_path, **options)
        self.patch_embed = net.patch_embed
        self.merges = nn.ModuleList(_Merge(layer.downsample) for layer in net.layers[1:])
        self.semantics = nn.ModuleList(Semantics(layer.blocks[0].dim, semantic_weight) for layer in net.layers[1:])
        self.stages = nn.ModuleList(nn.Sequential(*map(_Block, layer.blocks)) for layer in net.layers)
        self.norm = net.norm
        self.cam_layer = nn.Identity()
        self.channels, self.imagenet = net.num_features, ""

    def forward(self, x: Tensor) -> Tensor:
        first, *stages = self.stages
        # As `self.patch_embed` itself, which refuses a side that four does not divide.
        x = first(self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1)))  # (B, H / 4, W / 4, C)
        for merge, semantics, stage in zip(self.merges, self.semantics, stages, strict=True):
            x = stage(semantics(merge(x)))
        return self.cam_layer(self.norm(x).permute(0, 3, 1, 2))


class Semantics(nn.Module):
    """Scales and shifts each channel by how much semantics is wanted; fine-tuning leaves it as it was pretrained."""

    def __init__(self, channels: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.scale, self.shift = nn.Linear(2, channels), nn.Linear(2, channels)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        semantics = self.scale.weight.new_tensor([self.weight, 1 - self.weight])
        return x * F.softplus(self.scale(semantics)) + self.shift(semantics)


class _Merge(nn.Module):
    """timm's merging of 2x2 places, with the order of `unfold`: channel, row, column."""

    def __init__(self, merge: Any) -> None:
        super().__init__()
        self.norm, self.reduction = merge.norm, merge.reduction

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, 2, w, 2, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 5, 2, 4).flatten(3)))


class _Block(nn.Module):
    """A block of timm's: attention within windows of a map (B, h, w, C), padded and then shifted."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj, self.drop_path1 = (
            block.norm1,
            block.attn.qkv,
            block.attn.proj,
            block.drop_path1,
        )
        self.relative_position_bias_table = block.attn.relative_position_bias_table
        self.register_buffer("index", block.attn.relative_position_index, persistent=False)
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window, self.shift = block.window_size[0], block.shift_size[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        x = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        size = x.shape[1:3]
        x = self._windows(x)  # (B, windows, places, C)
        count, heads = x.shape[1], self.relative_position_bias_table.shape[1]
        # Windows and heads as one axis, so that one table of biases serves all images without being copied.
        qkv = self.qkv(x).unflatten(3, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        query, key, value = qkv.unbind(0)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=self._biases(size, count).to(qkv.dtype))
        x = self.proj(x.unflatten(1, (count, heads)).transpose(2, 3).flatten(3))
        x = x.unflatten(2, (self.window, self.window)).unflatten(1, (size[0] // self.window, -1))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, h, w, C)
        x = x.roll((self.shift, self.shift), (1, 2)) if self.shift else x
        return x[:, :height, :width]

    def _windows(self, x: Tensor) -> Tensor:
        """A map (B, h, w, C) as windows (B, windows, places, C)."""
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _biases(self, size: torch.Size, count: int) -> Tensor:
        """Added to the attention: by relative position, and -100 between places that only the shift made neighbours;
        (1, windows * heads, places, places)."""
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]  # (1, heads, places, places)
        if not self.shift:
            return bias.expand(count, -1, -1, -1).flatten(0, 1)[None]
        rows, columns = (
            (torch.arange(side, device=bias.device) >= side - self.window).long()
            + (torch.arange(side, device=bias.device) >= side - self.shift).long()
            for side in size
        )
        regions = self._windows((3 * rows[:, None] + columns)[None, :, :, None])[0, :, :, 0]  # (windows, places)
        apart = regions[:, :, None] != regions[:, None]
        return (bias - 100.0 * apart[:, None].to(bias.dtype)).flatten(0, 1)[None]
