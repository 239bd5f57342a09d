"""Restormer: Efficient Transformer for High-Resolution Image Restoration (Zamir et al., CVPR 2022).

arXiv 2111.09881. A U-Net of four levels; attention runs over channels, so its cost is linear in the
pixels. State-dict keys are those of the authors' release. Adapters find their sites by name: in
every block (`encoder_level1.0`, ... of the stages in `STAGES`) the modules `attn` (MDTA) and `ffn`
(GDFN), the 1x1 convolutions `attn.qkv`, `attn.project_out`, `ffn.project_in`, `ffn.project_out`,
the norms `norm1.body`, `norm2.body`; `reduce_chan_level3` and `2`, where the decoder meets the
encoder; and `output` at the end. Tensors are (B, C, H, W) here, in
channels-last memory: everything but the norms is a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .gates import GeluGate
from .layers import (
    Conv2d,
    Pointwise,
    full_precision,
    reflect_pad,
    shortest_ratio,
    to_image,
    to_tokens,
)

STAGES = (
    "encoder_level1", "encoder_level2", "encoder_level3", "latent",
    "decoder_level3", "decoder_level2", "decoder_level1", "refinement",
)  # fmt: skip


VARIANTS = {"restormer_mini": {"dim": 16, "depths": (1, 2, 2, 2), "refinement": 1}}
"""Arguments in which small siblings differ from the released Restormer, for their name."""


class BiasFreeNorm(nn.Module):
    """w * x / sqrt(var(x) + eps) over the last axis: the variance is centred, x itself is not."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), in fp32 inside."""
        with full_precision(x.device):
            wide = x.float()
            deviation = wide.var(dim=-1, correction=0, keepdim=True).add(self.eps).rsqrt()
            return (wide * deviation * self.weight).to(x.dtype)


class Norm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, dim: int, bias: bool):
        super().__init__()
        self.body = nn.LayerNorm(dim) if bias else BiasFreeNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return to_image(self.body(to_tokens(x)))


class Attention(nn.Module):
    """MDTA, attention over channels (Sec. 3.1).

    v softmax(temperature * q^T k / (|q| |k|))^T in each head, q, k, v of shape (N, d), the norms
    over the N pixels.
    """

    channels_last = False

    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.in_features = self.out_features = dim
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(dim, 3 * dim, bias)
        self.qkv_dwconv = Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = Pointwise(dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        H, W = x.shape[2:]
        qkv = to_tokens(self.qkv_dwconv(self.qkv(x))).flatten(1, 2)  # (B, N, 3C)
        parts = qkv.unflatten(-1, (3 * self.heads, -1)).unbind(2)  # 3 * heads of (B, N, d)
        q, k, v = parts[: self.heads], parts[self.heads : -self.heads], parts[-self.heads :]
        weights = (self.weights(q[i], k[i], i) for i in range(self.heads))
        # Head by head, so that no head is copied.
        out = [v[i] @ A.transpose(1, 2).to(v[i].dtype) for i, A in enumerate(weights)]  # (B, N, d)
        return self.project_out(to_image(torch.cat(out, dim=-1).unflatten(1, (H, W))))

    def weights(self, q: Tensor, k: Tensor, head: int) -> Tensor:
        """(B, N, d) -> (B, d, d), rows are queries; in fp32."""
        with full_precision(q.device):
            q, k = q.float(), k.float()
            norms = (torch.linalg.vector_norm(y, dim=1, keepdim=True) for y in (q, k))
            nq, nk = (norm.clamp_min(1e-12) for norm in norms)  # (B, 1, d)
            cosines = q.transpose(1, 2) @ k / (nq.transpose(1, 2) * nk)
            return (cosines * self.temperature[head]).softmax(dim=-1)


class FeedForward(nn.Module):
    """GDFN, gelu(x1) * x2 of a depthwise convolution between two 1x1 convolutions (Sec. 3.2)."""

    channels_last = False

    def __init__(self, dim: int, hidden: int, bias: bool):
        super().__init__()
        self.in_features = self.out_features = dim
        self.project_in = Pointwise(dim, 2 * hidden, bias)
        self.dwconv = Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = Pointwise(hidden, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden = GeluGate.apply(to_tokens(self.dwconv(self.project_in(x))))  # (B, H, W, hidden)
        return self.project_out(to_image(hidden))


class Block(nn.Module):
    """x + attn(LN(x)), then x + ffn(LN(x))."""

    def __init__(self, dim: int, heads: int, expansion: float, bias: bool, norm_bias: bool):
        super().__init__()
        self.norm1 = Norm(dim, norm_bias)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = Norm(dim, norm_bias)
        self.ffn = FeedForward(dim, int(dim * expansion), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    """The first convolution."""

    def __init__(self, channels: int, dim: int, bias: bool):
        super().__init__()
        self.proj = Conv2d(channels, dim, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, dim, H, W)."""
        return self.proj(x)


class Resize(nn.Module):
    """A convolution, then half the size and twice the channels, or the reverse if `up`."""

    def __init__(self, dim: int, up: bool):
        super().__init__()
        conv = Conv2d(dim, 2 * dim if up else dim // 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2C, H/2, W/2) or (B, C/2, 2H, 2W)."""
        return self.body(x).contiguous(memory_format=torch.channels_last)


class Restormer(nn.Module):
    """(B, 3, h, w) in [0, 1] -> the same shape, any h, w >= 1.

    The input is continued by reflection to multiples of 8.

    Args:
        name: the architecture's name, kept with the adapters made for it.
        scale: 1; the network keeps the size.
        channels: of the image, in and out; the release has grey models with 1.
        dim: channels of level 1; 2, 4 and 8 times as many in levels 2 to 4.
        depths: blocks of levels 1 to 4, encoder and decoder alike.
        refinement: blocks after the decoder.
        heads: attention heads of levels 1 to 4.
        expansion: width of the feed-forward network over its level's channels.
        bias: biases in the convolutions of the blocks and at both ends.
        norm: "WithBias" (the releases for rain and blur) or "BiasFree" (for noise): layer norms
            that subtract the mean and add a bias, or do neither.
    """

    size_multiple = 8

    def __init__(
        self,
        *,
        name: str,
        scale: int = 1,
        channels: int = 3,
        dim: int = 48,
        depths: tuple[int, int, int, int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: tuple[int, int, int, int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        bias: bool = False,
        norm: str = "WithBias",
    ):
        super().__init__()
        if scale != 1:
            raise ValueError(f"{name} keeps the size of the image: scale is 1, not {scale}")
        if norm not in ("WithBias", "BiasFree"):
            raise ValueError(f"norm={norm!r} must be 'WithBias' or 'BiasFree'")
        self.name = name
        self.scale = scale
        self.adapter_defaults = adapter_defaults(dim, bias or norm == "WithBias")

        def stage(level: int, width: int, depth: int) -> nn.Sequential:
            settings = (dim * width, heads[level - 1], expansion, bias, norm == "WithBias")
            return nn.Sequential(*(Block(*settings) for _ in range(depth)))

        self.patch_embed = PatchEmbed(channels, dim, bias)
        self.encoder_level1 = stage(1, 1, depths[0])
        self.down1_2 = Resize(dim, up=False)
        self.encoder_level2 = stage(2, 2, depths[1])
        self.down2_3 = Resize(2 * dim, up=False)
        self.encoder_level3 = stage(3, 4, depths[2])
        self.down3_4 = Resize(4 * dim, up=False)
        self.latent = stage(4, 8, depths[3])
        self.up4_3 = Resize(8 * dim, up=True)
        self.reduce_chan_level3 = Pointwise(8 * dim, 4 * dim, bias)
        self.decoder_level3 = stage(3, 4, depths[2])
        self.up3_2 = Resize(4 * dim, up=True)
        self.reduce_chan_level2 = Pointwise(4 * dim, 2 * dim, bias)
        self.decoder_level2 = stage(2, 2, depths[1])
        self.up2_1 = Resize(2 * dim, up=True)
        # No reduction here: level 1 goes on with 2 * dim channels.
        self.decoder_level1 = stage(1, 2, depths[0])
        self.refinement = stage(1, 2, refinement)
        self.output = Conv2d(2 * dim, channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, h, w)."""
        h, w = x.shape[2:]
        image = reflect_pad(x, self.size_multiple)
        x = self.patch_embed(image.contiguous(memory_format=torch.channels_last))
        first = self.encoder_level1(x)
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        x = self.up4_3(self.latent(self.down3_4(third)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([x, third], dim=1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), second], dim=1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), first], dim=1))
        x = self.output(self.refinement(x)) + image
        return x[..., :h, :w]


def adapter_defaults(dim: int, biases: bool) -> dict[str, dict]:
    """Sites and widths of each method on a Restormer: about 7 %, the share that AdaIR trains."""
    block = f"({'|'.join(STAGES)})" + r"\.\d+\."
    width = max(2, 4 * dim // 3)  # 64
    lora = block + r"(attn\.(qkv|project_out)|ffn\.project_(in|out))"
    spatial, stereo = block + "attn", "reduce_chan_level[23]"  # Rows at 1/4 and 1/2 of the size.
    defaults = {
        "asteisr": {"target_modules": f"{spatial}|{stereo}", "stereo_modules": stereo},
        "asteisr_spatial": {"target_modules": spatial},
        "asteisr_stereo": {"target_modules": stereo},
        "adaptir": {"target_modules": block + "ffn", "hidden": width, "gate": max(1, width // 4)},
        "lora": {"target_modules": lora, "r": max(1, dim // 3), "alpha": max(1, dim // 3)},
        "adair": {"target_modules": block + "(attn|ffn)", "width": width},
        "houlsby": {"target_modules": block + "(attn|ffn)", "bottleneck": width},
        "adaptformer": {"target_modules": block + "ffn", "bottleneck": 2 * width},
        "ssf": {"target_modules": f"{lora}|{block}norm[12]\\.body" if biases else lora},
    }
    if biases:
        defaults["bitfit"] = {"target_modules": block + r"norm[12]\.body"}
    return defaults


def restormer(scale: int = 1, **overrides) -> Restormer:
    """Restormer: 26.1 million parameters."""
    return Restormer(name="restormer", scale=scale, **overrides)


def restormer_mini(scale: int = 1, **overrides) -> Restormer:
    """Restormer at small numbers, for a laptop: 1.1 million parameters."""
    return Restormer(
        name="restormer_mini", scale=scale, **{**VARIANTS["restormer_mini"], **overrides}
    )


def checkpoint_filter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as it is: the authors' files hold parameters only."""
    return state


def detect(state: dict[str, Tensor]) -> tuple[str, dict] | None:
    """(architecture, hyper-parameters) of a Restormer state dict, None for any other family.

    Raises:
        ValueError: a Restormer that is not built here, such as the dual-pixel model.
    """
    needed = ["patch_embed.proj.weight", "reduce_chan_level3.weight", "output.weight"]
    needed += [f"{stage}.0.attn.temperature" for stage in STAGES]
    if not all(key in state for key in needed):
        return None
    dim, channels = state["patch_embed.proj.weight"].shape[:2]
    if "skip_conv.weight" in state:
        raise ValueError("this is Restormer's dual-pixel model, which takes two images at once")
    out = len(state["output.weight"])
    if out != channels:
        raise ValueError(f"this Restormer turns {channels} channels into {out}, not into as many")
    depth = dict.fromkeys(STAGES, 0)
    for key in state:
        stage, _, rest = key.partition(".")
        if stage in depth:
            depth[stage] = max(depth[stage], int(rest.split(".")[0]) + 1)
    encoder = STAGES[:4]
    hidden = state["latent.0.ffn.project_out.weight"].shape[1]  # At the widest level, 8 * dim.
    settings = {
        "scale": 1,
        "channels": channels,
        "dim": dim,
        "depths": tuple(depth[stage] for stage in encoder),
        "refinement": depth["refinement"],
        "heads": tuple(len(state[f"{stage}.0.attn.temperature"]) for stage in encoder),
        "expansion": shortest_ratio(hidden, 8 * dim),
        "bias": "encoder_level1.0.attn.qkv.bias" in state,
        "norm": "WithBias" if "encoder_level1.0.norm1.body.bias" in state else "BiasFree",
    }
    for name, variant in VARIANTS.items():
        if all(settings[key] == value for key, value in variant.items()):
            return name, settings
    return "restormer", settings
