"""The key rules of other projects: every key falls under one."""

import torch
import torchvision

from stillroom.backbone.keys import rename
from stillroom.convert.importing import complete
from stillroom.convert.key_rules import DATA_PARALLEL, KDEP_MOBILENET_V2, ROBUSTNESS

ONE = torch.ones(1)


def test_a_bare_key_and_one_of_data_parallel_get_the_same_name() -> None:
    assert rename({"module.fc.weight": ONE}, DATA_PARALLEL, "f").tensors.keys() == {"fc.weight"}
    assert rename({"fc.weight": ONE}, DATA_PARALLEL, "f").tensors.keys() == {"fc.weight"}
    assert rename({"my_module.fc": ONE}, DATA_PARALLEL, "f").tensors.keys() == {"my_module.fc"}


def test_robustness_keys_lose_their_prefix_and_the_mirror() -> None:
    state = {
        "module.model.conv1.weight": ONE,
        "module.model.model.fc.bias": ONE,
        "module.attacker.model.conv1.weight": ONE,
        "module.attacker.normalize.new_mean": ONE,
        "module.normalizer.new_std": ONE,
    }
    outcome = rename(state, ROBUSTNESS, "f")
    assert outcome.tensors.keys() == {"conv1.weight", "fc.bias", "normalizer.new_std"}
    assert outcome.left_out == ["module.attacker.model.conv1.weight", "module.attacker.normalize.new_mean"]


def test_kdeps_mobilenet_v2_rules_reach_every_key_of_torchvisions_once() -> None:
    kdep = [f"features.0.{i}" for i in (0, 1)] + [f"conv.{i}" for i in (0, 1)] + ["classifier"]
    kdep += [f"features.1.conv.{i}" for i in (0, 1, 3, 4)]
    kdep += [f"features.{block}.conv.{i}" for block in range(2, 18) for i in (0, 1, 3, 4, 6, 7)]
    norms = {
        *(f"features.{block}.conv.{i}" for block in range(2, 18) for i in (1, 4, 7)),
        *("features.0.1", "conv.1", "features.1.conv.1", "features.1.conv.4"),
    }
    vectors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    parts = dict.fromkeys(norms, vectors) | {"classifier": ("weight", "bias")}
    state = {f"{name}.{part}": ONE for name in kdep for part in parts.get(name, ("weight",))}
    renamed = rename(state, KDEP_MOBILENET_V2, "f").tensors
    assert renamed.keys() == torchvision.models.mobilenet_v2().state_dict().keys()


def test_half_precision_becomes_float32_and_says_so() -> None:
    state = {"a": ONE.half(), "b": ONE.bfloat16(), "c": ONE, "n": torch.tensor(3)}
    completed, notes = complete(state, {})
    assert {key: tensor.dtype for key, tensor in completed.items()} == {
        "a": torch.float32,
        "b": torch.float32,
        "c": torch.float32,
        "n": torch.int64,
    }
    assert completed["c"] is ONE
    assert notes == ("2 tensors became float32 from bfloat16, float16",)


def test_absent_counters_become_zero_and_nothing_else_is_made_up() -> None:
    expected = {"bn.num_batches_tracked": torch.tensor(7), "bn.weight": ONE, "conv.weight": ONE}
    completed, notes = complete({"bn.weight": ONE}, expected)
    assert completed.keys() == {"bn.weight", "bn.num_batches_tracked"}
    assert completed["bn.num_batches_tracked"].item() == 0
    assert completed["bn.num_batches_tracked"].dtype == torch.int64
    assert notes == ("1 absent num_batches_tracked became 0",)


def test_a_complete_state_is_left_alone() -> None:
    state = {"bn.num_batches_tracked": torch.tensor(7), "bn.weight": ONE}
    assert complete(state, state) == (state, ())
