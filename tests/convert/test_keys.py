"""Key rules: every key falls under one, or is named."""

import pytest
import torch

from stillroom.backbone import CheckpointError
from stillroom.convert.keys import Rule, rename

ONE, TWO = torch.ones(1), torch.ones(2)


def test_the_first_rule_that_matches_in_full_names_the_key() -> None:
    rules = (Rule(r"a\.(\d+)\.w", r"first.\1"), Rule(r"a\.(.*)", r"second.\1"))
    renamed = rename({"a.3.w": ONE, "a.3.w.x": TWO, "a.b": ONE}, rules, "f").tensors
    assert renamed.keys() == {"first.3", "second.3.w.x", "second.b"}
    assert renamed["first.3"] is ONE and renamed["second.3.w.x"] is TWO


def test_a_rule_without_a_name_leaves_keys_out_and_lists_them() -> None:
    outcome = rename({"junk.1": ONE, "keep": TWO, "junk.2": ONE}, (Rule(r"junk\..*", None), Rule("(.*)", r"\1")), "f")
    assert outcome.tensors.keys() == {"keep"}
    assert outcome.left_out == ["junk.1", "junk.2"]


def test_keys_without_a_rule_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"^f\.pth: no rule for 2 tensors: x, y$"):
        rename({"x": ONE, "a": ONE, "y": ONE}, (Rule("a", "b"),), "f.pth")
    with pytest.raises(CheckpointError, match=r"no rule for 7 tensors: k0, k1, k2, k3, k4, \.\.\.$"):
        rename({f"k{i}": ONE for i in range(7)}, (), "f.pth")


def test_two_keys_that_become_one_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"f: two tensors become 'conv1.weight', one of them is 'conv1.weight'"):
        rename({"module.conv1.weight": ONE, "conv1.weight": ONE}, (Rule(r"(?:module\.)?(.*)", r"\1"),), "f")
