"""Reading files of unknown origin: nothing in them is run, and sizes are checked before memory is taken for them."""

from crossnorm_ns.reading.arrays import read_arrays
from crossnorm_ns.reading.documents import MOST_TEXT, read_json, read_text
from crossnorm_ns.reading.errors import MOST_BYTES, FileError, first_line
from crossnorm_ns.reading.mat import read_mat
from crossnorm_ns.reading.meshes import MESH_FORMATS, read_mesh
from crossnorm_ns.reading.pictures import MOST_PIXELS, check_picture, read_picture
from crossnorm_ns.reading.tensors import read_tensors

__all__ = [
    "MESH_FORMATS",
    "MOST_BYTES",
    "MOST_PIXELS",
    "MOST_TEXT",
    "FileError",
    "check_picture",
    "first_line",
    "read_arrays",
    "read_json",
    "read_mat",
    "read_mesh",
    "read_picture",
    "read_tensors",
    "read_text",
]
