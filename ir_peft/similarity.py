"""Linear CKA: how alike two layers see the same images, whatever their widths.

Similarity of Neural Network Representations Revisited (Kornblith et al., ICML 2019, arXiv
1905.00414). Not part of the AdaIR paper as far as we know: it asks the paper's question, what
restoration tasks share, of separately trained models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters.sites import select
from .adapters.wrappers import walk
from .inference import eval_mode


def linear_cka(x: Tensor, y: Tensor) -> float:
    """||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred features, between 0 and 1 (Eq. 1).

    Exact, over all samples at once, in float64. Unchanged by a rotation or reflection of either
    side's channels and by a common scale of them.

    Args:
        x: (n, p), p channels of n samples.
        y: (n, q), channels of the same samples.

    Raises:
        ValueError: not two matrices of the same n > 1, values that are not finite, or features that
            are the same for every sample.
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"expected (n, p) and (n, q), n > 1, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return _cka(_centred(x), _centred(y))


def cka_map(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """`linear_cka` of every layer of `a` with every layer of `b`.

    Args:
        a: (n, channels) of each layer, as `features` gives them.
        b: of the same n samples.

    Returns:
        (len(a), len(b)) float64, rows and columns in the order of the dicts.
    """
    sizes = {len(x) for x in (*a.values(), *b.values())}
    if len(sizes) != 1:
        raise ValueError(f"the features are of different numbers of samples: {sorted(sizes)}")
    rows, columns = ([_centred(x) for x in each.values()] for each in (a, b))
    return torch.tensor([[_cka(x, y) for y in columns] for x in rows], dtype=torch.float64)


def features(
    model: nn.Module,
    layers: str | tuple[str, ...],
    images: Sequence[Tensor],
    *,
    grid: int = 8,
    channels_last: bool = False,
) -> dict[str, Tensor]:
    """Outputs of layers on images, averaged over the cells of a grid.

    One sample is one cell of one image, the same in layers of every resolution and in every model.

    Args:
        model: (B, 3, h, w) -> any; with its active adapter, if it has one.
        layers: a regular expression for whole names without adapters, or a tuple of names or
            suffixes, as in `AdapterConfig.target_modules`.
        images: (3, H, W) each, sizes may differ.
        grid: cells along each side.
        channels_last: the layers give (B, H, W, C); else (B, C, H, W).

    Returns:
        (len(images) * grid^2, C) float64 on the CPU for each layer, in the model's order.

    Raises:
        ValueError: no layer matches, there are no images, or a layer did not run once an image,
            does not give images, or gives fewer pixels than cells.
    """
    if not images:
        raise ValueError("there are no images to take features of")
    places = select(list(walk(model)), layers)
    found: dict[str, list[Tensor]] = {place.name: [] for place in places}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, out: Tensor) -> None:
            if not isinstance(out, Tensor) or out.dim() != 4:
                raise ValueError(f"{name!r} does not give images (four axes)")
            z = out.permute(0, 3, 1, 2) if channels_last else out  # (1, C, H, W)
            if min(z.shape[2:]) < grid:
                raise ValueError(
                    f"{name!r} gives {z.shape[2]} x {z.shape[3]} pixels, fewer than {grid} cells a "
                    "side: take larger images or a smaller grid"
                )
            cells = F.adaptive_avg_pool2d(z.double(), grid)  # (1, C, grid, grid)
            found[name].append(cells[0].flatten(1).T.cpu())  # (grid^2, C)

        return hook

    hooks = [place.outer.register_forward_hook(keep(place.name)) for place in places]
    try:
        with eval_mode(model), torch.no_grad():
            for image in images:
                model(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    for name, cells in found.items():
        if len(cells) != len(images):
            raise ValueError(f"{name!r} ran {len(cells)} times on {len(images)} images")
    return {name: torch.cat(cells) for name, cells in found.items()}


def _centred(x: Tensor) -> Tensor:
    """Channels without their mean, at the scale where ||X^T X||_F = 1."""
    x = x.double() - x.double().mean(dim=0)
    if not x.isfinite().all():
        raise ValueError("the features have values that are not finite")
    if not x.any():
        raise ValueError("the features are the same for every sample, so they have no CKA")
    return x / _product(x, x).sqrt()


def _cka(x: Tensor, y: Tensor) -> float:
    return _product(x, y).square().item()


def _product(x: Tensor, y: Tensor) -> Tensor:
    """||Y^T X||_F, by the smaller of two matrices: channels by channels or samples by samples."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    if n * n < p * q:
        return ((x @ x.T) * (y @ y.T)).sum().clamp_min(0).sqrt()
    return torch.linalg.matrix_norm(y.T @ x)
