"""The public names that need torch, imported together: torch.compile has to find all of them there."""

from . import _compile as _compile  # torch.compile is told of our functions whether or not anybody asks the doctor
from ._act import Masked
from ._checkpoint import Checkpoint, to_checkpoint
from ._collate import collate
from ._convert import explain, shares_memory, to_numpy, to_torch
from ._functions import numpy_io, torch_io
from ._images import image_to_numpy, image_to_torch
from ._plan import Plan
from ._read import read
from ._stack import stack
from ._trace import trace
from ._write import convert_file, write

__all__ = [
    "Checkpoint",
    "Masked",
    "Plan",
    "collate",
    "convert_file",
    "explain",
    "image_to_numpy",
    "image_to_torch",
    "numpy_io",
    "read",
    "shares_memory",
    "stack",
    "to_checkpoint",
    "to_numpy",
    "to_torch",
    "torch_io",
    "trace",
    "write",
]
