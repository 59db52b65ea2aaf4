"""Doctor: whether everything that ndtorch stands on fits together, and how to mend what does not.

Each ``check_`` function judges facts that it is given, so that a test can give it broken ones; `doctor` gathers them.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from . import _bridge, _compile

Condition = Literal["ok", "warn", "fail"]

_LIBRARIES = ("ndtorch", "numpy", "torch", "ml_dtypes", "optree", "isal", "typer", "rich")
_OPTIONAL = (
    "scipy",
    "pandas",
    "polars",
    "pyarrow",
    "xarray",
    "awkward",
    "PIL",
    "h5py",
    "zarr",
    "fsspec",
    "dask",
    "ray",
    "jax",
    "cupy",
    "tensorflow",
)
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        status: ``ok``; ``warn``: works, but slower or not tested; ``fail``: does not work.
        fact: What was found.
        hint: What to do about it; empty where there is nothing to do.
    """

    name: str
    status: Condition
    fact: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What `doctor` found: prints as text, shows as a table in a notebook.

    Attributes:
        checks: All checks, in the order they were made.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:4}  {check.name:{width}}  {check.fact}")
            if check.hint:
                lines.append(f"{'':4}  {'':{width}}  Hint: {check.hint}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><td>{check.status}</td><td>{escape(check.name)}</td><td>{escape(check.fact)}</td>"
            f"<td>{escape(check.hint)}</td></tr>"
            for check in self.checks
        )
        return f"<table><tr><th></th><th>check</th><th>fact</th><th>hint</th></tr>{''.join(cells)}</table>"


@dataclass(frozen=True, slots=True)
class Install:
    """One installed copy of a library.

    Attributes:
        version: What its metadata says.
        folder: Where its files lie.
    """

    version: str
    folder: str


def doctor() -> Report:
    """Look at versions, torch's NumPy bridge, the native fast path, torch.compile, memory pages and devices.

    Memory:
        A few bytes. A device is initialised where there is one, to ask for its name.

    Returns:
        A `Report`: print it, or ask ``report.ok``.

    >>> import ndtorch as nd
    >>> nd.doctor().ok
    True
    """
    status = _bridge.status()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return Report(
        (
            check_python(sys.version_info[:3], platform.python_implementation(), sys.executable),
            check_platform(platform.system(), platform.machine()),
            *check_versions({name: _version(name) for name in _LIBRARIES}, _required()),
            check_numpy_bridge(_why_no_bridge(), _loaded_numpy(), _installs("numpy")),
            check_native(status.fast, status.to_torch, status.to_numpy, status.notes),
            check_switch(os.environ.get("NDTORCH_FAST")),
            check_compile(_compile.why_not_traced(), _compile.is_waiting()),
            check_huge_pages(_text(_HUGE_PAGES)),
            check_threads(torch.get_num_threads(), os.cpu_count(), affinity),
            *(check_device(*found) for found in _devices()),
            check_optional(name for name in _OPTIONAL if _is_installed(name)),
        )
    )


# --- judging


def check_python(version: tuple[int, ...], implementation: str, executable: str) -> Check:
    """ndtorch is built and tested for CPython 3.11 and newer."""
    fact = f"{implementation} {_dotted(version)}, {executable}"
    if version < (3, 11):
        return Check("Python", "fail", fact, "install Python 3.11 or newer")
    if implementation != "CPython":
        return Check("Python", "warn", fact, "only CPython is tested")
    return Check("Python", "ok", fact)


def check_platform(system: str, machine: str) -> Check:
    """Linux on x86-64 is what the tests run on."""
    tested = system == "Linux" and machine in ("x86_64", "AMD64")
    return Check("platform", "ok" if tested else "warn", f"{system} {machine}", "" if tested else _UNTESTED)


_UNTESTED = "only Linux on x86-64 is tested: run the tests here before you rely on it"


def check_versions(installed: Mapping[str, str | None], required: Mapping[str, str]) -> list[Check]:
    """Compare versions with the least ones that the installed ndtorch requires."""
    checks = []
    for name, version in installed.items():
        least = required.get(name)
        if version is None:
            checks.append(Check(name, "fail", "not installed", _pip(_at_least(name, least))))
        elif least is not None and _numbers(version) < _numbers(least):
            checks.append(Check(name, "fail", f"{version}, needs {least} or newer", _pip(_at_least(name, least))))
        else:
            checks.append(Check(name, "ok", version if least is None else f"{version} (needs {least})"))
    return checks


def check_numpy_bridge(why_not: str, loaded: Install, installs: Iterable[Install]) -> Check:
    """Find out why torch and NumPy do not know each other (pytorch#146987), or why they soon may not."""
    name = "torch and NumPy"
    found = tuple(installs)
    if not why_not:  # an environment may stand on another: only the copy in use has to be sound
        found = tuple(install for install in found if _same_folder(install.folder, loaded.folder)) or found
    cause, hint = _numpy_trouble(loaded, found)
    if not why_not:
        fact = "torch.from_numpy and Tensor.numpy work"
        return Check(name, "warn", f"{fact}, but {cause}", hint) if cause else Check(name, "ok", fact)
    if not cause:
        cause = f"torch {torch.__version__} cannot use NumPy {loaded.version} from {loaded.folder}: either NumPy was "
        cause += "imported twice in this process, or torch was built without it or for another major version"
        hint = f"start a new process; if that does not help: {_pip('numpy>=2.0', 'torch>=2.10', reinstall=True)}"
    return Check(name, "fail", f"{why_not}: {cause}", hint)


def _numpy_trouble(loaded: Install, installs: tuple[Install, ...]) -> tuple[str, str]:
    reinstall = _pip("numpy>=2.0", reinstall=True)
    if len(installs) > 1:
        found = ", ".join(f"{install.version} in {install.folder}" for install in installs)
        remove = f"{shlex.quote(sys.executable)} -m pip uninstall --yes numpy"
        return f"NumPy is installed {len(installs)} times: {found}", (f"{remove} (once for each), then {reinstall}")
    if not installs:
        return f"NumPy {loaded.version} in {loaded.folder} has no pip metadata", ""
    (installed,) = installs
    if not _same_folder(loaded.folder, installed.folder):
        return (
            f"NumPy {loaded.version} was imported from {loaded.folder}, while pip installed {installed.version} "
            f"in {installed.folder}",
            f"remove or rename {os.path.join(loaded.folder, 'numpy')}, or take its folder off PYTHONPATH",
        )
    if loaded.version != installed.version:
        return (
            f"NumPy calls itself {loaded.version} while its metadata says {installed.version}: "
            "an upgrade was left half done",
            reinstall,
        )
    return "", ""


def check_native(fast: bool, to_torch: str, to_numpy: str, notes: tuple[str, ...]) -> Check:
    """Say which way each direction goes, and why it is not the fast one."""
    fact = f"to_torch: {to_torch}; to_numpy: {to_numpy}"
    if fast:
        return Check("fast path", "ok", "; ".join((fact, *notes)))
    hint = "every result is the same, only slower"
    return Check("fast path", "warn", "; ".join((fact, *notes)), hint)


def check_switch(value: str | None) -> Check:
    """``NDTORCH_FAST=0`` switches the fast path off; nothing else has a meaning."""
    if value is None:
        return Check("NDTORCH_FAST", "ok", "not set: the fast path is used where it works")
    if value == "0":
        return Check("NDTORCH_FAST", "warn", "0: the fast path is switched off", "unset NDTORCH_FAST switches it on")
    if value == "1":
        return Check("NDTORCH_FAST", "ok", "1: the fast path is used where it works")
    return Check("NDTORCH_FAST", "warn", f"{value!r} has no meaning", "NDTORCH_FAST=0 switches the fast path off")


def check_compile(why_not: str, is_waiting: bool) -> Check:
    """Say whether torch.compile can follow a call, or has to break its graph there."""
    name = "torch.compile"
    if why_not:
        hint = "every result is the same, only the graph is in two parts"
        return Check(name, "warn", f"breaks its graph at to_torch and to_numpy: {why_not}", hint)
    when = ", once torch._dynamo is imported" if is_waiting else ""
    return Check(name, "ok", f"traces to_torch and to_numpy{when}")


def check_huge_pages(enabled: str | None) -> Check:
    """Fresh memory on 4 KiB pages costs more than the copy into it."""
    name = "huge pages"
    if enabled is None:
        return Check(name, "ok", "the system does not tell")
    chosen = re.search(r"\[(\w+)\]", enabled)
    if chosen is None:
        return Check(name, "ok", f"the system says {enabled.strip()!r}")
    if chosen[1] == "never":
        fact = "never: large copies go into 4 KiB pages, up to 4 times slower"
        return Check(name, "warn", fact, f"echo madvise | sudo tee {_HUGE_PAGES}")
    return Check(name, "ok", chosen[1])


def check_threads(torch_threads: int, cpus: int | None, affinity: int | None) -> Check:
    """More threads than processors that this process may use slow each other down."""
    usable = affinity or cpus or 1
    fact = f"torch uses {torch_threads}, {usable} of {cpus or 'unknown'} processors may be used"
    if torch_threads > usable:
        return Check("threads", "warn", fact, f"torch.set_num_threads({usable})")
    return Check("threads", "ok", fact)


def check_device(name: str, devices: tuple[str, ...], why_not: str) -> Check:
    """A device that is absent is no fault; one that torch was built for and cannot use is worth a word."""
    if devices:
        return Check(name, "ok", f"{len(devices)}: {', '.join(devices)}")
    if why_not:
        return Check(name, "warn", why_not)
    return Check(name, "ok", "none")


def check_optional(present: Iterable[str]) -> Check:
    """List the libraries whose objects can turn up; none is needed."""
    return Check("optional", "ok", ", ".join(present) or "none")


# --- gathering


def _version(name: str) -> str | None:
    """What is imported counts, if it is; otherwise what is installed."""
    module = sys.modules.get(name)
    version = getattr(module, "__version__", None)
    if version is not None:
        return str(version)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _required() -> dict[str, str]:
    """Least version of each library, as the installed ndtorch says; empty when it was not installed."""
    try:
        lines = metadata.requires("ndtorch") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in lines if "extra ==" not in line)
    return {match[1].replace("-", "_"): match[2] for match in found if match}


def _why_no_bridge() -> str:
    """What torch says to a small array and a small tensor; empty when both ways work."""
    try:
        torch.from_numpy(np.zeros(2))
        torch.zeros(2, device="cpu").numpy()
    except (RuntimeError, TypeError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return ""


def _loaded_numpy() -> Install:
    return Install(np.__version__, str(Path(np.__file__).parent.parent))


def _installs(name: str) -> list[Install]:
    """Every copy that the metadata on sys.path knows of; one folder that is listed twice counts once."""
    found = (Install(found.version, str(found.locate_file(""))) for found in metadata.distributions(name=name))
    return list({(install.version, os.path.realpath(install.folder)): install for install in found}.values())


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _devices() -> list[tuple[str, tuple[str, ...], str]]:
    """Name, devices, and why there are none though torch was built for them."""
    mps = ("Apple GPU",) if torch.backends.mps.is_available() else ()
    return [_devices_of("CUDA", torch.cuda), _devices_of("XPU", torch.xpu), ("MPS", mps, "")]


def _devices_of(name: str, backend: Any) -> tuple[str, tuple[str, ...], str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch warns where a driver is missing or too old
        try:
            count = backend.device_count() if backend.is_available() else 0
            return name, tuple(backend.get_device_name(i) for i in range(count)), _first_line(caught)
        except (RuntimeError, AssertionError) as error:
            return name, (), str(error).splitlines()[0]


def _first_line(caught: list[warnings.WarningMessage]) -> str:
    return str(caught[0].message).splitlines()[0] if caught else ""


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a stand-in that a program put into sys.modules
        return False


# --- words


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, without trailing zeros: 2.10.0+cpu is 2.10."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _at_least(name: str, least: str | None) -> str:
    return name if least is None else f"{name}>={least}"


def _pip(*requirements: str, reinstall: bool = False) -> str:
    words = [sys.executable, "-m", "pip", "install", *(["--force-reinstall"] if reinstall else []), *requirements]
    return shlex.join(words)


def _same_folder(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)
