"""The key rules of each project whose files are imported."""

from stillroom.backbone.keys import Rule

# A KDEP `.seg` file, a student converted for its segmentation code: the net's names are bare, those of its
# normalisation are as in the file that it was made of.
KDEP_SEG = (Rule(r"(?!module\.)(.*)", r"\1"),)

# KDEP files were written by the robustness library (Engstrom et al., 2019): the net is under module.model, a second
# time under module.attacker.model, and the input normalisation beside both.
ROBUSTNESS = (
    Rule(r"module\.attacker\..*", None),
    Rule(r"module\.normalizer\.(new_mean|new_std)", r"normalizer.\1"),
    Rule(r"module\.model\.(?:model\.)?(.*)", r"\1"),
    *KDEP_SEG,
)

# KDEP's MobileNet-V2 (each block's layers in one flat Sequential, the last 1x1 convolution outside `features`) in
# torchvision's names, where convolution, norm and activation form groups of their own.
KDEP_MOBILENET_V2 = (
    Rule(r"features\.0\.([01])\.(.*)", r"features.0.\1.\2"),
    Rule(r"features\.1\.conv\.([01])\.(.*)", r"features.1.conv.0.\1.\2"),  # no expansion: depthwise first
    Rule(r"features\.1\.conv\.3\.(.*)", r"features.1.conv.1.\1"),
    Rule(r"features\.1\.conv\.4\.(.*)", r"features.1.conv.2.\1"),
    Rule(r"features\.(\d+)\.conv\.([01])\.(.*)", r"features.\1.conv.0.\2.\3"),  # expansion
    Rule(r"features\.(\d+)\.conv\.3\.(.*)", r"features.\1.conv.1.0.\2"),  # depthwise
    Rule(r"features\.(\d+)\.conv\.4\.(.*)", r"features.\1.conv.1.1.\2"),
    Rule(r"features\.(\d+)\.conv\.6\.(.*)", r"features.\1.conv.2.\2"),  # projection
    Rule(r"features\.(\d+)\.conv\.7\.(.*)", r"features.\1.conv.3.\2"),
    Rule(r"conv\.([01])\.(.*)", r"features.18.\1.\2"),
    Rule(r"classifier\.(weight|bias)", r"classifier.1.\1"),
    Rule(r"normalizer\.(.*)", r"normalizer.\1"),
)

PROJECTION = "@projection."
"""Prefix that a rule gives the tensors of a projection head, which is kept as a head."""

_COUNTED = r"(\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
SELF_SUPERVISED: dict[str, tuple[Rule, ...]] = {
    # the student, its regression head, and the teacher in the same file
    "simreg": (
        Rule(r"(?:module\.)?encoder_q\.(?:module\.)?fc\..*", None),
        Rule(r"(?:module\.)?encoder_q\.(?:module\.)?(.*)", r"\1"),
        Rule(r"(?:module\.)?predict_q\.(?:module\.)?" + _COUNTED, PROJECTION + r"\1"),
        Rule(r"(?:module\.)?encoder_t\..*", None),
    ),
    # the query encoder; MoCo-v2's fc is a projection MLP, MoCo-v1's one linear layer
    "moco": (
        Rule(r"(?:module\.)?encoder_q\.fc\.((?:\d+\.)?(?:weight|bias))", PROJECTION + r"\1"),
        Rule(r"(?:module\.)?encoder_q\.(.*)", r"\1"),
        Rule(r"(?:module\.)?(encoder_k\..*|queue|queue_ptr)", None),
    ),
    "swav": (
        Rule(r"(?:module\.)?projection_head\." + _COUNTED, PROJECTION + r"\1"),
        Rule(r"(?:module\.)?prototypes.*", None),
        Rule(r"(?:module\.)?(.*)", r"\1"),
    ),
    # the backbone alone, the wrapped net, or the teacher of a full training file; its weight-normed head is left out
    "dino": (
        Rule(r"(?:module\.)?(?:teacher\.)?head\..*", None),
        Rule(r"(?:module\.)?(?:teacher\.)?(?:backbone\.)?(?:_orig_mod\.)?(.*)", r"\1"),
    ),
}
"""Files of self-supervised training: the backbone in its library's names, the projection head under `PROJECTION`."""

DATA_PARALLEL = (Rule(r"module\.(.*)", r"\1"), Rule(r"(.*)", r"\1"))
