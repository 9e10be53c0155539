"""Heads: small nets on a pooled feature, kept in heads.safetensors and rebuilt from their description."""

from collections.abc import Mapping

from torch import Tensor, nn

from stillroom.backbone.manifest import CheckpointError, Head

CLASSIFIER = "classifier"
PROJECTION = "projection"
"""Names of the heads that an import keeps."""

LAYERS = {nn.Linear: "linear", nn.BatchNorm1d: "batchnorm", nn.SyncBatchNorm: "batchnorm", nn.ReLU: "relu"}
"""The layers of a head and their names in `Head.kind`, for instance `linear-batchnorm-relu-linear`."""


def describe_head(head: nn.Sequential, classes: tuple[str, ...] = ()) -> Head:
    """Describe a head of linear layers (at least one), batch norms and ReLUs for a manifest, or raise ValueError."""
    if unknown := [type(layer).__name__ for layer in head if type(layer) not in LAYERS]:
        raise ValueError(f"a head is made of {', '.join(dict.fromkeys(LAYERS.values()))}, not of {unknown[0]}")
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError("a head needs a linear layer")
    kind = "-".join(LAYERS[type(layer)] for layer in head)
    return Head(kind=kind, in_dim=linears[0].in_features, out_dim=linears[-1].out_features, classes=classes)


def build_head(description: Head, tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Rebuild a kept head: pooled feature (b, in_dim) -> (b, out_dim), in eval mode.

    A head of one linear layer may have the keys `weight` and `bias`, as classifiers do; otherwise the keys are those
    of an `nn.Sequential`, `0.weight` and so on.

    Raises:
        CheckpointError: an unknown layer, or tensors that do not fit the description.
    """
    names = description.kind.split("-")
    if unknown := sorted(set(names) - set(LAYERS.values())):
        raise CheckpointError(f"head {description.kind!r} has layers that are not known here: {', '.join(unknown)}")
    if description.kind == "linear":  # `weight`, or with its index in the Sequential it came from, `1.weight`
        tensors = {f"0.{key.split('.')[-1]}": tensor for key, tensor in tensors.items()}
    layers: list[nn.Module] = []
    width = description.in_dim
    for index, name in enumerate(names):
        match name:
            case "linear":
                if (weight := tensors.get(f"{index}.weight")) is None:
                    raise CheckpointError(f"head {description.kind!r} lacks the tensor {index}.weight")
                layers.append(nn.Linear(width, weight.shape[0], bias=f"{index}.bias" in tensors))
                width = weight.shape[0]
            case "batchnorm":
                layers.append(nn.BatchNorm1d(width, affine=f"{index}.weight" in tensors))
            case _:
                layers.append(nn.ReLU())
    head = nn.Sequential(*layers)
    try:
        head.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(f"the tensors of head {description.kind!r} do not fit it: {error}") from error
    return head.eval()
