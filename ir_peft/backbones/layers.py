"""Layers that several backbones share. Letters: B batch, C channels, H W pixels, h w window, N tokens, d head."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # Mean colour of DIV2K, used by EDSR and everything after it.


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale * q k^T + bias) v, the only attention call of the package.

    Args:
        q: (B, heads, N, d). k, v: (B, heads, M, d); strided views are fine.
        bias: broadcastable to (B, heads, N, M), added to the logits.
        scale: d ** -0.5 unless given.

    Returns:
        (B, heads, N, d).
    """
    d = q.shape[-1]
    scale = d**-0.5 if scale is None else scale
    if bias is not None:
        bias = bias.to(q.dtype).expand(q.shape[0], q.shape[1], -1, -1)
    # The CPU kernel runs about twice as fast where the head width fills its registers; zeros change nothing.
    spare = -d % 16 if q.device.type == "cpu" else 0
    if spare:
        q, k, v = (F.pad(x, (0, spare)) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[..., :d]


def window_partition(x: Tensor, h: int, w: int) -> Tensor:
    """(B, H, W, ...) -> (B * H/h * W/w, h * w, ...), windows in row-major order inside each image."""
    B, H, W, *rest = x.shape
    x = x.reshape(B, H // h, h, W // w, w, *rest).transpose(2, 3)  # (B, H/h, W/w, h, w, ...)
    return x.reshape(-1, h * w, *rest)


def window_reverse(windows: Tensor, h: int, w: int, H: int, W: int) -> Tensor:
    """The inverse of `window_partition`: (B * H/h * W/w, h * w, ...) -> (B, H, W, ...)."""
    rest = windows.shape[2:]
    x = windows.reshape(-1, H // h, W // w, h, w, *rest).transpose(2, 3)  # (B, H/h, h, W/w, w, ...)
    return x.reshape(-1, H, W, *rest)


@lru_cache(maxsize=32)
def shift_mask(H: int, W: int, h: int, w: int, dh: int, dw: int, device: torch.device) -> Tensor:
    """(H/h * W/w, 1, N, N) logits mask of windows shifted by (dh, dw): -100 between strangers.

    Tokens that were not neighbours before the cyclic shift must not see each other (Swin Transformer,
    arXiv 2103.14030, Sec. 3.2).
    """

    def bands(length: int, size: int, shift: int) -> Tensor:
        band = torch.zeros(length, device=device)
        band[length - size :] = 1
        band[length - shift :] = 2
        return band

    with torch.inference_mode(False):
        region = 3 * bands(H, h, dh)[:, None] + bands(W, w, dw)[None, :]  # (H, W)
        region = window_partition(region[None], h, w)  # (nW, N)
        strangers = region[:, None, :] != region[:, :, None]  # (nW, N, N)
        return torch.zeros(strangers.shape, device=device).masked_fill_(strangers, -100.0)[:, None]


def to_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view in channels-last memory."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


class Upsample(nn.Sequential):
    """Convolution and pixel shuffle, by 2 as often as needed or by 3 once: C -> C, size x scale."""

    def __init__(self, scale: int, channels: int):
        if scale == 3:
            steps = [3]
        elif scale > 0 and scale & (scale - 1) == 0:
            steps = [2] * int(math.log2(scale))
        else:
            raise ValueError(f"scale {scale} cannot be built: a power of 2, or 3, is needed")
        layers: list[nn.Module] = []
        for step in steps:
            layers += [nn.Conv2d(channels, step**2 * channels, 3, padding=1), nn.PixelShuffle(step)]
        super().__init__(*layers)


class UpsampleOneStep(nn.Sequential):
    """One convolution and one pixel shuffle, straight to the image: C -> out_channels, size x scale."""

    def __init__(self, scale: int, channels: int, out_channels: int = 3):
        super().__init__(
            nn.Conv2d(channels, scale**2 * out_channels, 3, padding=1), nn.PixelShuffle(scale)
        )


class ResidualConv(nn.Sequential):
    """The three-convolution bottleneck ("3conv") that light SR transformers end a group with: C -> C."""

    def __init__(self, channels: int):
        super().__init__(
            nn.Conv2d(channels, channels // 4, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels // 4, channels // 4, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels // 4, channels, 3, padding=1),
        )


def init_weights(module: nn.Module) -> None:
    """Linear weights from a normal of std 0.02 cut at two units, biases 0; norms the identity."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
