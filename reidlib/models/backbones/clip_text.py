"""CLIP's text encoder, from files of OpenAI's layout: embedded tokens to one vector for each text.

Radford et al.: "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020.
The blocks are timm's, which is imported where it is used: it takes seconds.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from reidlib.models.checkpoints import CLIP_BLOCK, read_state_dict, rename

_RULES = (
    (r"^positional_embedding$", "positions"),
    (r"^text_projection$", "projection"),
    (r"^ln_final\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    *CLIP_BLOCK,
)
_OF_BOTH = ("logit_scale", "input_resolution", "context_length", "vocab_size")  # of both towers: nothing to load


class TextEncoder(nn.Module):
    """Tokens (B, L, width), embedded and with the token of the text's end as the last, to texts (B, project).

    Args:
        width: Of a token; each head of the attention has 64 of it.
        depth: Number of blocks.
        length: Tokens of the longest text.
        project: Width of a text.
    """

    def __init__(self, width: int, depth: int, length: int, project: int) -> None:
        from timm.layers import QuickGELU
        from timm.models.vision_transformer import Block

        super().__init__()
        self.positions = nn.Parameter(torch.zeros(length, width))
        block = partial(Block, width, width // 64, qkv_bias=True, norm_layer=nn.LayerNorm, act_layer=QuickGELU)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.zeros(width, project))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = tokens + self.positions[:length]
        later = torch.full((length, length), -torch.inf, device=x.device, dtype=x.dtype).triu(1)
        for block in self.blocks:
            x = block(x, attn_mask=later)
        return self.norm(x[:, -1]) @ self.projection


def read_text_encoder(path: Path) -> tuple[TextEncoder, Tensor]:
    """Read CLIP's text encoder from a file with both towers.

    Returns:
        The encoder in float32, and its table of tokens (V, width).

    Raises:
        ValueError: The file holds no such encoder, or not all of it.
    """
    state = {key: value for key, value in read_state_dict(path).items() if not key.startswith("visual.")}
    try:
        tokens = state.pop("token_embedding.weight").float()
        length, width = state["positional_embedding"].shape
        depth = len({key.split(".")[2] for key in state if key.startswith("transformer.resblocks.")})
        encoder = TextEncoder(width, depth, length, state["text_projection"].shape[1])
        renamed = {str(rename(key, _RULES)): value.float() for key, value in state.items()}
        encoder.load_state_dict({key: value for key, value in renamed.items() if key not in _OF_BOTH})
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path} does not hold CLIP's text encoder as OpenAI publishes it: {reason}") from error
    return encoder, tokens
