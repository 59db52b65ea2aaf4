"""The package as a whole: what it exports, documents, imports and ships."""

from __future__ import annotations

import ast
import doctest
import fcntl
import importlib
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ndtorch as nd
from ndtorch._report.page import ASSETS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ndtorch"

# A module may import the ones above it and none below.
ORDER = (
    "ndtorch._native",
    "ndtorch._errors",
    "ndtorch._dtypes",
    "ndtorch._torch_dtypes",
    "ndtorch._memory",
    "ndtorch._turns",
    "ndtorch.files.storage",
    "ndtorch.files.indexing",
    "ndtorch.files.joined",
    "ndtorch.files.arrays",
    "ndtorch.files.items",
    "ndtorch.files.output",
    "ndtorch.files.summed",
    "ndtorch.files.names",
    "ndtorch.files.atomic",
    "ndtorch.files.archive",
    "ndtorch.files.npy",
    "ndtorch.files.npz",
    "ndtorch.files.torch_pickle",
    "ndtorch.files.torch_file",
    "ndtorch.files.safetensors",
    "ndtorch.files.pictures",
    "ndtorch.files.folders",
    "ndtorch.files.remote",
    "ndtorch.files.upload",
    "ndtorch.files.chunks",
    "ndtorch.files.hdf5_types",
    "ndtorch.files.hdf5_datasets",
    "ndtorch.files.hdf5",
    "ndtorch.files.zarr_stores",
    "ndtorch.files.zarr_arrays",
    "ndtorch.files.zarr",
    "ndtorch.files.unfinished",
    "ndtorch.files.sharded",
    "ndtorch.files",
    "ndtorch.files.target",
    "ndtorch._drawing",
    "ndtorch._statistics",
    "ndtorch._inspect",
    "ndtorch._report.sample",
    "ndtorch._report.page",
    "ndtorch._report",
    "ndtorch._bridge",
    "ndtorch._casting",
    "ndtorch._options",
    "ndtorch._keywords",
    "ndtorch._objects",
    "ndtorch.foreign.forms",
    "ndtorch.foreign.columnar",
    "ndtorch.foreign.arrow",
    "ndtorch.foreign.protocols",
    "ndtorch.foreign.dask_graph",
    "ndtorch.foreign.dask",
    "ndtorch.foreign.h5py",
    "ndtorch.foreign.jax",
    "ndtorch.foreign.pillow",
    "ndtorch.foreign.indices",
    "ndtorch.foreign.sparse",
    "ndtorch.foreign.pandas",
    "ndtorch.foreign.pandas_like",
    "ndtorch.foreign.xarray",
    "ndtorch.foreign.pyarrow",
    "ndtorch.foreign.polars",
    "ndtorch.foreign.awkward",
    "ndtorch.foreign.tensorflow",
    "ndtorch.foreign.zarr",
    "ndtorch.foreign.lazy",
    "ndtorch.foreign",
    "ndtorch._structures",
    "ndtorch._spec",
    "ndtorch._plain",
    "ndtorch._targets",
    "ndtorch._refusals",
    "ndtorch._plan",
    "ndtorch._trace",
    "ndtorch._compact",
    "ndtorch._act",
    "ndtorch._like",
    "ndtorch._convert",
    "ndtorch._read",
    "ndtorch._file_rows",
    "ndtorch._write",
    "ndtorch._stack",
    "ndtorch._collate",
    "ndtorch._images",
    "ndtorch._arguments",
    "ndtorch._vjp",
    "ndtorch._functions",
    "ndtorch._checkpoint",
    "ndtorch._polyfills",
    "ndtorch._compile",
    "ndtorch._bench",
    "ndtorch._doctor",
    "ndtorch._pairs",
    "ndtorch._convert_many",
    "ndtorch.loader.checks",
    "ndtorch.loader.orders",
    "ndtorch.loader.windows",
    "ndtorch.loader.draws",
    "ndtorch.loader.generators",
    "ndtorch.loader.samplers",
    "ndtorch.loader.ordering",
    "ndtorch.loader.dealing",
    "ndtorch.loader.columns",
    "ndtorch.loader.memory_left",
    "ndtorch.loader.chunk_cache",
    "ndtorch.loader.file_rows",
    "ndtorch.loader.chunk_rows",
    "ndtorch.loader.shard_rows",
    "ndtorch.loader.stored_rows",
    "ndtorch.loader.sample_files",
    "ndtorch.loader.ahead",
    "ndtorch.loader.parts",
    "ndtorch.loader.movable",
    "ndtorch.loader.wishes",
    "ndtorch.loader.reading",
    "ndtorch.loader.pictures",
    "ndtorch.loader.ragged",
    "ndtorch.loader.arrays",
    "ndtorch.loader.samples",
    "ndtorch.loader.live_arrays",
    "ndtorch.loader.file_columns",
    "ndtorch.loader.dataset",
    "ndtorch.loader.sources",
    "ndtorch.loader.ring",
    "ndtorch.loader.staging",
    "ndtorch.loader.cuda",
    "ndtorch.loader.placement",
    "ndtorch.loader.batches",
    "ndtorch.loader.ranks",
    "ndtorch.loader.agreement",
    "ndtorch.loader.state",
    "ndtorch.loader.pace",
    "ndtorch.loader.surroundings",
    "ndtorch.loader.epoch",
    "ndtorch.loader",
    "ndtorch.scale.sizes",
    "ndtorch.scale.units",
    "ndtorch.scale.places",
    "ndtorch.scale.plans",
    "ndtorch.scale.ledger",
    "ndtorch.scale.index",
    "ndtorch.scale.stopping",
    "ndtorch.scale.ahead",
    "ndtorch.scale.rows",
    "ndtorch.scale.outputs",
    "ndtorch.scale.work",
    "ndtorch.scale.copies",
    "ndtorch.scale.lock",
    "ndtorch.scale.engines.outcomes",
    "ndtorch.scale.engines.worker",
    "ndtorch.scale.engines.processes",
    "ndtorch.scale.engines.threads",
    "ndtorch.scale.engines.ray",
    "ndtorch.scale.engines",
    "ndtorch.scale.summary",
    "ndtorch.scale.request",
    "ndtorch.scale.job",
    "ndtorch.scale",
    "ndtorch._bench_loader",
    "ndtorch._bench_tasks",
    "ndtorch._bench_scale",
    "ndtorch._api",
    "ndtorch",
    "ndtorch.commands.printing",
    "ndtorch.commands.options",
    "ndtorch.commands.progress",
    "ndtorch.commands.results",
    "ndtorch.commands.convert_shards",
    "ndtorch.commands.convert",
    "ndtorch.commands.explain",
    "ndtorch.commands.look",
    "ndtorch.commands.machine",
    "ndtorch.commands",
    "ndtorch.cli",
    "ndtorch.__main__",
)

# Imports against the order, each with its reason.
EXCEPTIONS = {
    ("ndtorch._drawing", "ndtorch._plan"): "a type, under TYPE_CHECKING",
    ("ndtorch.foreign", "ndtorch._read"): "a name in the registry, looked up in sys.modules",
}

FOREIGN = (
    *("PIL", "awkward", "cupy", "dask", "h5py", "jax", "pandas", "polars", "pyarrow"),
    *("scipy", "tensorflow", "xarray", "zarr"),
)


def module_name(path: Path) -> str:
    name = ".".join(("ndtorch", *path.relative_to(SOURCE).with_suffix("").parts))
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
KNOWN = {*MODULES, "ndtorch._native"}


def run(command: list[str], **env: str) -> str:
    """What a command prints; a failure fails the test."""
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(code: str, **env: str) -> str:
    return run([sys.executable, "-W", "error", "-c", code], **env)


# ---- what is public ----


def test_all_is_exactly_the_public_names():
    public = {n for n, value in vars(nd).items() if not n.startswith("_") and not isinstance(value, type(sys))}
    assert public | set(nd._LATE) == set(nd.__all__)
    assert nd.__all__ == sorted(nd.__all__)


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(nd) == sorted(nd.__all__)


def test_version_is_the_one_of_the_project():
    assert f'\nversion = "{nd.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


# ---- what is documented ----


@pytest.mark.parametrize("name", nd.__all__)
def test_public_name_has_a_docstring_with_an_example_that_runs(name):
    namespace = {"np": np, "torch": torch, "nd": nd}
    example = doctest.DocTestParser().get_doctest(getattr(nd, name).__doc__ or "", namespace, name, None, None)
    assert example.docstring
    assert example.examples
    assert run_doctests([example]) == 0


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings_of_the_module_run(name):
    names = {"np": np, "torch": torch, "nd": nd}
    assert run_doctests(doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=names)) == 0


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is_for(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


def run_doctests(examples: list[doctest.DocTest]) -> int:
    """How many fail; what they print goes to the report of the test."""
    runner = doctest.DocTestRunner()
    return sum(runner.run(example).failed for example in examples)


def test_a_wrong_example_is_noticed(capsys):
    parser = doctest.DocTestParser()
    assert run_doctests([parser.get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)]) == 1
    assert "Expected:\n    3\nGot:\n    2" in capsys.readouterr().out


# ---- what is imported ----


def imports_of(name: str, tree: ast.AST, *, is_package: bool) -> Iterator[str]:
    """Modules of ndtorch that a module imports, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in KNOWN)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if is_package else name.split(".")[:-1]
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
            found = {f"{origin}.{alias.name}" for alias in node.names}
            yield from found & KNOWN
            if origin in KNOWN and found - KNOWN:
                yield origin
        elif isinstance(node, ast.Constant) and node.value in KNOWN - {"ndtorch"}:
            yield node.value  # the name of a module that is imported when it is needed


def imports_against_the_order(order: tuple[str, ...]) -> set[tuple[str, str]]:
    place = {name: position for position, name in enumerate(order)}  # a missing one is another test's to report
    return {
        (name, imported)
        for name, path in MODULES.items()
        for imported in imports_of(name, ast.parse(path.read_text()), is_package=path.name == "__init__.py")
        if name in place and imported in place and place[imported] >= place[name]
    }


def test_every_module_has_its_place_in_the_one_way_order():
    assert sorted(ORDER) == sorted(KNOWN)


@pytest.mark.once
def test_imports_point_one_way():
    assert imports_against_the_order(ORDER) == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("from ._errors import FormatError", {"ndtorch._errors"}),
        ("from . import _errors, _plan", {"ndtorch._errors", "ndtorch._plan"}),
        ("from . import to_torch", {"ndtorch"}),
        ("def f():\n    import ndtorch._plan as p", {"ndtorch._plan"}),
        ("import ndtorch as nd", {"ndtorch"}),
        ("from ndtorch import to_torch, _plan", {"ndtorch", "ndtorch._plan"}),
        ("importlib.import_module('ndtorch._plan')", {"ndtorch._plan"}),
        ("import numpy; from os import path", set()),
    ],
)
def test_one_way_check_sees_every_form_of_import(line, imported):
    assert set(imports_of("ndtorch._spec", ast.parse(line), is_package=False)) == imported


@pytest.mark.once
def test_one_way_check_notices_an_import_against_the_order():
    assert len(imports_against_the_order(ORDER[::-1])) > len(MODULES)


@pytest.mark.once
def test_import_brings_in_nothing_but_the_dependencies_and_the_standard_library(tmp_path):
    for library in FOREIGN:
        (tmp_path / f"{library}.py").touch()  # there to be imported, if anyone tried
    code = """
import sys, numpy, torch, isal.isal_zlib, ml_dtypes, optree
before = set(sys.modules)
import ndtorch
print(*{name.partition(".")[0] for name in sys.modules} - {name.partition(".")[0] for name in before})
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert set(run_python(code, PYTHONPATH=path).split()) - sys.stdlib_module_names == {"ndtorch"}


@pytest.mark.once
def test_import_brings_in_no_foreign_library_and_no_command_line():
    loaded = set(run_python("import sys, torch, ndtorch; print(*sys.modules)").split())
    assert loaded.isdisjoint({*FOREIGN, "typer", "rich", "safetensors", "ndtorch.cli"})


@pytest.mark.once
@pytest.mark.parametrize("setting", ["enable", "disable"])
@pytest.mark.parametrize("use", ["import torch, ndtorch", "import ndtorch; ndtorch.to_torch"])
def test_an_import_starts_no_collection_and_leaves_the_collector_as_it_was(use, setting):
    code = f"""
import gc, sys
during = []
def watch(phase, _):
    if phase == "start" and "ndtorch._api" in sys.modules and not hasattr(sys.modules["ndtorch._api"], "write"):
        during.append(phase)
gc.callbacks.append(watch)
gc.set_threshold(50, 1, 1)
gc.{setting}()
{use}
print(len(during), gc.isenabled())
"""
    assert run_python(code) == f"0 {setting == 'enable'}\n"


@pytest.mark.once
def test_no_module_of_files_brings_in_torch_or_a_library_of_one_format():
    modules = [name for name in MODULES if name.startswith("ndtorch.files")]
    code = f"import sys, ndtorch; before = {{*sys.modules}}; import {', '.join(modules)}; print(*sys.modules)"
    loaded = set(run_python(code).split())
    assert {*modules} <= loaded
    assert loaded.isdisjoint({"torch", *FOREIGN, "fsspec", "safetensors"})


@pytest.mark.once
def test_looking_into_a_file_brings_in_no_torch(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(2))
    code = f"import sys, ndtorch; ndtorch.files.open_file({str(tmp_path / 'a.npy')!r}); print('torch' in sys.modules)"
    assert run_python(f"import ndtorch.files; {code}") == "False\n"
    code = f"import sys, ndtorch as nd; nd.inspect({str(tmp_path / 'a.npy')!r}); print('torch' in sys.modules)"
    assert run_python(code) == "False\n"


def names_imported_from(module: str, tree: ast.AST) -> set[str]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module)
    return {alias.name for node in found for alias in node.names}


def test_the_lists_of_public_names_agree():
    tree = ast.parse(MODULES["ndtorch"].read_text())
    late, eager = (
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    api = importlib.import_module("ndtorch._api").__all__
    assert api == sorted(api)
    assert names_imported_from("_api", eager) == set(api)
    for name, module in nd._LATE.items():
        assert name in names_imported_from(module, late)
    modules = {"_api", "_errors", *nd._LATE.values()}
    assert set(nd.__all__) == {name for module in modules for name in names_imported_from(module, tree)}


@pytest.mark.once
def test_import_does_not_warn_in_either_setting_of_the_bridge():
    for setting in ("0", "1"):
        assert run_python("import ndtorch", NDTORCH_FAST=setting) == ""


# ---- what is shipped ----


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built without the network; what the build of this checkout has compiled is not compiled again."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet"]
    place = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)  # another process of the tests may build one, too
        run([*command, "-w", str(folder)], PIP_NO_INDEX="1")
    finally:
        os.close(place)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.once
@pytest.mark.slow
def test_wheel_has_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = {name for name in names if name.startswith("ndtorch/")}
    metadata = {name for name in names if name.startswith(f"ndtorch-{nd.__version__}.dist-info/")}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    expected = {f"ndtorch/{path.relative_to(SOURCE).as_posix()}" for path in MODULES.values()}
    expected |= {f"ndtorch/_report/{name}" for name in ASSETS}
    assert package == {*expected, "ndtorch/py.typed", "ndtorch/_native.pyi", f"ndtorch/_native{suffix}"}
    assert {name.rpartition("/")[2] for name in metadata} >= {"METADATA", "RECORD", "LICENSE", "entry_points.txt"}
    assert package | metadata == set(names)


@pytest.mark.once
@pytest.mark.slow
def test_wheel_works_in_an_environment_that_has_never_seen_the_sources(wheel, tmp_path):
    venv.create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)])
    # The dependencies come from here, but not the .pth files here, which may lead to the sources.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path(key) for key in ("purelib", "platlib")}))
    code = """
import numpy as np, ndtorch as nd
array = np.arange(3.0)
nd.to_torch(array)[0] = 7
print(nd.__file__, array[0], nd.shares_memory(array, nd.to_torch(array)))
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(tmp_path / "env" / "bin" / "python"), "-W", "error", "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [str(site / "ndtorch" / "__init__.py"), "7.0", "True"]


def test_no_compiled_file_is_committed():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    committed = run(["git", "-C", str(ROOT), "ls-files"]).split("\n")
    compiled = {".a", ".dll", ".dylib", ".o", ".pyc", ".pyd", ".so", ".whl"}
    assert [name for name in committed if Path(name).suffix in compiled] == []
