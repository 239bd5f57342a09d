"""The `ir-peft` command: list | run | reproduce | restore | test | pretrain | fetch | data."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

JOBS = "rows at once, each a process; default: the cores, 1 on a GPU and for full and paper"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; user errors end in one clear line and exit code 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options) or 0
    except ImportError as error:
        print(
            f"ir-peft: {error}; install the extras: pip install -e '.[notebooks]'", file=sys.stderr
        )
        return 2
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, FloatingPointError) as error:
        if options.traceback:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"ir-peft: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ir-peft: interrupted; training resumes at its last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ir-peft", description=__doc__)
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error"
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("list", help="backbones, adapters, tasks and experiments")
    command.set_defaults(command=_list)

    command = commands.add_parser("run", help="run the rows of an experiment file")
    command.add_argument("file", help="for example experiments/adaptir.toml")
    command.add_argument("--profile", default="demo", help="smoke, demo (default), full or paper")
    command.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows")
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    command.add_argument("--data", type=Path, help="paper: the folder of the published data sets")
    command.add_argument("--weights", type=Path, help="paper: the authors' file, IPT_pretrain.pt")
    command.add_argument("--precision", choices=["no", "bf16"], help="no is float32, the default")
    command.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="paper: processes that read images; default: one a core, at most 8",
    )
    command.add_argument("--jobs", type=int, help=JOBS)
    command.set_defaults(command=_run)

    command = commands.add_parser("reproduce", help="every table, figure and notebook")
    command.add_argument("--profile", default="demo", help="smoke, demo (default) or full")
    command.add_argument("--jobs", type=int, help=JOBS)
    command.set_defaults(command=_reproduce)

    command = commands.add_parser("restore", help="restore an image file")
    command.add_argument("image", nargs="+", help="the damaged image: PNG, JPEG, WebP, TIFF, ...")
    command.add_argument(
        "-o",
        "--output",
        help="where to write; default: IMAGE_restored.png; of a pair OUTPUT_left and OUTPUT_right",
    )
    command.add_argument(
        "--stereo",
        action="store_true",
        help="restore a pair: two images, left first, or one .mpo, or one with both side by side",
    )
    command.add_argument(
        "--backbone", help="a bundled tag or a checkpoint file; default: dat_light_x4"
    )
    command.add_argument(
        "--adapter", help="a folder, or a bundled tag like adaptir/lr4_noise30-adaptir_tail"
    )
    command.add_argument(
        "--task",
        help="the bundled backbone and adapter for a task like derain; auto estimates it; "
        "with --backbone: which of its heads, e.g. of ipt_mini",
    )
    command.add_argument(
        "--tile",
        type=int,
        help="tile side in input pixels, with --stereo rows of a strip; default: 256, or as many "
        "pixels, for larger images",
    )
    command.add_argument(
        "--self-ensemble", action="store_true", help="average over 8 flips and rotations"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    command.add_argument("--force", action="store_true", help="overwrite the output file")
    command.set_defaults(command=_restore)

    command = commands.add_parser(
        "test", help="score a model by Restormer's or PromptIR's protocol"
    )
    command.add_argument(
        "protocol",
        nargs="+",
        help="e.g. restormer_derain; three_tasks and five_tasks are PromptIR's",
    )
    command.add_argument("--data", type=Path, required=True, help="folder of the published sets")
    command.add_argument("--sets", nargs="+", metavar="SET", help="only these test sets")
    command.add_argument("--backbone", required=True, help="a bundled tag or a checkpoint file")
    command.add_argument("--adapter", help="a folder, or a bundled tag")
    command.add_argument("--tile", type=int, help="tile side in pixels; default: whole images")
    command.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    command.add_argument("--any-count", action="store_true", help="accept incomplete sets")
    command.set_defaults(command=_test, task=None)

    command = commands.add_parser("pretrain", help="pretrain a backbone from a recipe")
    command.add_argument("tag", help="for example restormer_mini; `ir-peft list` shows all")
    command.add_argument("--steps", type=int, help="optimiser steps; default: the recipe's")
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument("--out", help="folder of the weights and the card; default: runs/pretrain")
    command.add_argument(
        "--restart", action="store_true", help="start over instead of resuming at the checkpoint"
    )
    command.add_argument("--data", type=Path, help="folder of published sets, if it takes them")
    command.add_argument(
        "--workers", type=int, default=0, help="processes that read images; default: 0"
    )
    command.set_defaults(command=_pretrain)

    command = commands.add_parser("fetch", help="fetch test photographs into the cache")
    command.add_argument("name", choices=["photos11", "stereo"])
    command.set_defaults(command=_fetch)

    command = commands.add_parser("data", help="check a folder of the field's data sets")
    command.add_argument("action", choices=["check"])
    command.add_argument("root", help="the folder that holds the data sets")
    command.set_defaults(command=_data)
    return parser


def _list(options: argparse.Namespace) -> None:
    from . import adapters, backbones, experiments, pretrain
    from .data import degradations

    print("backbones:  " + " ".join(backbones.list_backbones()))
    print("adapters:   " + " ".join(adapters.ADAPTERS))
    print("shipped:    " + " ".join(_shipped()))
    print("tasks:      " + " ".join(degradations.TASKS))
    print("recipes:    " + " ".join(pretrain.RECIPES))
    print("profiles:   " + " ".join(experiments.PROFILES))
    print(
        "experiments:" + "".join(f" {path}" for path in sorted(Path("experiments").glob("*.toml")))
    )


def _shipped() -> list[str]:
    from .adapters.checkpoint import CONFIG_FILE, WEIGHTS

    return sorted(str(path.parent.relative_to(WEIGHTS)) for path in WEIGHTS.rglob(CONFIG_FILE))


def _profile(name: str):
    """The named profile; without the photos11 cache its test set becomes photos6, and says so."""
    from . import experiments
    from .data import photos

    if name not in experiments.PROFILES:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(experiments.PROFILES)}")
    profile = experiments.PROFILES[name]
    if profile.test_set == "photos11" and not profile.trains and not photos.available("photos11"):
        print("photos11 is not in the cache (`ir-peft fetch photos11`): evaluating photos6 instead")
        profile = replace(profile, test_set="photos6")
    return profile


def _run(options: argparse.Namespace) -> None:
    from . import adaptir_protocol, experiments, reproduce, sweep

    specs = experiments.load_specs(options.file)
    profile = _profile(options.profile)
    if options.precision:
        profile = replace(profile, precision=options.precision)
    every = specs
    for kind, wanted in (("row", options.rows), ("task", options.tasks)):
        if wanted:
            known = {getattr(spec, kind) for spec in specs}
            unknown = set(wanted) - known
            if unknown:
                raise ValueError(
                    f"{options.file} has no {kind} {sorted(unknown)}; it has {sorted(known)}"
                )
            specs = [spec for spec in specs if getattr(spec, kind) in wanted]
    if profile.epochs is None:
        if options.data or options.weights:
            raise ValueError(f"--data and --weights are for --profile paper, not {profile.name}")
        if any(spec.table == "paper" for spec in specs):
            raise ValueError(
                f"{options.file} takes published images: --profile paper, not {profile.name}"
            )
        sweep.run_all(specs, profile, jobs=options.jobs)
        return
    if not (options.data and options.weights):
        raise ValueError(
            f"--profile {profile.name} takes published images and the authors' weights: "
            "--data FOLDER --weights IPT_pretrain.pt"
        )
    sources = adaptir_protocol.Sources(options.data, options.weights, options.workers)
    for line in adaptir_protocol.check(specs, profile, sources):
        print(line)
    sweep.run_all(specs, profile, sources=sources, jobs=options.jobs)
    tasks = {spec.task for spec in specs}
    rows = [spec for spec in every if spec.task in tasks]
    for path in reproduce.write_paper_tables(rows, profile, sources):
        print(f"wrote {path}")


def _reproduce(options: argparse.Namespace) -> None:
    from . import reproduce

    reproduce.reproduce(_profile(options.profile), jobs=options.jobs)


def _restore(options: argparse.Namespace) -> None:
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
    from . import adapters, stereo, stereo_inference
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
    if not any(isinstance(module, adapters.StereoAdapter) for module in model.modules()):
        print("no stereo adapter: each view is restored alone", file=sys.stderr)
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
    from . import adapters, backbones, devices

    device = devices.pick(options.device)
    model = backbones.load_backbone(options.backbone or "dat_light_x4")
    if options.task:
        if not hasattr(model, "set_task"):
            raise ValueError(f"{options.backbone} has one head for all it does: leave out --task")
        model.set_task(options.task)
    if options.adapter:
        adapters.load_adapter(model, options.adapter)
    return model.to(device).eval()


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


def _test(options: argparse.Namespace) -> None:
    from . import protocols

    model = _model(options)
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


def _pretrain(options: argparse.Namespace) -> None:
    from . import pretrain

    card = pretrain.pretrain(
        options.tag,
        steps=options.steps,
        seed=options.seed,
        out=options.out,
        resume=not options.restart,
        data=options.data,
        workers=options.workers,
    )
    print(pretrain.card_markdown(card))


def _fetch(options: argparse.Namespace) -> None:
    from .data import photos, stereo_photos

    stereo = options.name == "stereo"
    print(f"{options.name}: {stereo_photos.fetch() if stereo else photos.fetch(options.name)}")


def _data(options: argparse.Namespace) -> None:
    from .data import folders, stereo_check

    singles = folders.check(options.root)
    print(replace(singles, rows=singles.rows + stereo_check.check_stereo(options.root)))


if __name__ == "__main__":
    sys.exit(main())
