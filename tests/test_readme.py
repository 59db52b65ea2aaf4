"""The README is true: its examples run, its table is what the plans say, its links lead somewhere."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_examples_run() -> None:
    result = doctest.testfile(
        str(README), module_relative=False, verbose=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert result.attempted >= 12
    assert result.failed == 0


def test_first_snippet_about_training_runs_as_it_is_printed() -> None:
    import numpy as np
    import torch

    import ndtorch as nd

    snippet = README.read_text().partition("## Train\n")[2].partition("```python\n")[2].partition("```")[0]
    names = {"np": np, "torch": torch, "nd": nd}
    exec(snippet, names)
    assert names["loader"].epoch == 10
    assert names["loss"].item() < 3


def test_readme_split_takes_every_row_once_and_trains_in_a_new_order() -> None:
    import numpy as np
    import torch

    import ndtorch as nd

    row = README.read_text().partition("| train on some rows, hold out others | ")[2].partition("\n")[0]
    split, *samplers = re.findall("`(.*?)`", row)
    names = {"np": np, "torch": torch, "nd": nd, "n": 100}
    exec(split, names)
    train, held_out = (eval(f"nd.Loader(np.arange(n), n, {sampler})", names) for sampler in samplers)
    (first,), (second,), (others,) = train, train, held_out
    assert not torch.equal(first, second)
    assert (len(first), len(others)) == (80, 20)
    assert sorted([*first.tolist(), *others.tolist()]) == list(range(100))


def test_readme_error_messages_are_the_real_ones() -> None:
    import numpy as np
    import pytest

    import ndtorch as nd

    text = README.read_text()
    with pytest.raises(nd.CopyRequiredError) as refused:
        nd.to_torch(np.zeros((2, 3), dtype=np.uint8)[::-1], copy=False)
    with pytest.raises(nd.LossyCastError) as lossy:
        nd.to_torch(np.array([0.5, 2.0**53 + 2]), dtype="float32", casting="exact")
    assert f"ndtorch.CopyRequiredError: {refused.value}\n" in text
    assert f"ndtorch.LossyCastError: {lossy.value}\n" in text


def test_memory_table_is_what_the_plans_say() -> None:
    readme_table = load(ROOT / "docs" / "readme_table.py")
    text = README.read_text()
    assert readme_table.with_table(text) == text, "run python docs/readme_table.py"


def test_links_to_files_of_the_project_exist() -> None:
    prose = re.sub(r"```.*?```|^\|.*?$", "", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", prose)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_links_within_the_page_lead_to_its_headings() -> None:
    text = re.sub(r"```.*?```", "", README.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links == anchors - {"ndtorch", "what-it-promises"}
