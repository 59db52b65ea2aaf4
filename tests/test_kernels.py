"""The kernels of every level of vector instructions give the same bits."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

DIGEST = """
import hashlib
import numpy as np
import ndtorch as nd
from ndtorch import _native
from ndtorch._dtypes import TABLE

rng = np.random.default_rng(0)
digest = hashlib.sha256()
rows = [row for row in TABLE if row.numpy is not None]
for source in rows:
    bits = rng.integers(0, 2 if source.name == "bool" else 256, (67, 35 * source.itemsize), dtype=np.uint8)
    array = bits.view(source.numpy)
    for layout in (array, array.T, array[::-1, ::-3], array.astype(array.dtype.newbyteorder())):
        for target in rows:
            for casting in ("unsafe", "exact"):
                try:
                    tensor = nd.to_torch(layout, dtype=target.torch, casting=casting, copy=True)
                except nd.LossyCastError as error:
                    digest.update(repr(error.index).encode())
                else:
                    digest.update(nd.to_numpy(tensor).tobytes())
for dtype in ("u1", "u2", "f4"):
    pixels = rng.integers(0, 255, (2, 33, 35, 3)).astype(dtype)
    for out in ("float32", "float16", "bfloat16"):
        planes = nd.image_to_torch(pixels, dtype=out, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.7))
        digest.update(nd.to_numpy(planes).tobytes())
        digest.update(nd.image_to_numpy(planes, mean=0.4, std=0.2).tobytes())
print(_native.level(), digest.hexdigest())
"""
LEVELS = ("baseline", "x86_64_v3", "x86_64_v4")


def digest_of(level: str) -> tuple[str, str]:
    environment = {**os.environ, "NDTORCH_LEVEL": level}
    run = [sys.executable, "-W", "ignore", "-c", DIGEST]
    used, digest = subprocess.check_output(run, text=True, env=environment).split()
    return used, digest


@pytest.mark.once
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has several levels")
def test_all_levels_give_the_same_bits() -> None:
    digests = dict(digest_of(level) for level in LEVELS)
    assert "baseline" in digests
    assert len(set(digests.values())) == 1, digests
