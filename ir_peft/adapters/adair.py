"""AdaIR's adapters: a small bottleneck beside attention and feed-forward of every block.

AdaIR: Exploiting Underlying Similarities of Image Restoration Tasks with Adapters (Chen et al.,
arXiv 2404.11475). The abstract tells of lightweight adapters of 1.9 MB, which we read as 1.9
million parameters, on a frozen Restormer. Their layers and places are not known to us: the defaults
here are our choice and meet that number, and each open question is a field of the config.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .bottleneck import Beside
from .config import AdapterConfig
from .core import Adapter
from .sites import widths

KINDS = ("conv1x1", "conv1x1_dw3x3", "conv3x3")
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}
POSITIONS = {"mdta": ("attn", "self_attn", "proj"), "gdfn": ("ffn", "mlp")}
"""Last part of a site's name, by what it does in the block: attention or feed-forward."""
LEVELS = {
    "encoder": r"encoder_level\d+",
    "latent": "latent",
    "decoder": r"decoder_level\d+|refinement",
}
"""First part of a site's name in Restormer; the refinement counts as decoder."""


@dataclass(frozen=True, kw_only=True)
class AdaIRConfig(AdapterConfig):
    """Config of `AdaIR`: 1,916,928 parameters on the full Restormer with these defaults."""

    method: ClassVar[str] = "adair"

    kind: str = "conv1x1"
    """"conv1x1": both projections 1x1; "conv1x1_dw3x3": a depthwise 3x3 between them; "conv3x3":
    both projections 3x3."""
    act: str = "gelu"
    """"gelu", "relu" or "none", before the second projection."""
    width: int | str = 64
    """Channels between the projections, or their share of the channels C that are read: "C/4"."""
    position: str = "both"
    """"mdta" (beside attention), "gdfn" (beside the feed-forward network) or "both"."""
    mode: str = "parallel"
    """"parallel" reads the branch's normalised input, "serial" the branch's output."""
    levels: str = "all"
    """"encoder", "latent", "decoder" (with the refinement) or "all" blocks of Restormer."""
    bias: bool = False
    """Biases in the convolutions."""
    init: str = "zero_up"
    """"zero_up": the second projection is zero, so the start is the frozen model; "default": it is
    drawn like the first, so the start is a random change of it."""

    def __post_init__(self):
        super().__post_init__()
        self.require_one_of("kind", *KINDS)
        self.require_one_of("act", *ACTIVATIONS)
        self.require_one_of("position", *POSITIONS, "both")
        self.require_one_of("mode", "parallel", "serial")
        self.require_one_of("levels", *LEVELS, "all")
        self.require_one_of("init", "zero_up", "default")
        if not isinstance(self.bias, bool):
            raise ValueError(f"bias={self.bias!r} must be True or False")
        if not isinstance(self.width, str):
            self.require_positive("width")
        elif not re.fullmatch(r"C/[1-9]\d*", self.width):
            raise ValueError(f"width={self.width!r} must be an integer or a share like 'C/4'")

    def width_of(self, channels: int) -> int:
        """Channels between the projections of an adapter that reads `channels`, at least 1."""
        if isinstance(self.width, int):
            return self.width
        return max(1, channels // int(self.width.removeprefix("C/")))

    def covers(self, name: str) -> bool:
        """Whether the layer `name` is at the `position` and among the `levels`."""
        first, last = name.split(".")[0], name.split(".")[-1]
        return (self.position == "both" or last in POSITIONS[self.position]) and (
            self.levels == "all" or re.fullmatch(LEVELS[self.levels], first) is not None
        )


class ImageConv(nn.Conv2d):
    """A 3x3 convolution of channels-last images."""

    def __init__(self, in_features: int, out_features: int, *, groups: int = 1, bias: bool):
        super().__init__(in_features, out_features, 3, padding=1, groups=groups, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        """(B, H, W, in_features) -> (B, H, W, out_features)."""
        if z.dim() != 4:
            raise ValueError(f"a 3x3 kernel reads images, not a tensor of shape {tuple(z.shape)}")
        return super().forward(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AdaIR(Beside):
    """out + W_up f(D W_down z), z the branch's input h = norm(x) or its output.

    f is the activation; D is a depthwise 3x3 convolution or nothing. A 1x1 convolution is a linear
    map of each pixel, so it is stored as one. W_up is zero at the start.

    Args:
        in_features: channels of z.
        out_features: channels of the layer's output.
        config: see `AdaIRConfig`.
        channels_last: (B, H, W, C) if true, (B, C, H, W) if not.
    """

    def __init__(
        self, in_features: int, out_features: int, config: AdaIRConfig, channels_last: bool
    ):
        super().__init__("parallel" if config.mode == "parallel" else "sequential", channels_last)
        width, bias = config.width_of(in_features), config.bias
        project = ImageConv if config.kind == "conv3x3" else nn.Linear
        self.down = project(in_features, width, bias=bias)
        self.depthwise = (
            ImageConv(width, width, groups=width, bias=bias)
            if config.kind == "conv1x1_dw3x3"
            else nn.Identity()
        )
        self.activation = ACTIVATIONS[config.act]()
        self.up = project(width, out_features, bias=bias)
        if config.init == "zero_up":
            for parameter in self.up.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def for_layers(cls, layers: dict[str, nn.Module], config: AdaIRConfig) -> dict[str, Adapter]:
        """One adapter for each layer that the config covers; ValueError where that is none."""
        covered = {name: layer for name, layer in layers.items() if config.covers(name)}
        if not covered:
            raise ValueError(
                f"position={config.position!r} and levels={config.levels!r} leave none of the "
                f"{len(layers)} layers that target_modules matches, among them "
                f"{next(iter(layers))!r}; positions go by the last part of a name ({POSITIONS}), "
                f"levels by the first ({LEVELS})"
            )
        return super().for_layers(covered, config)

    @classmethod
    def for_layer(cls, layer: nn.Module, config: AdaIRConfig) -> AdaIR:
        """Fits the sites of a backbone, Linear and a Conv2d that keeps H and W."""
        site = widths(layer, keeps_size=config.mode == "parallel")
        features = site.in_features if config.mode == "parallel" else site.out_features
        return cls(features, site.out_features, config, site.channels_last)

    def change(self, z: Tensor) -> Tensor:
        """(B, H, W, in_features) -> (B, H, W, out_features), any (B, ..., C) if all is 1x1."""
        return self.up(self.activation(self.depthwise(self.down(z))))
