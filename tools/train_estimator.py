"""Trains the estimator of damage that the package ships, in minutes on a CPU.

Usage: python tools/train_estimator.py [STEPS]
"""

import sys
from dataclasses import replace
from pathlib import Path

from ir_peft import estimator
from ir_peft.data import photos
from ir_peft.provenance import device_name, git_state, versions


def main() -> None:
    """Trains on the training photographs, tests on photos6 and writes weights and card."""
    options = estimator.Fit()
    if len(sys.argv) > 1:
        options = replace(options, steps=int(sys.argv[1]))
    git = git_state(Path.cwd())
    model, seconds = estimator.fit(photos.train_photos(), options)
    table = estimator.confusion(model, photos.test_set("photos6"), crop=288)
    facts = {
        "training_photographs": [photo.name for photo in photos.train_photos()],
        "test_photographs": "photos6, centre crops of 288 pixels",
        "seconds": round(seconds),
        "device": device_name(),
        "git": git,
        "versions": versions(),
    }
    estimator.write_estimator(estimator.WEIGHTS, model, options, facts, table)
    print(estimator.WEIGHTS.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
