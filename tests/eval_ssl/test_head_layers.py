"""Features inside a kept head, against a forward pass by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.backbone import load_checkpoint, replace_input, save_checkpoint
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.heads import describe_head
from stillroom.eval_ssl import FeaturesConfig, KnnConfig, evaluate, extract_features
from stillroom.images import read_labelled
from stillroom.runs import Run, read_results


@pytest.fixture
def student_with_head(student: Path, tmp_path: Path) -> Path:
    """A student that keeps SimReg's four layers, in which batch norms have seen data, and a linear classifier."""
    torch.manual_seed(1)
    first = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64)]
    head = nn.Sequential(*first, nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 96))
    head(torch.randn(64, 64))
    heads = {
        name: (describe_head(kept), kept.state_dict())
        for name, kept in (("distill", head), ("linear", nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 7))))
    }
    backbone, _ = load_checkpoint(student)
    save_checkpoint(tmp_path / "kept", backbone, method="simreg", package="stillroom-distill", heads=heads)
    return tmp_path / "kept"


@pytest.fixture
def features_config(config: KnnConfig, student_with_head: Path) -> FeaturesConfig:
    return FeaturesConfig(
        checkpoint=(str(student_with_head),),
        train=config.train,
        out=config.out,
        head="distill",
        size=16,
        workers=0,
        device="cpu",
    )


def by_hand(head: dict[str, np.ndarray], pooled: np.ndarray, layer: int) -> np.ndarray:
    """SimReg's head up to a layer: 1 Linear, BN, ReLU; 2 Linear; 3 Linear, BN, ReLU; 4 Linear."""
    x = pooled.astype(np.float64)
    for linear, norm in ((0, 1), (3, None), (4, 5), (7, None))[:layer]:
        x = x @ head[f"{linear}.weight"].T + head[f"{linear}.bias"]
        if norm is not None:
            scale = head[f"{norm}.weight"] / np.sqrt(head[f"{norm}.running_var"] + 1e-5)
            x = np.maximum((x - head[f"{norm}.running_mean"]) * scale + head[f"{norm}.bias"], 0)
    return x


@pytest.mark.parametrize(("layer", "dim"), [(1, 128), (2, 64), (3, 128), (4, 96)])
def test_features_after_a_layer_are_those_of_a_forward_pass_by_hand(
    features_config: FeaturesConfig, run: Run, layer: int, dim: int
) -> None:
    out = evaluate(replace(features_config, head_layer=layer))
    assert read_results(out).protocol.endswith(f" head=distill head-layer={layer}")
    (student,) = features_config.checkpoint
    backbone = replace_input(load_checkpoint(student)[0], size=16)
    pooled = extract_features(backbone, read_labelled(features_config.train), run, workers=0).features.numpy()
    head = {name: tensor.double().numpy() for name, tensor in load_heads(student, "distill").items()}
    features = np.load(out / "train.npy")
    assert features.shape == (36, dim)
    np.testing.assert_allclose(features, by_hand(head, pooled, layer), rtol=1e-4, atol=1e-5)


def test_a_layer_has_the_norm_before_it_and_another_cache(features_config: FeaturesConfig) -> None:
    linear = evaluate(replace(features_config, head="linear", head_layer=1, out=features_config.out.with_name("1")))
    whole = evaluate(replace(features_config, head="linear", out=features_config.out.with_name("whole")))
    assert np.array_equal(np.load(linear / "train.npy"), np.load(whole / "train.npy"))
    assert read_results(whole).protocol.endswith(" head=linear")
    first = evaluate(replace(features_config, head_layer=1, out=features_config.out.with_name("first")))
    third = evaluate(replace(features_config, head_layer=3, out=features_config.out.with_name("third")))
    assert not np.array_equal(np.load(first / "train.npy"), np.load(third / "train.npy"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"head_layer": 5}, r"--head-layer is 5: the head has 4; leave it out for the whole head"),
        ({"head_layer": 0}, r"--head-layer is 0: it must be at least 1"),
        ({"head_layer": 2, "head": None}, r"--head-layer 2 is a layer of a head: pass --head, such as distill"),
        ({"head_layer": 2, "head": "x"}, r"keeps no head named 'x'; it keeps \['distill', 'linear'\]"),
        ({"head_layer": 2, "level": -1}, r"--head takes the pooled feature"),
    ],
)
def test_layers_that_do_not_exist_are_one_sentence(
    features_config: FeaturesConfig, changes: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate(replace(features_config, **changes))
    assert not features_config.out.exists()
