"""Initial weights with which the small siblings begin as an enlargement of their input.

Three channels carry the colours from the first convolution to the last, every residual branch
starts at zero, and the enlargement is by nearest neighbours. A short pretraining then spends its
steps on restoring: from random ends, most of them go into learning to copy the image.
"""

from __future__ import annotations

import torch
from torch import nn

RGB = 3


def copies_colours(conv: nn.Conv2d, gain: float = 1.0, shift: float = 0.0, s: int = 1) -> None:
    """The first three channels go on, times `gain`, plus `shift`; with `s`, as s * s sub-pixels."""
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        for channel in range(RGB):
            rows = slice(channel * s * s, (channel + 1) * s * s)
            conv.weight[rows] = 0
            conv.weight[rows, channel, middle, middle] = gain
            conv.bias[rows] = shift


def enlarges(upsample: nn.Sequential) -> None:
    """Each convolution before a pixel shuffle repeats the colours of its pixel."""
    layers = list(upsample)
    for conv, shuffle in zip(layers[::2], layers[1::2], strict=True):
        copies_colours(conv, s=shuffle.upscale_factor)


def silent(*layers: nn.Module) -> None:
    """Weights and biases of zero."""
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            nn.init.zeros_(parameter)


def ipt(model: nn.Module) -> None:
    """An `IPT` whose every branch enlarges its input by nearest neighbours."""
    body = model.body
    for head in model.head:
        copies_colours(head[0])
        silent(*(block.body[2] for block in list(head)[1:]))
    silent(body.linear_encoding, body.mlp_head[3], body.position_encoding["pe"])
    nn.init.normal_(body.query_embed.weight, std=0.02)
    for layer in (*body.encoder.layers, *body.decoder.layers):
        silent(layer.self_attn.out_proj, layer.ffn.linear2)
    for layer in body.decoder.layers:
        silent(layer.multihead_attn.out_proj)
    for upsample, last in model.tail:
        enlarges(upsample)
        silent(last)
        copies_colours(last, gain=0.5)  # The body's output and its input are both the image.


def hat(model: nn.Module) -> None:
    """A `HAT` that enlarges its input by nearest neighbours."""
    copies_colours(model.conv_first)
    silent(model.conv_after_body)
    # Colours less their mean, lifted above zero for the leaky ReLU.
    copies_colours(model.conv_before_upsample[0], shift=1.0)
    enlarges(model.upsample)
    silent(model.conv_last)
    copies_colours(model.conv_last, shift=-1.0)
