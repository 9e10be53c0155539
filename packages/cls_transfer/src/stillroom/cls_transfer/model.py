"""A backbone with a linear classifier on its pooled feature."""

from jaxtyping import Float
from torch import Tensor, nn

from stillroom.backbone import Backbone


class Classifier(nn.Module):
    """Logits from the pooled feature behind the last activation, wherever the backbone was distilled.

    Args:
        backbone: read after its last activation from here on.
        num_classes: logits.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone.at("after")
        self.linear = nn.Linear(backbone.spec.dim, num_classes)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        return self.linear(self.backbone(images).pooled)
