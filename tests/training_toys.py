"""Data and models of seconds for the tests of training; processes of their own import them too."""

import torch
from torch import nn

from ir_peft.train import train


class Noise(torch.utils.data.Dataset):
    """Pure in (seed, index), like the package's patches: a clean image and its noisy copy."""

    def __init__(self, length=1000, scale=1, seed=0):
        self.length, self.scale, self.seed = length, scale, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(self.seed * 10_000 + index)
        lq = torch.rand(3, 6, 6, generator=generator)
        gt = (0.5 * lq + 0.2).repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)
        return lq, gt


def tiny(dropout=0.2):
    """Convolutions with what a resume can lose: BatchNorm statistics and dropout's generator."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(dropout), nn.Conv2d(8, 3, 1)
    )


def run(model, out=None, steps=20, **options):
    options = {"batch_size": 2, "lr": 1e-2, "progress": False, "log_every": 4} | options
    return train(model, options.pop("dataset", Noise()), steps=steps, out=out, **options)


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def linear():
    """Two convolutions without state."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
