"""The key rules of other projects: every key falls under one."""

import pytest
import torch
import torchvision

from stillroom.backbone import CheckpointError
from stillroom.convert.importing import complete
from stillroom.convert.key_rules import KDEP_MOBILENET_V2, PLAIN, ROBUSTNESS, wrapped
from stillroom.convert.keys import rename

ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("my_module.fc", "my_module.fc"),
        ("_orig_mod.module.model.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("model.backbone.module.conv1.weight", "conv1.weight"),
        ("net.encoder.model.conv1.weight", "conv1.weight"),
        ("module.n_averaged", None),
        ("criterion.weight", None),
        ("model.loss_fn.weight", None),
        ("student_backbone.conv1.weight", "conv1.weight"),
        ("train_acc.tp", None),
        ("val_confusion.confmat", None),
        ("top1_accuracy.correct", None),
        ("metrics.total", None),
    ],
)
def test_prefixes_are_stripped_in_any_order_and_tensors_of_the_step_are_left_out(key: str, name: str | None) -> None:
    renamed = rename({key: ONE}, wrapped(PLAIN, [key]), "f")
    assert [*renamed.tensors] == ([name] if name else [])
    assert renamed.left_out == ([] if name else [key])


def test_heads_beside_a_backbone_are_left_out_and_its_own_classifier_is_kept() -> None:
    state = {"model.backbone.conv1.weight": ONE, "model.backbone.fc.weight": ONE}
    beside = {f"model.{name}.0.weight": ONE for name in ("head", "projection_head_momentum", "momentum_projector")}
    renamed = rename(state | beside, wrapped(PLAIN, state), "f")
    assert [*renamed.tensors] == ["conv1.weight", "fc.weight"]
    assert renamed.left_out == [*beside]
    alone = {"model.conv1.weight": ONE, "model.head.weight": ONE}
    assert [*rename(alone, wrapped(PLAIN, alone), "f").tensors] == ["conv1.weight", "head.weight"]


def test_two_tensors_that_a_prefix_kept_apart_are_refused() -> None:
    state = {"model.fc.weight": ONE, "module.fc.weight": ONE}
    with pytest.raises(CheckpointError, match=r"two tensors become 'fc\.weight', one of them is 'module\.fc"):
        rename(state, wrapped(PLAIN, state), "f")


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
