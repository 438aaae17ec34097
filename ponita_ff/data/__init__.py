"""Reading and splitting labelled configurations; independent of any model.

The download of public datasets is in `ponita_ff.data.download`. It is not imported here: its function ``download``
would hide the module of that name.
"""

from ponita_ff.data.asedb import AseDbFrames
from ponita_ff.data.extxyz import iter_extxyz, read_isolated_atoms
from ponita_ff.data.frames import (
    DataError,
    Frame,
    FrameSequence,
    InMemoryFrames,
    JoinedFrames,
    Subset,
    check_plausible,
    file_sha256,
    files_sha256,
    frame_sizes,
)
from ponita_ff.data.hdf5 import Hdf5Frames, write_hdf5
from ponita_ff.data.npz import NpzFrames
from ponita_ff.data.reading import read_frames
from ponita_ff.data.splits import Split, joined_split, random_split, read_index_file, rmd17_archive_split, rmd17_split
from ponita_ff.units import Units

__all__ = [
    "AseDbFrames",
    "DataError",
    "Frame",
    "FrameSequence",
    "Hdf5Frames",
    "InMemoryFrames",
    "JoinedFrames",
    "NpzFrames",
    "Split",
    "Subset",
    "Units",
    "check_plausible",
    "file_sha256",
    "files_sha256",
    "frame_sizes",
    "iter_extxyz",
    "joined_split",
    "random_split",
    "read_frames",
    "read_index_file",
    "read_isolated_atoms",
    "rmd17_archive_split",
    "rmd17_split",
    "write_hdf5",
]
