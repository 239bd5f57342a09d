"""Gates whose GELU is computed again in backward, so that less is kept.

Letters: B batch, H W pixels, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import image_gradient, to_image, to_tokens

once_differentiable = torch.autograd.function.once_differentiable
gelu_backward = torch.ops.aten.gelu_backward


class GeluGate(torch.autograd.Function):
    """gelu(a) * b for the halves a, b of x's channels: keeps x alone."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """(B, H, W, 2C) -> (B, H, W, C)."""
        ctx.save_for_backward(x)
        a, b = x.chunk(2, dim=-1)
        # In one piece: C may be odd, and row by row the CPU would take its ends value by value.
        return F.gelu(a.contiguous()) * b

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The gradient of x."""
        a, b = ctx.saved_tensors[0].chunk(2, dim=-1)
        a = a.contiguous()
        return torch.cat([gelu_backward(grad * b, a), grad * F.gelu(a)], dim=-1)


class FrozenSpatialGate(torch.autograd.Function):
    """a * DWConv(LN(b)) for the halves a, b of gelu(x): keeps x and the convolution's output.

    Of both layers' weights there is no gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, norm: nn.LayerNorm, conv: nn.Conv2d) -> Tensor:
        """(B, H, W, 2C) -> (B, H, W, C)."""
        a, b = F.gelu(x).chunk(2, dim=-1)
        y, mean, rstd = torch.native_layer_norm(
            b, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        y = to_tokens(conv(to_image(y)))
        ctx.save_for_backward(x, y, mean, rstd)
        ctx.norm, ctx.conv = norm, conv
        return a * y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The gradient of x."""
        (x, y, mean, rstd), norm, conv = ctx.saved_tensors, ctx.norm, ctx.conv
        a, b = F.gelu(x).chunk(2, dim=-1)
        grad_b = to_tokens(
            image_gradient(to_image(grad * a), to_image(y), conv.weight, conv.padding, conv.groups)
        )
        grad_b, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_b, b, norm.normalized_shape, mean, rstd, norm.weight, norm.bias,
            [True, False, False],
        )  # fmt: skip
        return gelu_backward(torch.cat([grad * y, grad_b], dim=-1), x), None, None
