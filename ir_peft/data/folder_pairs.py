"""Training patches and test pairs of published data sets on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ir_peft.data.degradations import Degradation
from ir_peft.data.folders import FilePair, find_pairs, lookup, read_pair
from ir_peft.data.images import centre, read_image
from ir_peft.data.patches import (
    augment,
    integer_scale,
    item_generator,
    randint,
    split_bicubic,
    test_generator,
)

__all__ = ["FolderPairs", "FolderPatches", "FolderSets"]


def _prepare(name: str, degradation: Degradation | None) -> tuple[int, bool, Degradation | None]:
    """Decide (scale, whether damaged files are read, what the code adds to them)."""
    if degradation is None:
        return 1, True, None
    bicubic, rest = split_bicubic(degradation)
    if bicubic is not None:
        return integer_scale(degradation), True, rest
    if lookup(name).has_damaged and lookup(name).scales == (1,):
        raise ValueError(f"{name} comes damaged: its degradation is None")
    return integer_scale(degradation), False, degradation


class FolderPairs(Sequence):
    """Test pairs of a data set, read when indexed: (name, lq (3, h, w), gt (3, s h, s w)).

    Args:
        root: The folder that holds the data sets.
        name: A key of :data:`~ir_peft.data.folders.FOLDER_SETS`.
        degradation: None for a set that comes damaged (rain, low light). One that begins with
            Bicubic(s) reads the set's low-resolution files and adds the steps that follow; any
            other is applied to the clean image. Its noise depends on set and image name only.
        any_count: Accept another number of images than the published one.

    Raises:
        ValueError, FileNotFoundError: as :func:`find_pairs`, before anything is read.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        degradation: Degradation | None = None,
        *,
        any_count: bool = False,
    ):
        self.name = name
        self.scale, damaged, self.rest = _prepare(name, degradation)
        self.pairs = find_pairs(root, name, scale=self.scale, damaged=damaged, any_count=any_count)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        pair, s = self.pairs[index], self.scale
        generator = test_generator(self.name, pair.name)
        if pair.lq is not None:
            lq, gt = read_pair(pair, s)
        else:
            gt = read_image(pair.gt)
            lq = gt = gt[:, : gt.shape[1] // s * s, : gt.shape[2] // s * s].contiguous()
        if self.rest is not None:
            lq = self.rest(lq, generator).contiguous()
        return pair.name, lq, gt


class FolderSets(Sequence):
    """Test pairs of several sets, one set after the other; an image is named `<set>/<image>`."""

    def __init__(self, sets: Sequence[FolderPairs]):
        self.places = [(pairs, index) for pairs in sets for index in range(len(pairs))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        pairs, place = self.places[index]
        name, lq, gt = pairs[place]
        return f"{pairs.name}/{name}", lq, gt


class FolderPatches(Dataset):
    """Seeded random patches of data sets on disk: the counterpart of `patches.Patches`.

    Item i is a pure function of (seed, i): a file of any of the sets, a place, one of the 8 flips
    and rotations, then the degradation. Files are decoded for every item; use workers.

    Args:
        root: The folder that holds the data sets.
        names: Keys of :data:`~ir_peft.data.folders.FOLDER_SETS`, for example
            ``("DIV2K", "Flickr2K")``.
        degradation: As in :class:`FolderPairs`.
        lq_size: Side p of the low-quality patch in pixels.
        seed: Non-negative seed of the whole set.
        length: Number of items, usually steps times batch size.
        epoch: Items of an epoch, in each of which every file comes up equally often, in a new
            order; of a last round that does not fill, some are left out. None draws each item's
            file anew.
        multiple: Pairs of a set that comes damaged are first cut around their centre to sides
            divisible by it.
        any_count: Accept other numbers of images than the published ones.

    Raises:
        ValueError, FileNotFoundError: as :func:`find_pairs`, before anything is read.
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        degradation: Degradation | None,
        lq_size: int,
        seed: int = 0,
        length: int = 1000,
        *,
        epoch: int | None = None,
        multiple: int = 1,
        any_count: bool = False,
    ):
        if isinstance(names, str) or not names:
            raise ValueError(f"names must be one or more data sets in a tuple, got {names!r}")
        if lq_size < 1 or length < 1 or seed < 0 or (epoch is not None and epoch < 1):
            raise ValueError("lq_size, length and epoch must be positive and seed >= 0")
        self.lq_size, self.seed, self.length = lq_size, seed, length
        self.epoch, self.multiple = epoch, multiple
        self.pairs: list[FilePair] = []
        for name in names:
            self.scale, damaged, self.rest = _prepare(name, degradation)
            self.pairs += find_pairs(
                root, name, scale=self.scale, damaged=damaged, any_count=any_count
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (lq (3, p, p), gt (3, s p, s p)); ValueError where an image is too small."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        generator = item_generator(self.seed, index)
        pair, p, s = self._file(index, generator), self.lq_size, self.scale
        if pair.lq is not None:
            lq, gt = read_pair(pair, s)
            if s == 1:
                lq, gt = (centre(x, self.multiple) for x in (lq, gt))
        else:
            gt = read_image(pair.gt)
            lq = gt[:, ::s, ::s]  # Only its size counts.
        if min(lq.shape[1:]) < p:
            raise ValueError(f"{pair.gt}: too small for patches of {s * p} x {s * p} pixels")
        y, x = (randint(side - p + 1, generator) for side in lq.shape[1:])
        turn = randint(8, generator)
        gt = augment(gt[:, s * y : s * (y + p), s * x : s * (x + p)], turn)
        lq = gt if pair.lq is None else augment(lq[:, y : y + p, x : x + p], turn)
        return (lq if self.rest is None else self.rest(lq, generator).contiguous()), gt

    def _file(self, index: int, generator: torch.Generator) -> FilePair:
        files = len(self.pairs)
        if self.epoch is None:
            return self.pairs[randint(files, generator)]
        epoch, place = divmod(index, self.epoch)
        rounds = -(-self.epoch // files)
        # Beyond the items' own numbers, so that no item shares the generator.
        return self.pairs[_order(self.seed, self.length + epoch, rounds * files)[place] % files]


@lru_cache(maxsize=2)
def _order(seed: int, number: int, samples: int) -> list[int]:
    """A random order of the samples of an epoch; kept, as all items of the epoch need it."""
    return torch.randperm(samples, generator=item_generator(seed, number)).tolist()
