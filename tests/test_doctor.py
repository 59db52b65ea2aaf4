"""The doctor: every broken fact is named, with what to do about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ndtorch as nd
from ndtorch import _doctor
from ndtorch._doctor import Check, Install, Report

PIP = f"{sys.executable} -m pip"


def test_this_machine_is_well():
    report = nd.doctor()
    assert report.ok, str(report)
    named = {check.name: check for check in report.checks}
    assert named["numpy"].fact.startswith(np.__version__)
    assert named["torch"].fact.startswith(torch.__version__)
    assert named["torch and NumPy"].fact.startswith("torch.from_numpy and Tensor.numpy work")
    assert {
        "Python",
        "platform",
        "fast path",
        "NDTORCH_FAST",
        "torch.compile",
        "huge pages",
        "threads",
        "CUDA",
        "optional",
    } <= set(named)


def test_looking_imports_no_optional_library():
    code = (
        "import sys, ndtorch; before = set(sys.modules); ndtorch.doctor(); new = set(sys.modules) - before\n"
        f"print([name for name in {_doctor._OPTIONAL!r} if name in new])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_reports_are_not_ok_when_a_check_failed_and_warnings_are_allowed():
    assert Report((Check("a", "ok", "1"), Check("b", "warn", "2"))).ok
    assert not Report((Check("a", "ok", "1"), Check("b", "fail", "2"))).ok


def test_reports_print_as_a_table_with_hints_below():
    report = Report((Check("numpy", "ok", "2.4.6"), Check("huge pages", "warn", "never", "say madvise")))
    assert str(report) == (
        "ok    numpy       2.4.6\n"  #
        "warn  huge pages  never\n"
        "                  Hint: say madvise"
    )
    assert str(Report(())) == ""


def test_reports_are_escaped_in_a_notebook():
    assert "<td>&lt;b&gt;</td>" in Report((Check("x", "ok", "<b>"),))._repr_html_()


@pytest.mark.parametrize(
    ("version", "implementation", "status", "hint"),
    [
        ((3, 11, 7), "CPython", "ok", ""),
        ((3, 10, 1), "CPython", "fail", "install Python 3.11 or newer"),
        ((3, 11, 0), "PyPy", "warn", "only CPython is tested"),
    ],
)
def test_python(version, implementation, status, hint):
    check = _doctor.check_python(version, implementation, "/bin/python")
    assert (check.status, check.hint) == (status, hint)
    assert check.fact == f"{implementation} {'.'.join(map(str, version))}, /bin/python"


def test_platforms_that_are_not_tested_are_named():
    assert _doctor.check_platform("Linux", "x86_64").status == "ok"
    check = _doctor.check_platform("Darwin", "arm64")
    assert (check.status, check.fact) == ("warn", "Darwin arm64")
    assert check.hint == "only Linux on x86-64 is tested: run the tests here before you rely on it"


def test_versions_are_held_against_what_is_required():
    installed = {"numpy": "1.26.4", "torch": "2.10.0+cu128", "optree": None, "rich": "13.0", "typer": "0.12.3rc1"}
    required = {"numpy": "2.0", "torch": "2.10", "optree": "0.14", "typer": "0.12"}
    numpy, torch_, optree, rich, typer = _doctor.check_versions(installed, required)
    assert (numpy.status, numpy.fact) == ("fail", "1.26.4, needs 2.0 or newer")
    assert numpy.hint == f"{PIP} install 'numpy>=2.0'"
    assert (torch_.status, torch_.fact) == ("ok", "2.10.0+cu128 (needs 2.10)")
    assert (optree.status, optree.fact, optree.hint) == ("fail", "not installed", f"{PIP} install 'optree>=0.14'")
    assert (rich.status, rich.fact) == ("ok", "13.0")
    assert typer.status == "ok"


def test_versions_are_numbers_not_text():
    assert _doctor.check_versions({"torch": "2.9.1"}, {"torch": "2.10"})[0].status == "fail"
    assert _doctor.check_versions({"torch": "2.10"}, {"torch": "2.10.0"})[0].status == "ok"


def test_requirements_are_those_of_the_installed_package(monkeypatch):
    lines = ["numpy>=2.0", "ml_dtypes>=0.5", "scikit-learn>=1; extra == 'all'", "rich"]
    monkeypatch.setattr(_doctor.metadata, "requires", lambda name: lines)
    assert _doctor._required() == {"numpy": "2.0", "ml_dtypes": "0.5"}

    def missing(name: str) -> None:
        raise _doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_doctor.metadata, "requires", missing)
    assert _doctor._required() == {}


HERE = Install("2.4.6", "/env/site-packages")
SAYS = "Numpy is not available"


def test_a_working_bridge_is_ok():
    check = _doctor.check_numpy_bridge("", HERE, [HERE])
    assert check == Check("torch and NumPy", "ok", "torch.from_numpy and Tensor.numpy work")


def test_two_copies_of_numpy_are_named_with_the_commands():
    check = _doctor.check_numpy_bridge(SAYS, HERE, [HERE, Install("1.26.4", "/home/me/.local")])
    assert check.status == "fail"
    assert check.fact == (f"{SAYS}: NumPy is installed 2 times: 2.4.6 in /env/site-packages, 1.26.4 in /home/me/.local")
    assert check.hint == (
        f"{PIP} uninstall --yes numpy (once for each), then {PIP} install --force-reinstall 'numpy>=2.0'"
    )


def test_two_copies_in_one_folder_are_a_warning_even_while_the_bridge_works():
    check = _doctor.check_numpy_bridge("", HERE, [HERE, Install("1.26.4", HERE.folder)])
    assert check.status == "warn"
    assert "works, but NumPy is installed 2 times" in check.fact.replace("work, but", "works, but")


def test_an_environment_that_stands_on_another_is_well():
    assert _doctor.check_numpy_bridge("", HERE, [HERE, Install("1.26.4", "/usr/lib/python3")]).status == "ok"


def test_a_shadowing_folder_is_named():
    check = _doctor.check_numpy_bridge(SAYS, Install("2.4.6", "/home/me/project"), [HERE])
    assert check.fact.endswith(
        "NumPy 2.4.6 was imported from /home/me/project, while pip installed 2.4.6 in /env/site-packages"
    )
    assert check.hint == "remove or rename /home/me/project/numpy, or take its folder off PYTHONPATH"


def test_an_upgrade_that_was_left_half_done_is_named():
    check = _doctor.check_numpy_bridge("", Install("2.4.6", HERE.folder), [Install("1.26.4", HERE.folder)])
    assert check.status == "warn"
    assert "NumPy calls itself 2.4.6 while its metadata says 1.26.4: an upgrade was left half done" in check.fact
    assert check.hint == f"{PIP} install --force-reinstall 'numpy>=2.0'"


def test_a_torch_that_does_not_know_this_numpy_is_named():
    check = _doctor.check_numpy_bridge("expected np.ndarray (got numpy.ndarray)", HERE, [HERE])
    assert check.status == "fail"
    assert check.fact.startswith(f"expected np.ndarray (got numpy.ndarray): torch {torch.__version__} cannot use NumPy")
    assert check.hint == (
        f"start a new process; if that does not help: {PIP} install --force-reinstall 'numpy>=2.0' 'torch>=2.10'"
    )


def test_numpy_without_metadata_is_worth_a_word():
    check = _doctor.check_numpy_bridge("", HERE, [])
    assert (check.status, check.hint) == ("warn", "")
    assert "has no pip metadata" in check.fact


def test_the_bridge_is_tried_for_real(monkeypatch):
    assert _doctor._why_no_bridge() == ""

    def refuse(array: object) -> None:
        raise RuntimeError("Numpy is not available.\nmore")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    assert _doctor._why_no_bridge() == SAYS
    report = nd.doctor()
    assert not report.ok
    assert "torch and NumPy  Numpy is not available: " in str(report)


def test_copies_are_found_on_the_path_and_counted_once(tmp_path, monkeypatch):
    for version in ("1.26.4", "1.24.0"):
        info = tmp_path / f"numpy-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {version}\n")
    (tmp_path / "again").symlink_to(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "again")])
    assert sorted(install.version for install in _doctor._installs("numpy")) == ["1.24.0", "1.26.4"]


def test_the_loaded_numpy_is_where_its_metadata_says():
    loaded = _doctor._loaded_numpy()
    assert loaded.version == np.__version__
    assert Path(loaded.folder, "numpy", "__init__.py").samefile(np.__file__)


def test_a_slow_path_says_why():
    check = _doctor.check_native(False, "torch.from_numpy", "torch.Tensor.numpy", ("to_torch is not native: no",))
    assert check.status == "warn"
    assert check.fact == "to_torch: torch.from_numpy; to_numpy: torch.Tensor.numpy; to_torch is not native: no"
    assert check.hint == "every result is the same, only slower"
    assert _doctor.check_native(True, "DLPack", "C shim", ()) == Check(
        "fast path", "ok", "to_torch: DLPack; to_numpy: C shim"
    )


@pytest.mark.parametrize(("value", "status"), [(None, "ok"), ("1", "ok"), ("0", "warn"), ("no", "warn")])
def test_the_switch(value, status):
    check = _doctor.check_switch(value)
    assert check.status == status
    assert ("NDTORCH_FAST" in check.hint) == (status == "warn")


@pytest.mark.parametrize(
    ("text", "status", "fact"),
    [
        ("always [madvise] never\n", "ok", "madvise"),
        ("[always] madvise never\n", "ok", "always"),
        ("always madvise [never]\n", "warn", "never: large copies go into 4 KiB pages, up to 4 times slower"),
        ("spam", "ok", "the system says 'spam'"),
        (None, "ok", "the system does not tell"),
    ],
)
def test_huge_pages(text, status, fact):
    check = _doctor.check_huge_pages(text)
    assert (check.status, check.fact) == (status, fact)
    assert ("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled" in check.hint) == (status == "warn")


def test_a_missing_file_of_the_system_is_no_fault(tmp_path):
    assert _doctor._text(tmp_path / "none") is None


def test_more_threads_than_processors_are_a_warning():
    check = _doctor.check_threads(16, 16, 2)
    assert (check.status, check.hint) == ("warn", "torch.set_num_threads(2)")
    assert check.fact == "torch uses 16, 2 of 16 processors may be used"
    assert _doctor.check_threads(2, 2, None).status == "ok"
    assert _doctor.check_threads(1, None, None).fact == "torch uses 1, 1 of unknown processors may be used"


def test_devices():
    assert _doctor.check_device("CUDA", ("A", "B"), "") == Check("CUDA", "ok", "2: A, B")
    assert _doctor.check_device("CUDA", (), "") == Check("CUDA", "ok", "none")
    assert _doctor.check_device("CUDA", (), "driver too old") == Check("CUDA", "warn", "driver too old")


class Backend:
    """What torch.cuda looks like, as far as the doctor looks."""

    def __init__(self, count: int, trouble: Exception | None = None) -> None:
        self.count = count
        self.trouble = trouble

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_name(self, index: int) -> str:
        if self.trouble is not None:
            raise self.trouble
        return f"GPU {index}"


def test_devices_are_asked_for_their_names_and_may_refuse():
    assert _doctor._devices_of("CUDA", Backend(2)) == ("CUDA", ("GPU 0", "GPU 1"), "")
    assert _doctor._devices_of("CUDA", Backend(0)) == ("CUDA", (), "")
    assert _doctor._devices_of("CUDA", Backend(1, RuntimeError("busy\nmore"))) == ("CUDA", (), "busy")


def test_a_warning_about_a_driver_becomes_a_fact(monkeypatch):
    import warnings

    backend = Backend(0)
    monkeypatch.setattr(backend, "is_available", lambda: warnings.warn("driver too old\nmore", stacklevel=1) or False)
    assert _doctor._devices_of("CUDA", backend) == ("CUDA", (), "driver too old")


def test_optional_libraries_are_listed():
    assert _doctor.check_optional(["scipy", "h5py"]) == Check("optional", "ok", "scipy, h5py")
    assert _doctor.check_optional([]).fact == "none"


def test_a_stand_in_for_a_library_is_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert not _doctor._is_installed("h5py")
    assert _doctor._is_installed("numpy")


def test_versions_of_what_is_not_installed_are_unknown():
    assert _doctor._version("no_such_library") is None


def test_the_switch_is_seen_in_a_new_process():
    code = "import ndtorch; print(ndtorch.doctor()); print(ndtorch.doctor().ok)"
    environment = {**os.environ, "NDTORCH_FAST": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "warn  NDTORCH_FAST     0: the fast path is switched off" in result.stdout
    assert "torch.from_numpy; to_numpy: torch.Tensor.numpy" in result.stdout
    assert result.stdout.endswith("True\n")
