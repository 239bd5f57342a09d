"""A small restoration transformer with the traps of the real ones: BatchNorm, Dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

METHODS = [
    "adaptir",
    "asteisr_spatial",
    "adair",
    "lora",
    "houlsby",
    "adaptformer",
    "ssf",
    "fact",
    "bitfit",
    "full",
    "frozen",
]


class Feed(nn.Module):
    channels_last = True

    def __init__(self, dim: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.bn = nn.BatchNorm2d(2 * dim)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.drop(y.relu()))


class Attention(nn.Module):
    channels_last = True

    def __init__(self, dim: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(1, 2).chunk(3, dim=-1)
        return self.proj(((q @ k.mT).softmax(-1) @ v).view(x.shape))


class Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = Feed(dim)
        self.site = nn.Identity()  # Has neither parameters nor widths.

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return self.site(x + self.ffn(self.norm2(x)))


class Tiny(nn.Module):
    """(B, 3, H, W) -> (B, 3, H, W)."""

    name = "tiny"
    scale = 1
    size_multiple = 1

    def __init__(self, dim: int = 8):
        super().__init__()
        self.adapter_defaults = {
            "adaptir": {"target_modules": r"blocks\.\d+\.ffn", "hidden": 4},
            "asteisr_spatial": {"target_modules": r"blocks\.\d+\.(attn|ffn)"},
            "lora": {"target_modules": r"blocks\.\d+\.(attn\.(qkv|proj)|ffn\.fc[12])", "r": 2},
            "adair": {"target_modules": r"blocks\.\d+\.(attn|ffn)", "width": 3},
            "houlsby": {"target_modules": r"blocks\.\d+\.(attn|ffn)", "bottleneck": 3},
            "adaptformer": {"target_modules": r"blocks\.\d+\.ffn", "bottleneck": 3},
            "ssf": {"target_modules": ("qkv", "proj", "fc1", "fc2", "norm1", "norm2", "bn")},
            "fact": {"target_modules": r"blocks\.\d+\.(attn\.(qkv|proj)|ffn\.fc[12])", "r": 3},
            "bitfit": {"target_modules": ("proj", "fc2", "norm1", "bn", "conv_last")},
        }
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.conv_last = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_first(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            y = block(y)
        return x + self.conv_last(self.norm(y).permute(0, 3, 1, 2))


def make_tiny(seed: int = 0, **settings) -> Tiny:
    torch.manual_seed(seed)
    model = Tiny(**settings)
    with torch.no_grad():  # Statistics that differ from the defaults.
        model.train()(torch.rand(2, 3, 5, 6))
    return model.eval()


def scramble(model: nn.Module, seed: int = 1) -> None:
    """Moves every trainable parameter away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator).to(p))


@pytest.fixture
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def helpers():
    """The functions above, for tests in other files."""

    class Helpers:
        make = staticmethod(make_tiny)
        move = staticmethod(scramble)
        methods = METHODS

    return Helpers


def pytest_generate_tests(metafunc):
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", METHODS)
    if "adapting" in metafunc.fixturenames:
        metafunc.parametrize("adapting", METHODS[:-2])
