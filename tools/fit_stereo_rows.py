"""Fit how the right view of a 3D camera's photograph comes to the rows of the left one.

    python tools/fit_stereo_rows.py [--reduce K] FILE.mpo

Prints a, b, c of y_left = a x_right + b y_right + c, the columns to cut off so that no disparity is
negative, the rows that stay, and the residuals before and after: the constants of
`ir_peft/data/stereo_photos.py`. Needs OpenCV, which the package itself does not.

Points are matched by SIFT and kept where one fundamental matrix explains them; the fit repeats
least squares, each equation weighted by 1 / (1 + (r / 0.5)^2) with its residual r of the round
before, so that points matched wrongly lose their say.
"""

from __future__ import annotations

import argparse
import sys

import cv2
import numpy as np
from PIL import Image

from ir_peft.data.stereo_photos import Rows, correct_rows


def read_views(path: str, reduce: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames 0 (left) and 1 (right), (H, W, 3) uint8, each k x k pixels averaged, k = `reduce`."""
    views = []
    with Image.open(path) as file:
        for frame in (0, 1):
            file.seek(frame)
            view = np.asarray(file.convert("RGB"))
            size = view.shape[1] // reduce, view.shape[0] // reduce
            views.append(cv2.resize(view, size, interpolation=cv2.INTER_AREA))
    return views[0], views[1]


def match(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2), x and y, of the left view and theirs in the right one."""
    sift = cv2.SIFT_create(4000)
    found = [
        sift.detectAndCompute(cv2.cvtColor(v, cv2.COLOR_RGB2GRAY), None) for v in (left, right)
    ]
    (points, descriptors), (other_points, other_descriptors) = found
    pairs = cv2.BFMatcher().knnMatch(descriptors, other_descriptors, k=2)
    good = [best for best, second in pairs if best.distance < 0.7 * second.distance]
    a = np.float64([points[m.queryIdx].pt for m in good])
    b = np.float64([other_points[m.trainIdx].pt for m in good])
    _, inlier = cv2.findFundamentalMat(a, b, cv2.FM_RANSAC, 0.7, 0.999)
    kept = inlier.ravel() > 0
    return a[kept], b[kept]


def fit(left: np.ndarray, right: np.ndarray, rounds: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """(a, b, c) and the residuals (n,) of y_left = a x_right + b y_right + c."""
    unknowns = np.column_stack([right, np.ones(len(right))])
    weight = np.ones(len(right))
    for _ in range(rounds):
        solution = np.linalg.lstsq(unknowns * weight[:, None], left[:, 1] * weight, rcond=None)[0]
        residual = left[:, 1] - unknowns @ solution
        weight = 1 / (1 + (residual / 0.5) ** 2)
    return solution, residual


def main() -> int:
    """Fit one file and print its constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--reduce", type=int, default=1)
    options = parser.parse_args()
    left, right = read_views(options.file, options.reduce)
    points = match(left, right)
    (a, b, c), residual = fit(*points)
    H, W = left.shape[:2]
    # A row is whole where its source rows lie inside the right view at both ends.
    ends = np.array([a * x + b * y + c for x in (0, W - 1) for y in (0, H - 1)]).reshape(2, 2)
    first, last = int(np.ceil(max(0, *ends[:, 0]))), int(np.floor(min(H - 1, *ends[:, 1])))
    disparity = points[0][:, 0] - points[1][:, 0]
    shift = int(np.ceil(-np.percentile(disparity, 1)))
    rows = Rows("", "", options.reduce, a, b, c, shift, first, last)
    again = np.subtract(*match(left, correct_rows(right, rows)))
    print(f"a={a:.6f} b={b:.6f} c={c:.3f} first={first} last={last}; {len(residual)} points")
    print(f"median |residual| {np.median(abs(residual)):.2f} px")
    print(f"disparity, 1st percentile {np.percentile(disparity, 1):.1f}: shift of at least {shift}")
    print(f"rows matched again: mean {again[:, 1].mean():.2f}, sd {again[:, 1].std():.2f} px")
    return 0


if __name__ == "__main__":
    sys.exit(main())
