"""One forward pass over a batch with another adapter for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .core import Adapter, adapter_parts, disable_adapters
from .wrappers import AdaptedLayer, walk


@contextmanager
def per_sample(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """Inside, sample i of every batch goes through the adapter `names[i]`, None through none.

    The frozen layers see the whole batch once; each adapter sees its own samples. For inference:
    the output is what each sample gives alone, up to the rounding of a batched product.

        with ir_peft.per_sample(model.eval(), ["derain", "denoise", None]):
            restored = model(torch.stack([rainy, noisy, clean]))

    Args:
        model: with the named adapters attached, in eval mode; its samples stay in order on the
            first axis, whatever it folds into that axis behind them (windows, views).
        names: an attached adapter or None for each sample.

    Raises:
        ValueError: an adapter is not attached, `names` is empty, the model is in training mode,
            or, inside, a batch has another number of samples.
        TypeError: an adapter changes more than a layer's output: it replaces whole modules, or
            acts before the layer, so that samples cannot share the frozen layers.
    """
    names = list(names)
    if not names:
        raise ValueError("names is empty: give an adapter's name or None for each sample")
    if model.training:
        raise ValueError("per_sample is for inference: call model.eval() first")
    used = {name: adapter_parts(model, name) for name in names if name is not None}
    for name, parts in used.items():
        if parts.copies:
            raise TypeError(
                f"the adapter {name!r} replaces whole modules ({', '.join(parts.copies)}), which "
                "samples with other adapters would have to run as well"
            )
        for layer, adapter in parts.adapters.items():
            if type(adapter).run is not Adapter.run and not adapter.run_is_forward:
                raise TypeError(
                    f"the adapter {name!r} ({parts.config.method}) acts before {layer!r} runs, so "
                    "samples with other adapters cannot share that layer"
                )
    rows = {name: [i for i, each in enumerate(names) if each == name] for name in used}

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) != len(names):
            raise ValueError(f"{len(inputs[0])} samples, but {len(names)} names of adapters")

    def change(module: AdaptedLayer, inputs: tuple, out: Tensor) -> Tensor:
        # (B * k, ...): k windows or views of each sample stand together.
        x, out = (y.unflatten(0, (len(names), -1)) for y in (inputs[0], out))
        out = out.clone()
        for name, adapter in module.adapters.items():
            if name in rows:
                own = rows[name]
                changed = adapter(x[own].flatten(0, 1), out[own].flatten(0, 1))
                out[own] = changed.unflatten(0, (len(own), -1))
        return out.flatten(0, 1)

    with disable_adapters(model), ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(check))
        for place in walk(model):
            for wrapper in place.wrappers:
                if isinstance(wrapper, AdaptedLayer):
                    hooks.enter_context(wrapper.register_forward_hook(change))
        yield model
