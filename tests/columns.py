"""Columns as plain Python lists: what a library says it holds, and what a conversion gave, in the same words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_lists(result: Any) -> Any:
    """Rows of a result: None where a value is missing, a dict for each row of a table."""
    if isinstance(result, torch.Tensor | np.ndarray) and not isinstance(result, np.ma.MaskedArray):
        return result.tolist()
    if isinstance(result, np.ma.MaskedArray):
        return _without(result.data.tolist(), np.ma.getmaskarray(result).tolist())
    if isinstance(result, dict):
        columns = {name: as_lists(column) for name, column in result.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(result, tuple):
        return _without(as_lists(result.data), as_lists(result.mask))
    return [as_lists(row) for row in result]


def _without(rows: list[Any], mask: list[Any]) -> list[Any]:
    return [
        _without(row, gone) if isinstance(gone, list) else None if gone else row
        for row, gone in zip(rows, mask, strict=True)
    ]


def tensors_in(result: Any) -> list[torch.Tensor]:
    """Every tensor of a result."""
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [tensor for part in parts for tensor in tensors_in(part)]
