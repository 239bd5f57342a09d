"""The two attentions of HAT: in (shifted) windows, and from windows to larger, overlapping ones.

Chen et al., CVPR 2023, arXiv 2205.04437. Both add a trained table of relative position biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import attention, head_padding, shift_features, window_partition, window_reverse


def relative_position_index(window: int, reach: int) -> Tensor:
    """Rows of the bias table, for queries of a window and keys of its reach x reach surroundings.

    For overlapping windows the authors count offsets of keys from `window - reach + 1`, which is
    not the smallest: some of their indices are negative, and PyTorch counts these from the end of
    the table. Released tables were trained so; the remainder says the same.

    Returns:
        (window ** 2, reach ** 2), values from 0 to (window + reach - 1) ** 2 - 1.
    """
    offsets = window + reach - 1  # Along one axis.
    query, key = torch.arange(window)[:, None], torch.arange(reach)[None, :]
    axis = query - key + window - 1 if window == reach else key - query + window - reach + 1
    index = axis[:, None, :, None] * offsets + axis[None, :, None, :]  # (h, w, reach, reach)
    return index.reshape(window**2, reach**2) % offsets**2


class BiasedAttention(nn.Module):
    """What both attentions share: the Linears qkv and proj, the bias table, windows cut into heads.

    While the table is frozen, the bias of all pairs is a constant: it is built once and kept.
    """

    def __init__(self, dim: int, heads: int, window: int, reach: int):
        super().__init__()
        self.heads = heads
        self.window = window
        self.reach = reach
        self.scale = (dim // heads) ** -0.5
        table = torch.zeros((window + reach - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self._kept: tuple[tuple, Tensor] | None = None

    def bias(self) -> Tensor:
        """The bias of the logits: (heads, N, M)."""
        table = self.relative_position_bias_table
        if table.requires_grad or torch.compiler.is_compiling():
            self._kept = None
            return self.build()
        # An address and a version counter belong to one set of values as long as it is in use.
        values = (table.data_ptr(), 0 if table.is_inference() else table._version)
        if self._kept is None or self._kept[0] != values:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = values, self.build()
        return self._kept[1]

    def build(self) -> Tensor:
        """The bias, computed: (heads, N, M)."""
        table = self.relative_position_bias_table
        index = relative_position_index(self.window, self.reach).to(table.device)
        return table[index].permute(2, 0, 1).contiguous()

    def split_heads(self, x: Tensor, extra: Tensor) -> Tensor:
        """(B, nH, nW, h, w, heads * d) -> (B * nH * nW, heads, h * w, d + e), in one copy.

        `extra`, (1, nH, nW, h, w, e) or with ones in place of these, is appended to every head.
        """
        x = x.unflatten(-1, (self.heads, -1)).permute(0, 1, 2, 5, 3, 4, 6)
        extra = extra.unsqueeze(3).expand(*x.shape[:-1], -1)
        return torch.cat([x, extra], dim=-1).flatten(4, 5).flatten(0, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Windows from `split_heads` of images of the size (B, H, W) -> (B, H, W, C)."""
        (B, H, W), w = size, self.window
        d = self.qkv.in_features // self.heads
        out = attention(q, k, v, self.bias(), self.scale)[..., :d]  # (B * nH * nW, heads, N, d)
        out = out.transpose(1, 2).unflatten(1, (w, w)).unflatten(0, (B, H // w, W // w))
        return window_reverse(out).flatten(3)


class WindowAttention(BiasedAttention):
    """(Shifted-)window attention."""

    channels_last = True

    def __init__(self, dim: int, heads: int, window: int, shift: int):
        super().__init__(dim, heads, window, window)
        self.in_features = self.out_features = dim
        self.shift = shift
        self.mask_shift = shift
        """Of the mask. Not `shift` only in checkpoints that were trained so (ASteISR's)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        B, H, W, C = x.shape
        d, w, shift = C // self.heads, self.window, self.shift
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        qkv = self.qkv(x).split(C, dim=-1)
        extra = [qkv[0].new_zeros(1, 1, 1, 1, 1, head_padding(d, x.device))] * 3
        if self.mask_shift:
            spare, dh = head_padding(d + 2, x.device), self.mask_shift
            features = shift_features(H, W, dh, dh, spare, x.device)  # (3, H, W, 2 + spare)
            features = window_partition(features, w, w) * self.scale**-0.5
            extra = features.to(qkv[0].dtype).split(1)  # Their product is multiplied by the scale.
        windows = (window_partition(y, w, w) for y in qkv)
        q, k, v = (self.split_heads(y, e) for y, e in zip(windows, extra, strict=True))
        out = self.proj(self.attend(q, k, v, (B, H, W)))
        return out.roll((shift, shift), dims=(1, 2)) if shift else out


class Surroundings(torch.autograd.Function):
    """Overlapping windows: (B, H, W, C) -> (B, H/w, W/w, reach, reach, C), zeros outside the image.

    A view of the padded image, with a gradient that is many times faster than `unfold`'s.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: int, reach: int) -> Tensor:
        """Cuts windows of w x w pixels, with their surroundings."""
        ctx.size, ctx.w = x.shape, w
        before = (reach - w) // 2
        x = F.pad(x, (0, 0, before, w - before, before, w - before))
        x = x[:, : x.shape[1] - 2 * w + reach, : x.shape[2] - 2 * w + reach]
        return x.unfold(1, reach, w).unfold(2, reach, w).permute(0, 1, 2, 4, 5, 3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        """Adds up what each pixel receives from all windows that see it."""
        (B, H, W, C), w = ctx.size, ctx.w
        reach = grad.shape[3]
        before, over = (reach - w) // 2, reach - w
        image = grad.new_zeros(B, H + w, W + w, C)
        windows = window_partition(image, w, w)  # One more along each axis: what hangs over.
        windows[:, :-1, :-1] += grad[:, :, :, :w, :w]
        windows[:, 1:, :-1, :over] += grad[:, :, :, w:, :w]
        windows[:, :-1, 1:, :, :over] += grad[:, :, :, :w, w:]
        windows[:, 1:, 1:, :over, :over] += grad[:, :, :, w:, w:]
        return image[:, before : before + H, before : before + W], None, None


class OverlapAttention(BiasedAttention):
    """Attention from each window to a larger window with the same centre (Eq. 4).

    The larger windows have zeros outside the image, which take part in the softmax.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        B, H, W, C = x.shape
        w = self.window
        q, k, v = self.qkv(x).split(C, dim=-1)
        zeros = q.new_zeros(1, 1, 1, 1, 1, head_padding(C // self.heads, x.device))
        k, v = (self.split_heads(Surroundings.apply(y, w, self.reach), zeros) for y in (k, v))
        q = self.split_heads(window_partition(q, w, w), zeros)
        return self.proj(self.attend(q, k, v, (B, H, W)))
