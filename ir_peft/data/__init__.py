"""Photographs, synthetic images, degradations, the field's data sets, and training patches.

Each module stands alone: `photos` (training pack and test sets), `images` (files and tensors),
`deadleaves` (endless synthetic images), `degradations` (seeded objects, and the tasks), `patches`
(training patches and test pairs), `folders` and `folder_pairs` (published data sets in the
user's folder); for stereo `stereo` (made-up training pairs), `stereo_photos` (photographed test
pairs), `stereo_folders` and `stereo_check` (published pairs).
"""

from ir_peft.data import (
    deadleaves,
    degradations,
    folder_pairs,
    folders,
    images,
    patches,
    photos,
    stereo,
    stereo_check,
    stereo_folders,
    stereo_photos,
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
    "stereo",
    "stereo_check",
    "stereo_folders",
    "stereo_photos",
    "write_image",
]
