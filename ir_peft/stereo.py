"""Stereo pairs through a backbone for single images, and ASteISR's released checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from .adapters import attach_adapter, load_adapter_state_dict, paired_views
from .backbones import bundled_tags, hat, load_strictly, read_state_dict


class Stereo(nn.Module):
    """The same model, called with stereo pairs: (B, 2, 3, h, w) -> (B, 2, 3, s*h, s*w), left first.

    Both views go through the backbone in one batch, neighbours in it, and stereo adapters let them
    exchange what they see. Weights, adapters, modes and hooks are those of the backbone, not copies
    of them: adapters may be attached, trained, saved and loaded through either of the two. Without
    stereo adapters each view is restored as if it were alone, bit for bit.

    Args:
        backbone: (B, 3, h, w) -> (B, 3, s*h, s*w).

    Raises:
        TypeError: `backbone` is not a module, or takes pairs already.
    """

    __slots__ = ("backbone",)  # Not in the shared __dict__, where it would contain itself.
    backbone: nn.Module

    def __init__(self, backbone: nn.Module):
        if not isinstance(backbone, nn.Module) or isinstance(backbone, Stereo):
            raise TypeError(f"a backbone for single images is needed, not {type(backbone)}")
        object.__setattr__(self, "__dict__", backbone.__dict__)
        object.__setattr__(self, "backbone", backbone)

    def __reduce__(self):
        return Stereo, (self.backbone,)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "backbone":  # Missing only while the object is made.
                raise
            return getattr(self.backbone, name)  # Of the class: `size_multiple`, methods.

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, 3, h, w) in [0, 1] -> (B, 2, 3, s*h, s*w); ValueError on another shape."""
        if x.dim() != 5 or x.shape[1:3] != (2, 3):
            raise ValueError(f"expected pairs (B, 2, 3, h, w), got {tuple(x.shape)}")
        with paired_views():
            # Hooks have run for this call: not a second time.
            return self.backbone.forward(x.flatten(0, 1)).unflatten(0, (-1, 2))


def load_stereo(path: str | Path, *, mask_leak: bool = True) -> Stereo:
    """A checkpoint of ASteISR's authors: HAT with its adapters, attached as "default".

    Args:
        path: a file with the keys of HAT and, inside them, `S_Adapter` and `stereo_adapter`.
        mask_leak: the authors' attention applies the mask of the shifted windows in the unshifted
            blocks as well, which cuts the last row and column of windows in two; what was trained
            so must run so, and saved adapters say so. False runs the HAT as it was meant.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has no such adapters or no HAT, or tensors are missing,
            left over, of the wrong shape, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    state, _ = read_state_dict(path)
    added = {key: value for key, value in state.items() if _INSIDE.search(key)}
    own = {key: value for key, value in state.items() if key not in added}
    found = hat.detect(own)
    if not added or found is None:
        raise ValueError(
            f"{path} is no ASteISR checkpoint: {len(added)} tensors of its adapters and "
            f"{'a' if found else 'no'} HAT; load_backbone reads single-image checkpoints"
        )
    name, settings = found
    model = hat.HAT(name=name, **settings)
    load_strictly(model, hat.checkpoint_filter(own), path)
    attach_adapter(model, "asteisr")
    try:
        load_adapter_state_dict(model, dict(_ours(*item) for item in added.items()))
    except ValueError as error:
        said = str(error)
        for theirs, name in _NAMES.items():  # The file has no other ones.
            said = said.replace(name, theirs)
        raise ValueError(f"{path}: {said}") from error
    model.mask_leak = mask_leak
    return Stereo(model.eval())


def is_released(name_or_path: str | Path) -> bool:
    """Whether `load_stereo` reads it, and not `load_backbone`: a file with ASteISR's adapters.

    Raises:
        ValueError: a damaged file.
    """
    if name_or_path in bundled_tags() or not Path(name_or_path).is_file():
        return False
    return any(_INSIDE.search(key) for key in read_state_dict(Path(name_or_path))[0])


_INSIDE = re.compile(r"\.(S_Adapter|stereo_adapter)\.")
_NAMES = {
    ".S_Adapter.D_fc1.": ".spatial_site.asteisr.down.",
    ".S_Adapter.D_fc2.": ".spatial_site.asteisr.up.",
    ".stereo_adapter.": ".stereo_site.asteisr.",
}


def _ours(key: str, value: Tensor) -> tuple[str, Tensor]:
    """A tensor of the authors' adapters: 1x1 convolutions and (1, C, 1, 1) factors flattened."""
    for theirs, name in _NAMES.items():
        key = key.replace(theirs, name)
    if value.dim() == 4:
        value = value.flatten() if key.endswith(("beta", "gamma")) else value.flatten(1)
    return key, value
