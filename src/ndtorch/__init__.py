"""The bridge between NumPy and PyTorch.

Shares memory when that is sound, copies once when it is not, says which and why.
"""

from ._act import Masked
from ._checkpoint import Checkpoint, to_checkpoint
from ._collate import collate
from ._convert import explain, shares_memory, to_numpy, to_torch
from ._doctor import doctor
from ._errors import (
    CopyRequiredError,
    FormatError,
    InvalidOptionError,
    LossyCastError,
    MissingDependencyError,
    NdtorchError,
    ShapeMismatchError,
    UnsupportedDtypeError,
    UnsupportedTypeError,
)
from ._functions import numpy_io, torch_io
from ._images import image_to_numpy, image_to_torch
from ._plan import Plan
from ._stack import stack
from ._trace import trace

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "CopyRequiredError",
    "FormatError",
    "InvalidOptionError",
    "LossyCastError",
    "Masked",
    "MissingDependencyError",
    "NdtorchError",
    "Plan",
    "ShapeMismatchError",
    "UnsupportedDtypeError",
    "UnsupportedTypeError",
    "collate",
    "doctor",
    "explain",
    "image_to_numpy",
    "image_to_torch",
    "numpy_io",
    "shares_memory",
    "stack",
    "to_checkpoint",
    "to_numpy",
    "to_torch",
    "torch_io",
    "trace",
]


def __dir__() -> list[str]:
    return __all__
