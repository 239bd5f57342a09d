"""The `ir-peft` command: list | run | reproduce | restore | test | pretrain | fetch | data."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import model_commands

JOBS = "rows at once, each a process; default: the cores, 1 on a GPU and for full and paper"
MASK_LEAK = "of a checkpoint of ASteISR's authors: without the mask that they apply too often"


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
    command.add_argument("--no-mask-leak", action="store_true", help=MASK_LEAK)
    command.set_defaults(command=model_commands.restore)

    command = commands.add_parser(
        "test", help="score a model by Restormer's, PromptIR's or ASteISR's protocol"
    )
    command.add_argument(
        "protocol",
        nargs="+",
        help="e.g. restormer_derain; three_tasks and five_tasks are PromptIR's; asteisr_x2 and "
        "asteisr_x4 are of stereo pairs",
    )
    command.add_argument("--data", type=Path, required=True, help="folder of the published sets")
    command.add_argument("--sets", nargs="+", metavar="SET", help="only these test sets")
    command.add_argument("--backbone", required=True, help="a bundled tag or a checkpoint file")
    command.add_argument("--adapter", help="a folder, or a bundled tag")
    command.add_argument(
        "--tile",
        type=int,
        help="tile side in pixels, of pairs rows of a strip; default: whole images",
    )
    command.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    command.add_argument("--any-count", action="store_true", help="accept incomplete sets")
    command.add_argument("--no-mask-leak", action="store_true", help=MASK_LEAK)
    command.set_defaults(command=model_commands.test, task=None)

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
