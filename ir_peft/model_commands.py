"""The commands that load a model and run it: `ir-peft restore` and `ir-peft test`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .names import did_you_mean


def restore(options: argparse.Namespace) -> None:
    """`ir-peft restore`: one image file, or a pair of views."""
    from . import inference
    from .data import images

    if options.stereo and options.task:
        raise ValueError("--task is for single images: with --stereo name --backbone and --adapter")
    if options.stereo:
        _restore_stereo(options)
        return
    if len(options.image) > 1:
        raise ValueError(
            f"one image at a time, got {len(options.image)}; two views of a scene need --stereo"
        )
    source = Path(options.image[0])
    if source.is_dir():
        names = sorted(p.name for p in source.iterdir() if p.suffix.lower() in images.FORMATS)
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        there = f"name one of its {len(names)} images: {listed}" if names else "it has no images"
        raise IsADirectoryError(f"{source} is a folder; {there}")
    target = (
        Path(options.output) if options.output else source.with_name(f"{source.stem}_restored.png")
    )
    _check_target(target, options.force)
    image = images.read_image(source)
    if options.task and not options.backbone:
        _take_task(options, image)
    model = _model(options)
    if _needs_pairs(model):
        raise ValueError("the model needs both views of a scene: --stereo LEFT RIGHT")
    tile = "auto" if options.tile is None else options.tile
    overlap = 16 if tile == "auto" else min(16, tile // 2)
    strips = inference.restore_strips(
        model,
        image,
        tile=tile,
        overlap=overlap,
        self_ensemble=options.self_ensemble,
    )
    height, width = (model.scale * side for side in image.shape[1:])
    images.write_strips(target, strips, height, width)
    print(f"{target}: {width} x {height} pixels")


def _restore_stereo(options: argparse.Namespace) -> None:
    from . import stereo, stereo_inference
    from .data import images, stereo_check

    sources = [Path(image) for image in options.image]
    pair = stereo_inference.read_pair(*sources)
    if options.output:
        base = Path(options.output)
        targets = [base.with_stem(f"{base.stem}_{side}") for side in ("left", "right")]
    elif len(sources) == 2:
        targets = [source.with_name(f"{source.stem}_restored.png") for source in sources]
    else:
        base = sources[0].with_suffix(".png")
        targets = [base.with_stem(f"{base.stem}_{side}_restored") for side in ("left", "right")]
    if targets[0] == targets[1]:
        raise ValueError(f"both views would be written to {targets[0]}: name a file with -o")
    for target in targets:
        _check_target(target, options.force)
    if len(sources) == 1:
        print(f"{sources[0]}: two views of {pair.shape[3]} x {pair.shape[2]} pixels")
    for doubt in stereo_check.doubts(*pair):
        print(f"{doubt}; the left one is first, and rows must agree", file=sys.stderr)
    rows = "auto" if options.tile is None else options.tile
    overlap = 16 if rows == "auto" else min(16, rows // 2)
    model = stereo.Stereo(_model(options))
    _say_if_alone(model)
    views = stereo_inference.restore_stereo(model, pair, rows, overlap, options.self_ensemble)
    for target, view in zip(targets, views, strict=True):
        images.write_image(target, view)
        print(f"{target}: {view.shape[2]} x {view.shape[1]} pixels")


def _check_target(target: Path, force: bool) -> None:
    from .data import images

    if target.exists() and not force:
        raise FileExistsError(
            f"{target} exists; name another with -o, or overwrite it with --force"
        )
    if target.suffix.lower() not in images.FORMATS:
        raise ValueError(f"{target}: unknown image suffix; there are {', '.join(images.FORMATS)}")


def _model(options: argparse.Namespace):
    """The backbone with its adapter, in eval mode on the device."""
    from . import adapters, backbones, devices, stereo

    device, name = devices.pick(options.device), options.backbone or "dat_light_x4"
    if stereo.is_released(name):
        if options.task or options.adapter:
            extra = "--task" if options.task else "--adapter"
            raise ValueError(f"{name} holds ASteISR's adapters already: leave out {extra}")
        model = stereo.load_stereo(name, mask_leak=not options.no_mask_leak).backbone
        return model.to(device)
    if options.no_mask_leak:
        raise ValueError(f"{name} is no checkpoint of ASteISR's authors: leave out --no-mask-leak")
    model = backbones.load_backbone(name)
    if options.task:
        if not hasattr(model, "set_task"):
            raise ValueError(f"{options.backbone} has one head for all it does: leave out --task")
        model.set_task(options.task)
    if options.adapter:
        adapters.load_adapter(model, options.adapter)
    return model.to(device).eval()


def _needs_pairs(model) -> bool:
    """Whether the model has a stereo adapter."""
    from .adapters import StereoAdapter

    return any(isinstance(module, StereoAdapter) for module in model.modules())


def _say_if_alone(model) -> None:
    if not _needs_pairs(model):
        print("no stereo adapter: each view is restored alone", file=sys.stderr)


def _take_task(options: argparse.Namespace, image) -> None:
    """Sets the backbone and the adapter to those of the task, of which nothing is left to do."""
    from . import restorers

    if options.adapter:
        raise ValueError(
            "--task alone brings backbone and adapter: leave out --adapter, or name "
            "its --backbone too"
        )
    task = options.task
    if task == restorers.AUTO:
        shares = restorers.likely_tasks(image)
        task, second = list(shares)[:2]
        print(f"looks like {task} ({shares[task]:.0%}), next {second} ({shares[second]:.0%})")
    options.backbone, options.adapter = restorers.find_restorer(task)
    print(f"task {task}: {options.backbone}, adapter {options.adapter or 'none'}")
    options.task = None


def test(options: argparse.Namespace) -> None:
    """`ir-peft test`: scores a model by protocols on published sets and prints a table."""
    from . import protocols, stereo_protocols

    known = {*protocols.PROTOCOLS, *protocols.ALL_IN_ONE, *stereo_protocols.STEREO_PROTOCOLS}
    for name in options.protocol:
        if name not in known:
            hint = did_you_mean(name, known) or "."
            raise ValueError(f"no protocol {name!r}{hint} There are {', '.join(sorted(known))}")
    of_pairs = [name in stereo_protocols.STEREO_PROTOCOLS for name in options.protocol]
    if any(of_pairs) and not all(of_pairs):
        raise ValueError("protocols of pairs and of single images: score them in two runs")
    model = _model(options)
    if all(of_pairs):
        _test_pairs(model, options)
        return
    if model.scale != 1:
        raise ValueError(f"{options.backbone} enlarges images; the protocols keep their size")
    named = [one for name in options.protocol for one in protocols.ALL_IN_ONE.get(name, (name,))]
    rows = []
    for name in dict.fromkeys(named):
        rows += protocols.evaluate_protocol(
            model,
            options.data,
            name,
            sets=options.sets,
            tile=options.tile,
            any_count=options.any_count,
        )
    print(protocols.summary(rows))


def _test_pairs(model, options: argparse.Namespace) -> None:
    from . import stereo, stereo_protocols

    _say_if_alone(model)
    rows = []
    for name in dict.fromkeys(options.protocol):
        rows += stereo_protocols.evaluate_stereo_protocol(
            stereo.Stereo(model),
            options.data,
            name,
            sets=options.sets,
            strip_rows=options.tile,
            any_count=options.any_count,
        )
    print(stereo_protocols.stereo_summary(rows))
