"""Heads described in words and rebuilt from them."""

import pytest
import torch
from torch import nn

from stillroom.backbone.heads import build_head, describe_head
from stillroom.backbone.manifest import CheckpointError, Head

HEADS = {
    "linear": nn.Sequential(nn.Linear(6, 4)),
    "batchnorm-linear": nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)),
    "linear-batchnorm": nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)),
    "linear-batchnorm-relu-linear": nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4, bias=False)
    ),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_says_the_same_after_the_round_trip(kind: str) -> None:
    head = HEADS[kind]
    head.train()
    head(torch.randn(16, 6))  # moves the batch norm's statistics
    head.eval()
    described = describe_head(head)
    assert (described.kind, described.in_dim, described.out_dim) == (kind, 6, 4)
    features = torch.randn(3, 6)
    assert torch.equal(build_head(described, head.state_dict())(features), head(features))


def test_a_bare_classifier_is_a_linear_head() -> None:
    classifier = nn.Linear(5, 3)
    head = build_head(Head(kind="linear", in_dim=5, out_dim=3), classifier.state_dict())
    features = torch.randn(2, 5)
    assert torch.equal(head(features), classifier(features))


def test_what_has_no_word_is_refused() -> None:
    with pytest.raises(ValueError, match="not of GELU"):
        describe_head(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    with pytest.raises(ValueError, match="needs a linear layer"):
        describe_head(nn.Sequential(nn.ReLU()))
    with pytest.raises(CheckpointError, match="layers that are not known here: gelu"):
        build_head(Head(kind="linear-gelu", in_dim=2, out_dim=2), {})
    with pytest.raises(CheckpointError, match=r"lacks the tensor 2\.weight"):
        build_head(Head(kind="linear-relu-linear", in_dim=2, out_dim=2), {"0.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="do not fit it"):
        build_head(Head(kind="linear", in_dim=2, out_dim=2), {"0.weight": torch.ones(2, 3)})
