"""Photographs, synthetic images, degradations, the field's data sets, and training patches.

Each module stands alone: `photos` (training pack and test sets), `images` (files and tensors),
`deadleaves` (endless synthetic images), `degradations` (seeded objects, and the tasks), `patches`
(training patches and test pairs), `folders` and `folder_pairs` (published data sets in the
user's folder).
"""

from ir_peft.data import (
    deadleaves,
    degradations,
    folder_pairs,
    folders,
    images,
    patches,
    photos,
)
from ir_peft.data.images import read_image, write_image

__all__ = [
    "deadleaves",
    "degradations",
    "folder_pairs",
    "folders",
    "images",
    "patches",
    "photos",
    "read_image",
    "write_image",
]
