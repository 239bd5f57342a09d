"""Architectures of other families, through spandrel (an optional extra) with their own keys.

spandrel (github.com/chaiNNer-org/spandrel, MIT) recognises some forty image networks by their
state dicts: SwinIR, NAFNet, SCUNet, Uformer, ESRGAN, ... It gets tensors that are read already, so
no file is unpickled by it. What its companion `spandrel_extra_arches` registers (`install()`) loads
as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .layers import reflect_to

EXTRA = "pip install 'ir_peft[spandrel]'"
# Their callers append a noise map for a single image.
ONE_BY_ONE = ("DnCNN", "DRUNet")


class SpandrelBackbone(nn.Module):
    """A network that spandrel built, as a backbone: x (B, 3, h, w) -> (B, 3, s * h, s * w).

    Any h, w >= 1: the image is reflected at the bottom and the right up to a size that the network
    accepts, and its output is cropped. The keys of the state dict are `network.` and the authors'.

    Args:
        network: the module itself.
        call: (network, x) -> output, for networks that are not simply called with the image.
        padding: (w, h) -> (columns, rows) that are missing to an accepted size.
        name: of the architecture, as spandrel calls it.
        scale: output size over input size.
        size_multiple: side that images and tiles are best a multiple of.
        one_by_one: `call` takes a single image at a time.
    """

    adapter_defaults: dict[str, dict] = {}
    """None: which layers to adapt is not known here, so adapters ask for `target_modules`."""

    def __init__(
        self,
        network: nn.Module,
        call: Callable[[nn.Module, Tensor], Tensor],
        padding: Callable[[int, int], tuple[int, int]],
        *,
        name: str,
        scale: int,
        size_multiple: int = 1,
        one_by_one: bool = False,
    ):
        super().__init__()
        self.network = network
        self.call, self.padding = call, padding
        self.name, self.scale, self.size_multiple = name, scale, size_multiple
        self.one_by_one = one_by_one

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, s * h, s * w), not clamped."""
        h, w = x.shape[-2:]
        columns, rows = self.padding(w, h)
        x = reflect_to(x, h + rows, w + columns)  # (B, 3, H, W)
        images = x.split(1) if self.one_by_one else (x,)
        out = torch.cat([self.call(self.network, image) for image in images])  # (B, 3, sH, sW)
        return out[..., : h * self.scale, : w * self.scale]


def load(state: dict[str, Tensor], path: Path, families: str) -> SpandrelBackbone:
    """The network that spandrel recognises in a state dict, on the CPU.

    Args:
        state: tensors of a checkpoint that no family of this package recognises.
        path: where they come from, for errors.
        families: names of this package's architectures, for errors.

    Raises:
        ValueError: spandrel is not installed, does not recognise the state dict or cannot load it,
            or the network is for another purpose than restoring RGB images.
    """
    seen = f"its first keys are {list(state)[:5]}"
    try:
        import spandrel
    except ImportError as error:
        raise ValueError(
            f"{path} is no checkpoint of {families}: {seen}. With `{EXTRA}` other architectures "
            "load as well"
        ) from error
    try:
        # A copy, since spandrel renames some keys in place.
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError as error:
        raise ValueError(
            f"{path} is no checkpoint of {families}, and spandrel {spandrel.__version__} does not "
            f"recognise it either: {seen}"
        ) from error
    except Exception as error:  # Each architecture reads its widths in its own way, and fails so.
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(
            f"{path} resembles an architecture that spandrel {spandrel.__version__} knows, but "
            f"does not load as one ({reason}); {seen}"
        ) from error
    name, channels = found.architecture.name, (found.input_channels, found.output_channels)
    if found.purpose not in ("SR", "Restoration"):
        raise ValueError(f"{path} is a {name} for {found.purpose}, not for restoring any image")
    if channels != (3, 3):
        raise ValueError(
            f"{path} is a {name} from {channels[0]} to {channels[1]} channels; a backbone takes "
            "and gives the 3 of RGB"
        )
    return SpandrelBackbone(
        found.model,
        found._call_fn,  # The descriptor's own call is for inference only and clamps.
        found.size_requirements.get_padding,
        name=name,
        scale=found.scale,
        size_multiple=found.size_requirements.multiple_of,
        one_by_one=found.architecture.id in ONE_BY_ONE,
    )
