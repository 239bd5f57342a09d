"""Layers that several backbones share.

Letters: B batch, C channels, H W pixels, h w window, nW windows, N tokens, d head width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # Mean colour of DIV2K, used by EDSR and everything after it.


def full_precision(device: torch.device) -> AbstractContextManager:
    """Inside, autocast is off; the meta device has none to switch off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def head_padding(d: int, device: torch.device) -> int:
    """Zero channels that fill a head of width d to the CPU's registers: it runs twice as fast."""
    return -d % 16 if device.type == "cpu" else 0


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale * q k^T + bias) v, the only attention call of the package.

    Args:
        q: (B, heads, N, d), which may be a strided view, as may k and v.
        k: (B, heads, M, d).
        v: (B, heads, M, d).
        bias: broadcastable to (B, heads, N, M), added to the logits.
        scale: d ** -0.5 unless given.

    Returns:
        (B, heads, N, d).
    """
    d = q.shape[-1]
    scale = d**-0.5 if scale is None else scale
    if bias is not None:
        bias = bias.to(q.dtype).expand(q.shape[0], q.shape[1], -1, -1)
    spare = head_padding(d, q.device)
    if spare:
        q, k, v = (F.pad(x, (0, spare)) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[..., :d]


def window_partition(x: Tensor, h: int, w: int) -> Tensor:
    """(B, H, W, ...) -> (B, H/h, W/w, h, w, ...), a view."""
    return x.unflatten(2, (-1, w)).unflatten(1, (-1, h)).transpose(2, 3)


def window_reverse(x: Tensor) -> Tensor:
    """The inverse of `window_partition`: (B, H/h, W/w, h, w, ...) -> (B, H, W, ...)."""
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


SHIFT_GAP = 48.0
"""How much more logits neighbours get than strangers in shifted windows.

e^-48 is 0 beside 1 in fp32. The authors' 100 would be as good, but neighbours get the gap as a
common addition here, and the smaller it is the less precision it costs.
"""


@lru_cache(maxsize=64)
def shift_features(H: int, W: int, dh: int, dw: int, spare: int, device: torch.device) -> Tensor:
    """Features of q, k, v that keep strangers apart in windows shifted by (dh, dw).

    After the cyclic shift the last windows hold tokens that were not neighbours and must not see
    each other (Swin Transformer, arXiv 2103.14030, Sec. 3.2). Two signs tell the regions apart:
    neighbours are tokens of a window with both signs equal. The product of the features of q and k
    is `SHIFT_GAP` between neighbours and 0 or less between others. Common to all of a query's
    neighbours, the gap has no effect; so two more channels of each head do what a mask of the size
    of the attention matrix does. v and the spare channels get zeros.

    Returns:
        (3, H, W, 2 + spare).
    """
    with torch.inference_mode(False):
        features = torch.zeros(3, H, W, 2 + spare, device=device)
        features[:2, ..., :2] = math.sqrt(SHIFT_GAP / 2)
        features[:2, H - dh :, :, 0] *= -1
        features[:2, :, W - dw :, 1] *= -1
        return features


def image_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], groups: int
) -> Tensor:
    """The gradient of a convolution's input x, of which only the shape and the layout matter."""
    settings = [1, 1], padding, [1, 1], False, [0, 0], groups, [True, False, False]
    return torch.ops.aten.convolution_backward(grad, x, weight.to(grad.dtype), None, *settings)[0]


class FrozenConvolution(torch.autograd.Function):
    """`F.conv2d` of stride 1 with a gradient for x alone: it keeps no x for backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding, groups: int):
        """(B, C, H, W) -> (B, out, H', W')."""
        ctx.save_for_backward(weight)
        ctx.like, ctx.settings = (x.shape, x.stride(), x.dtype), (padding, groups)
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        """The gradient of x."""
        shape, stride, dtype = ctx.like
        x = grad.new_empty_strided(shape, stride)
        grad_x = image_gradient(grad, x, *ctx.saved_tensors, *ctx.settings)
        return grad_x.to(dtype), None, None, None, None


class Conv2d(nn.Conv2d):
    """nn.Conv2d of stride 1 that keeps its input for backward only if its weights are trained."""

    def __init__(
        self, channels: int, out: int, side: int, *, padding=0, groups: int = 1, bias: bool = True
    ):
        super().__init__(channels, out, side, padding=padding, groups=groups, bias=bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trained or not (x.requires_grad and torch.is_grad_enabled()):
            return super()._conv_forward(x, weight, bias)
        return FrozenConvolution.apply(x, weight, bias, self.padding, self.groups)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as a matrix product, which is faster on the CPU."""

    def __init__(self, channels: int, out: int, bias: bool = True):
        super().__init__(channels, out, 1, bias=bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, channels, H, W) -> (B, out, H, W)."""
        return to_image(F.linear(to_tokens(x), weight.flatten(1), bias))


class DynamicPositionBias(nn.Module):
    """Relative position bias of an h x w window: a small MLP over the tokens' offsets.

    From CrossFormer (Wang et al., ICLR 2022, arXiv 2108.00154), without its residual connections.
    A width of 1, as in DAT-light, makes it a constant: a LayerNorm over one channel forgets its
    input. The softmax ignores a constant: then there is no bias, and its weights have no effect.
    """

    def __init__(self, dim: int, heads: int, h: int, w: int):
        super().__init__()
        self.window = (h, w)
        self.pos_proj = nn.Linear(2, dim)
        self.pos1 = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))
        self.pos2 = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))
        self.pos3 = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, heads))
        self._width = dim
        self._own = len(list(self.parameters()))
        self._kept: tuple[list, Tensor] | None = None

    def forward(self) -> Tensor | None:
        """The bias of the logits: (heads, N, N), fp32; None if it is the same for all pairs."""
        parameters = list(self.parameters())
        if self._width == 1 and len(parameters) == self._own:
            return None
        # Training changes the bias at each step, switching an adapter inside the MLP at any time.
        changing = len(parameters) != self._own or any(p.requires_grad for p in parameters)
        if changing or torch.compiler.is_compiling():
            self._kept = None
            return self.build()
        # The bias of frozen weights is a constant, built once for these very values.
        values = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if self._kept is None or self._kept[0] != values:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = values, self.build()
        return self._kept[1]

    def build(self) -> Tensor:
        """The bias from the weights: (heads, N, N)."""
        h, w = self.window
        weight = next(self.parameters())

        def grid(top: int, left: int) -> Tensor:
            rows = torch.arange(top, h, device=weight.device)
            return torch.cartesian_prod(rows, torch.arange(left, w, device=weight.device))

        offsets = grid(1 - h, 1 - w).to(weight.dtype)  # ((2h - 1) * (2w - 1), 2)
        with full_precision(weight.device):
            table = self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))  # (offsets, heads)
        token = grid(0, 0)  # (N, 2)
        between = token[:, None] - token[None, :]  # (N, N, 2)
        index = (between[..., 0] + h - 1) * (2 * w - 1) + between[..., 1] + w - 1
        return table[index].permute(2, 0, 1).contiguous()


def to_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view in channels-last memory."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def mirror_pad(x: Tensor, H: int, W: int) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W): continues the image in its mirror at the bottom and the right.

    The edge pixel is repeated, and a small image is mirrored as often as needed.
    """
    for dim, length in ((2, H), (3, W)):
        size = x.shape[dim]
        if size < length:
            index = torch.arange(length, device=x.device) % (2 * size)
            x = x.index_select(dim, torch.minimum(index, 2 * size - 1 - index))
    return x


def reflect_to(x: Tensor, H: int, W: int) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W): reflects the image at the bottom and the right.

    The edge pixel is not repeated; unlike in `F.pad` a small image is reflected several times.
    """
    for dim, length in ((2, H), (3, W)):
        size = x.shape[dim]
        if size < length:
            index = torch.arange(length, device=x.device) % max(1, 2 * size - 2)
            x = x.index_select(dim, torch.minimum(index, 2 * size - 2 - index))
    return x


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W), the next multiples, by `reflect_to`."""
    h, w = x.shape[2:]
    return reflect_to(x, h + -h % multiple, w + -w % multiple)


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
            layers += [Conv2d(channels, step**2 * channels, 3, padding=1), nn.PixelShuffle(step)]
        super().__init__(*layers)


class UpsampleOneStep(nn.Sequential):
    """One convolution and one pixel shuffle to the image: C -> out_channels, size x scale."""

    def __init__(self, scale: int, channels: int, out_channels: int = 3):
        super().__init__(
            Conv2d(channels, scale**2 * out_channels, 3, padding=1), nn.PixelShuffle(scale)
        )


class ResidualConv(nn.Sequential):
    """Three convolutions ("3conv") that light SR transformers end a group with: C -> C."""

    def __init__(self, channels: int):
        super().__init__(
            Conv2d(channels, channels // 4, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            Conv2d(channels // 4, channels // 4, 1),
            nn.LeakyReLU(0.2, inplace=True),
            Conv2d(channels // 4, channels, 3, padding=1),
        )


def shortest_ratio(hidden: int, dim: int) -> float:
    """An e with int(dim * e) == hidden as people write it: hidden / dim, or few decimals (2.66)."""
    exact, middle = hidden / dim, (hidden + 0.5) / dim
    candidates = [round(exact, 3), *(round(middle, digits) for digits in range(1, 6))]
    if candidates[0] != exact:
        del candidates[0]
    return next((e for e in candidates if int(dim * e) == hidden), middle)


def init_weights(module: nn.Module) -> None:
    """Linear weights from a normal of std 0.02 cut at two units, biases 0; norms the identity."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
