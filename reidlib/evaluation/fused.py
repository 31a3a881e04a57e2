"""Screening a tile on a GPU in one Triton kernel: product, scores, comparison, count; no distance is stored.

Each program takes TILE queries x gallery items. A product of two terms is three TF32 products, added in float32 in
chunks; `kernels.product_error` with BOUND bounds their error. Only counts and a list of doubtful items are written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 128
TILE = (64, 128)
# A factor is the sum of two TF32 numbers, the product of both small parts left out; three additions a term, cut instead
# of rounded.
BOUND = {"rounding": 2.0**-21, "step": 3 * 2.0**-23, "chunk": CHUNK}
CAPACITY = 1 << 22  # doubtful items of one tile; with more, the tile is screened in plain torch


@triton.jit
def _screen(
    q, g, scale, shift, q_pid, g_pid, low, high, above, doubtful, used,  # noqa: ANN001
    num_q, num_g, dim, slots, capacity,  # noqa: ANN001
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    col = tl.program_id(1) * BN + tl.arange(0, BN)
    in_row, in_col = row < num_q, col < num_g
    total = tl.zeros((BM, BN), tl.float32)
    for chunk in range(0, dim, CHUNK):
        part = tl.zeros((BM, BN), tl.float32)
        for k in range(0, CHUNK, BK):
            at = chunk + k + tl.arange(0, BK)
            a = tl.load(q + row.to(tl.int64)[:, None] * dim + at[None, :], in_row[:, None] & (at < dim)[None, :], 0.0)
            b = tl.load(g + col.to(tl.int64)[:, None] * dim + at[None, :], in_col[:, None] & (at < dim)[None, :], 0.0)
            part = tl.dot(a, tl.trans(b), part, input_precision="tf32x3")
        total += part
    score = total * tl.load(scale + col, in_col, 0.0)[None, :] - tl.load(shift + col, in_col, 0.0)[None, :]
    pid = tl.load(g_pid + col, in_col, -1)[None, :]
    out = (pid == -1) | (pid == tl.load(q_pid + row, in_row, -1)[:, None]) | (in_row == 0)[:, None]
    score = tl.where(out, -float("inf"), score)
    for slot in range(slots):
        lo = tl.load(low + row * slots + slot, in_row, float("inf"))[:, None]
        hi = tl.load(high + row * slots + slot, in_row, float("inf"))[:, None]
        maybe = ((score < lo) == 0) & (out == 0) & (lo < float("inf"))  # so that NaN counts as doubtful
        if tl.sum(maybe.to(tl.int32)) > 0:
            surely = score > hi
            count = tl.sum(surely.to(tl.int32), 1)
            tl.atomic_add(above + row * slots + slot, count, in_row & (count > 0))
            maybe = maybe & (surely == 0)
            if (tl.sum(maybe.to(tl.int32)) > 0) & (tl.load(used) <= capacity):  # a full list is not used at all
                index = tl.atomic_add(used + tl.zeros((BM, BN), tl.int32), 1, maybe)
                fits = maybe & (index < capacity)
                tl.store(doubtful + index, row[:, None] + tl.zeros((BM, BN), tl.int32), fits)
                tl.store(doubtful + capacity + index, slot + tl.zeros((BM, BN), tl.int32), fits)
                tl.store(doubtful + 2 * capacity + index, col[None, :] + tl.zeros((BM, BN), tl.int32), fits)


def screen(
    q: Tensor, g: Tensor, scale: Tensor, shift: Tensor, q_pid: Tensor, g_pid: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Product and screening of a tile, as by `Space.product` and `kernels.screen`, without items of the query's pid.

    q (Q, D), g (G, D), scale, shift (G,) float32, pids int64 (-1 is left out), thresholds (Q, P) float32. Returns
    counts (Q, P) int32 of the items surely above; queries, columns and items in doubt; None if more than CAPACITY are.
    """
    above = torch.zeros(low.shape, dtype=torch.int32, device=q.device)
    doubtful = torch.empty(3, CAPACITY, dtype=torch.int32, device=q.device)
    used = torch.zeros(1, dtype=torch.int64, device=q.device)
    grid = (triton.cdiv(len(q), TILE[0]), triton.cdiv(len(g), TILE[1]))
    _screen[grid](
        q, g, scale, shift, q_pid, g_pid, low, high, above, doubtful, used,
        len(q), len(g), q.shape[1], low.shape[1], CAPACITY,
        BM=TILE[0], BN=TILE[1], BK=32, CHUNK=CHUNK, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    if (count := int(used)) > CAPACITY:
        return None
    return above, *doubtful[:, :count].long()
