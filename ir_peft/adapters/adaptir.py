"""AdaptIR: three branches, local, global and channel, beside a frozen layer.

Parameter Efficient Adaptation for Image Restoration with Heterogeneous Mixture-of-Experts (Guo et
al., NeurIPS 2024, arXiv 2312.08881): the module of the second version, as released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter
from .sites import widths

BRANCHES = ("lim", "fam", "cgm")


@dataclass(frozen=True, kw_only=True)
class AdaptIRConfig(AdapterConfig):
    """Config of `AdaptIR`, beside the FFN in the paper; the last five fields are its ablations."""

    method: ClassVar[str] = "adaptir"

    hidden: int = 24
    """Width h inside the adapter; the release takes 24 on IPT and 12 on EDT-B."""
    rank: int | None = None
    """Rank r of the local branch's kernel; None is h // 2."""
    gate: int | None = None
    """Width m of the channel gate; None is max(1, h // 8). The release takes h // 4 on EDT-B."""
    branches: tuple[str, ...] = BRANCHES
    """Any of "lim" (local), "fam" (frequency) and "cgm" (channel)."""
    ensemble: bool = True
    """Cross gates between the two spatial branches; False adds them up."""
    depthwise_lim: bool = True
    """False: a dense 3x3 convolution in place of the low-rank depthwise one."""
    depthwise_fam: bool = True
    """False: dense 1x1 convolutions on amplitude and phase."""
    form: str = "parallel"
    """"parallel" reads the layer's input, "sequential" its output; both add to the output."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "branches", tuple(self.branches))
        self.require_positive("hidden", "rank", "gate")
        self.require_one_of("form", "parallel", "sequential")
        if not self.branches or not set(self.branches) <= set(BRANCHES):
            raise ValueError(f"branches={self.branches!r} must be some of {', '.join(BRANCHES)}")


class AdaptIR(Adapter):
    """out + W_tail (c * s), s = a * l + b * g, of z = BN(W_head x).

    - LIM, local: l = DWConv_3x3(z), its kernel the product A B of rank r.
    - FAM, global: amplitude and phase of the spectrum of z each get a scale and a shift for every
      channel; g is the absolute value of the inverse transform.
    - CGM, channel: z pooled by a softmax over positions, then a small MLP -> c.
    - Adaptive feature ensemble: a is a channel gate from g, b a spatial gate from l: they cross.

    W_tail is zero at the start. Between head and tail everything runs in the parameters' precision
    also under autocast, and the transform at least in fp32: half precision has no FFT.

    Args:
        in_features: channels d of what is read.
        out_features: channels of the layer's output.
        hidden: h. rank: r. gate: m.
        channels_last: (B, H, W, C) if true, (B, C, H, W) if not.
        branches, ensemble, depthwise_lim, depthwise_fam, form: see `AdaptIRConfig`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int,
        rank: int,
        gate: int,
        *,
        channels_last: bool = True,
        branches: tuple[str, ...] = BRANCHES,
        ensemble: bool = True,
        depthwise_lim: bool = True,
        depthwise_fam: bool = True,
        form: str = "parallel",
    ):
        super().__init__()
        h = hidden
        self.channels_last = channels_last
        self.form = form
        self.branches = branches
        self.depthwise_lim = depthwise_lim
        self.gates = ensemble and {"lim", "fam"} <= set(branches)
        self.head = nn.Conv2d(in_features, h, 1)
        self.BN = nn.BatchNorm2d(h)
        if "lim" in branches and depthwise_lim:
            self.conv_weight_A = nn.Parameter(torch.empty(h, rank))
            self.conv_weight_B = nn.Parameter(torch.empty(rank, 9))
            self.conv_bias = nn.Parameter(torch.zeros(h))
            nn.init.kaiming_uniform_(self.conv_weight_A, a=math.sqrt(5))
            nn.init.kaiming_uniform_(self.conv_weight_B, a=math.sqrt(5))
        elif "lim" in branches:
            self.conv = nn.Conv2d(h, h, 3, padding=1)
            nn.init.zeros_(self.conv.bias)
        if "fam" in branches:
            groups = h if depthwise_fam else 1
            self.amp_fuse = nn.Conv2d(h, h, 1, groups=groups)
            self.pha_fuse = nn.Conv2d(h, h, 1, groups=groups)
            for conv in (self.amp_fuse, self.pha_fuse):
                nn.init.dirac_(conv.weight, groups=groups)
                nn.init.zeros_(conv.bias)
        if "cgm" in branches:
            self.compress = nn.Conv2d(h, 1, 1)
            half = max(1, h // 2)
            self.proj = nn.Sequential(nn.Linear(h, half), nn.GELU(), nn.Linear(half, h))
        if self.gates:
            self.channel_gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(h, gate, 1), nn.GELU(), nn.Conv2d(gate, h, 1)
            )
            self.spatial_gate = nn.Conv2d(h, 1, 1)
            for conv in (self.channel_gate[-1], self.spatial_gate):
                nn.init.zeros_(conv.weight)
                nn.init.zeros_(conv.bias)
        self.tail = nn.Conv2d(h, out_features, 1, bias=False)
        nn.init.zeros_(self.tail.weight)

    @classmethod
    def for_layer(cls, layer: nn.Module, config: AdaptIRConfig) -> AdaptIR:
        """Fits a backbone's sites, a Linear on (B, H, W, C) and a Conv2d that keeps H and W."""
        site = widths(layer, keeps_size=config.form == "parallel")
        h = config.hidden
        return cls(
            site.in_features if config.form == "parallel" else site.out_features,
            site.out_features,
            h,
            config.rank or max(1, h // 2),
            config.gate or max(1, h // 8),
            channels_last=site.channels_last,
            branches=config.branches,
            ensemble=config.ensemble,
            depthwise_lim=config.depthwise_lim,
            depthwise_fam=config.depthwise_fam,
            form=config.form,
        )

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """X (B, H, W, d) or (B, d, H, W), out alike -> the shape of `out`."""
        x = x if self.form == "parallel" else out
        if x.dim() != 4:
            axes = "(B, H, W, C)" if self.channels_last else "(B, C, H, W)"
            raise ValueError(f"AdaptIR reads images {axes}, not a tensor of shape {tuple(x.shape)}")
        z = self.project(self.head, x)
        if self.channels_last:
            z = z.permute(0, 3, 1, 2)  # (B, h, H, W)
        with torch.autocast(x.device.type, enabled=False):
            z = self.BN(z.to(self.BN.weight.dtype).contiguous())
            s = self.experts(z)
        if self.channels_last:
            s = s.permute(0, 2, 3, 1)  # (B, H, W, h)
        return out + self.project(self.tail, s).to(out.dtype)

    def project(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 1x1 convolution on either layout; on channels-last a matrix product without a copy."""
        return F.linear(x, conv.weight.flatten(1), conv.bias) if self.channels_last else conv(x)

    def experts(self, z: Tensor) -> Tensor:
        """C * s, (B, h, H, W) -> (B, h, H, W); an absent branch leaves no trace."""
        local = self.local(z) if "lim" in self.branches else None
        spectral = self.spectral(z) if "fam" in self.branches else None
        if local is None and spectral is None:
            s = z
        elif local is None or spectral is None:
            s = spectral if local is None else local
        elif self.gates:
            a = self.channel_gate(spectral).sigmoid()  # (B, h, 1, 1)
            b = self.spatial_gate(local).sigmoid()  # (B, 1, H, W)
            s = a * local + b * spectral
        else:
            s = local + spectral
        return self.channel_score(z) * s if "cgm" in self.branches else s

    def local(self, z: Tensor) -> Tensor:
        """LIM, l: (B, h, H, W) -> (B, h, H, W)."""
        if not self.depthwise_lim:
            return self.conv(z)
        h = len(self.conv_bias)
        kernel = (self.conv_weight_A @ self.conv_weight_B).view(h, 1, 3, 3)
        return F.conv2d(z, kernel, self.conv_bias, padding=1, groups=h)

    def spectral(self, z: Tensor) -> Tensor:
        """FAM, g = |irfft2(A e^{jP})|, A and P the fused amplitude and phase of rfft2(z)."""
        H, W = z.shape[-2:]
        wide = z if z.dtype == torch.float64 else z.float()
        spectrum = torch.fft.rfft2(wide, norm="ortho")  # (B, h, H, W // 2 + 1)
        # Contiguous real tensors are faster on a CPU than views or the complex abs and angle.
        real, imag = spectrum.real.contiguous(), spectrum.imag.contiguous()
        # Zero has amplitude 0 and phase 0, both without a gradient, which would be 0 / 0. The bound
        # is where squares leave the range of fp32, far below the rounding of the transform.
        silent = real.square() + imag.square() < 1e-36
        real = real.masked_fill(silent, 1)
        amplitude = fuse(self.amp_fuse, torch.hypot(real, imag).masked_fill(silent, 0))
        phase = fuse(self.pha_fuse, torch.atan2(imag, real))
        # Not torch.polar: its gradient is wrong for the negative amplitudes that a shift can give.
        spectrum = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
        return torch.fft.irfft2(spectrum, s=(H, W), norm="ortho").abs().to(z.dtype)

    def channel_score(self, z: Tensor) -> Tensor:
        """CGM, c: (B, h, H, W) -> (B, h, 1, 1), unbounded."""
        tokens = z.flatten(2)  # (B, h, HW)
        weight = self.compress(z).flatten(2).softmax(dim=-1)  # (B, 1, HW)
        pooled = (tokens * weight).sum(dim=-1)  # (B, h)
        return self.proj(pooled)[..., None, None]


def fuse(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution in the precision of x; a depthwise one is a scale and a shift."""
    weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    if conv.groups == conv.in_channels:
        return x * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return F.conv2d(x, weight, bias)
