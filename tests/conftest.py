"""What holds for every test: seeds, how hard Hypothesis looks, and what is skipped where there is no GPU."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples on every run and every machine: a failure is a change of the code, never luck.
settings.register_profile("ndtorch", derandomize=True, deadline=None, max_examples=120, print_blob=False)
settings.load_profile("ndtorch")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
