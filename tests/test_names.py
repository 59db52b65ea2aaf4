"""Names of arrays: a structure taken apart and put together is the same dicts, and no name is ever a way out."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ndtorch as nd
from ndtorch.files.names import checked, flatten, nested

pytestmark = pytest.mark.once

steps = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=5).filter(
    lambda step: step not in (".", "..")
)
trees = st.recursive(st.just("leaf"), lambda inner: st.dictionaries(steps, inner, min_size=1, max_size=3), max_leaves=9)


@given(trees.filter(lambda tree: isinstance(tree, dict)))
def test_dicts_come_back_as_they_were(tree):
    assert nested(flatten(tree, "x")) == tree


@given(st.dictionaries(steps, st.integers(), max_size=4))
def test_plain_names_stay_as_they_are(leaves):
    assert flatten(leaves, "x") == nested(leaves) == leaves


def test_the_table_of_the_module_holds():
    x, y = np.ones(2), np.zeros(2)
    assert list(flatten({"a": {"b": x}}, "s")) == ["a/b"]
    assert list(flatten({"a": [x, y]}, "s")) == ["a/0", "a/1"]
    assert nested(flatten({"a": [1, x]}, "s")) == {"a": {"0": 1, "1": x}}
    assert list(flatten({0: x}, "s")) == ["0"]
    assert flatten({"a": [1, 2]}, "s") == {"a": [1, 2]}
    assert flatten([[1, 2], [3, 4]], "s") == {"s": [[1, 2], [3, 4]]}
    assert flatten(x, "s")["s"] is x
    assert list(flatten(OrderedDict(b=x, a=y), "s")) == ["b", "a"]


def test_lists_of_numbers_are_one_array_and_other_lists_are_not():
    for one in ([1], (1, 2.5), [True], [[1], [2]], [np.float32(1)], [np.bool_(True)], [1j]):
        assert list(flatten({"a": one}, "s")) == ["a"]
    for several in ([np.ones(2)], ["text"], [1, "text"], [[1], "text"], [None]):
        assert list(flatten({"a": several}, "s")) == [f"a/{i}" for i in range(len(several))]


def test_empty_structures_have_no_names():
    assert flatten({}, "x") == flatten([], "x") == flatten({"a": {}, "b": []}, "x") == {}


@pytest.mark.parametrize("tree", [{"a": {"b": 1}, "a/b": 2}, {0: 1, "0": 2}, {"a": [None], "a/0": 2}])
def test_two_arrays_of_one_name_are_an_error(tree):
    with pytest.raises(nd.FormatError, match="two arrays would have the name"):
        flatten(tree, "x")


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a//b", ".", "..", "../a", "a/../b", "a/.", "a\0b", "\udc80", "a/\ud800"]
)
def test_names_that_lead_elsewhere_or_nowhere_are_refused(name):
    with pytest.raises(nd.FormatError):
        checked(name)
    with pytest.raises(nd.FormatError):
        flatten({name: 1}, "x")
    with pytest.raises(nd.FormatError):
        flatten(1, name)


@pytest.mark.parametrize(
    "name", ["a", "a/b", "...", "..a", "a.npy", "C:", "é 名", "a\nb", "\x1b[31m", "a\\b", "~", "x" * 5000]
)
def test_other_names_are_kept_as_they_are(name):
    assert checked(name) == name


@pytest.mark.parametrize("key", [1.5, None, True, (1, 2), b"a"])
def test_keys_that_are_no_names_are_refused(key):
    with pytest.raises(nd.UnsupportedTypeError, match="is no name of an array"):
        flatten({key: 1}, "x")


def test_depth_is_bounded_and_a_structure_may_hold_itself():
    deep = leaf = {}
    for _ in range(90):
        leaf["a"] = leaf = {}
    leaf["x"] = 1
    assert list(flatten(deep, "x")) == ["a/" * 90 + "x"]
    itself: dict = {}
    itself["a"] = itself
    many: list = []
    many += [many] * 5
    for each in (itself, many):
        with pytest.raises(nd.FormatError, match="more than 100 levels deep"):
            flatten(each, "x")


@pytest.mark.parametrize("leaves", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"a/b/c": 1, "a/b": 2}])
def test_an_array_that_is_a_folder_too_cannot_be_nested(leaves):
    with pytest.raises(nd.FormatError, match="would be the name"):
        nested(leaves)


def test_leaves_that_are_dicts_are_not_mixed_up_with_folders():
    with pytest.raises(nd.FormatError, match="would be the name"):
        nested({"a": np.ones(2), "a/b": np.ones(2)})
