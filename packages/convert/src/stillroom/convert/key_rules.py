"""The key rules of each project whose files are imported, for keys without the prefixes of `WRAPPER`."""

import re
from collections.abc import Iterable, Sequence

from stillroom.convert.keys import Rule

_BODIES = "backbone|encoder|student_backbone|student_encoder"
_WRAPPERS = f"_orig_mod|_fsdp_wrapped_module|module|model|net|{_BODIES}"
WRAPPER = rf"(?:(?:{_WRAPPERS})\.)*"
"""Prefixes that compilers, parallel wrappers and training scripts put before a net's own names, in any order."""

EMA_NAME = r"(?:\w+_)?(?:ema|swa)(?:_\w+)?|averaged_model"
"""Names of a moving average, as a module or as an entry of a file."""
EMA_MODULE = rf"(?:{EMA_NAME}|(?:momentum|teacher)_(?:backbone|encoder)|(?:backbone|encoder)_momentum)(?:\.ema_model)?"
"""Names of the module that holds a moving average beside the net."""

# The tensors of a training step rather than of the net: an average's counters, a loss with its class weights, and the
# counts of torchmetrics.
_METRICS = r"(?:train|valid|val|test)_\w+\..*|(?:\w+_)?(?:acc|accuracy|metrics?)\d*\..*"
_OF_THE_STEP = rf"n_averaged|num_updates|steps?|decay|initted|(?:criterion|loss|loss_fn|criteria)(?:\..*)?|{_METRICS}"

# Heads beside a net that a training script calls `backbone` or `encoder`; a classifier of the net itself lies inside.
_HEADS = r"heads?|\w+_head|fc|classifier|linear|neck|project\w*|predict\w*|momentum_\w+|\w+_momentum"
_BESIDE = Rule(rf"(?!.*\b(?:{_BODIES})\.){WRAPPER}(?:{_HEADS})\..*", None)

PLAIN = (Rule(r"(.*)", r"\1"),)
"""The library's own names."""


def wrapped(rules: Sequence[Rule], keys: Iterable[str]) -> tuple[Rule, ...]:
    """The rules for keys with any prefixes, among them keys of the training step, which are left out."""
    inside = any(re.match(rf"{WRAPPER}(?:{_BODIES})\.", key) for key in keys)
    beside = (_BESIDE,) if inside and rules == PLAIN else ()
    of_the_step = Rule(f"{WRAPPER}(?:{_OF_THE_STEP})", None)
    return (of_the_step, *beside, *(Rule(WRAPPER + rule.pattern, rule.name) for rule in rules))


# A KDEP `.seg` file, a student converted for its segmentation code: the net's names are bare, those of its
# normalisation are as in the file that it was made of.
KDEP_SEG = (Rule(r"(?<!\.)(?!module\.)(.*)", r"\1"),)

# KDEP files were written by the robustness library (Engstrom et al., 2019): the net is under module.model, a second
# time under module.attacker.model, and the input normalisation beside both.
ROBUSTNESS = (
    Rule(rf"{WRAPPER}attacker\..*", None),
    Rule(rf"{WRAPPER}normalizer\.(new_mean|new_std)", r"normalizer.\1"),
    Rule(rf"{WRAPPER}(?:emb|l2norm|feat_scale)(?:\..*)?", None),  # of other losses; KDEP's own scripts drop them
    Rule(rf"{WRAPPER}model\.{WRAPPER}(.*)", r"\1"),
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

# Files of self-supervised training: the backbone in its library's names, the projection head under `PROJECTION`.

# the student, its regression head, and the teacher in the same file
SIMREG = (
    Rule(rf"encoder_q\.{WRAPPER}fc\..*", None),
    Rule(rf"encoder_q\.{WRAPPER}(.*)", r"\1"),
    Rule(rf"predict_q\.{WRAPPER}{_COUNTED}", rf"{PROJECTION}\1"),
    Rule(r"encoder_t\..*", None),
)

# the query encoder; MoCo-v2's fc is a projection MLP, MoCo-v1's one linear layer
MOCO = (
    Rule(rf"encoder_q\.{WRAPPER}fc\.((?:\d+\.)?(?:weight|bias))", rf"{PROJECTION}\1"),
    Rule(rf"encoder_q\.{WRAPPER}(.*)", r"\1"),
    Rule(r"(encoder_k\..*|queue|queue_ptr)", None),
)

SWAV = (
    Rule(rf"projection_head\.{_COUNTED}", rf"{PROJECTION}\1"),
    Rule(r"prototypes.*", None),
    Rule(r"(.*)", r"\1"),
)

# the backbone alone, the wrapped net, or the teacher of a full training file; its weight-normed head is left out
DINO = (
    Rule(r"student\..*", None),
    Rule(rf"(?:teacher\.{WRAPPER})?head\..*", None),
    Rule(rf"(?:teacher\.{WRAPPER})?(.*)", r"\1"),
)

# bare, as its converter writes it, or the teacher that SimReg's evaluation reads
BYOL = (
    Rule(r"(?:encoder_k|predict_q|projector|predictor|queue|queue_ptr)(?:\..*)?", None),
    Rule(rf"(?:encoder_q\.{WRAPPER})?(.*)", r"\1"),
)


def _number_simclr_layers() -> tuple[Rule, ...]:
    """The rules from TensorFlow's layer numbers to torchvision's names: the stem is 0, and a stage begins with the
    shortcut of its first block."""
    layers = [("conv1", "bn1")]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            shortcut = [("downsample.0", "downsample.1")] if block == 0 else []
            names = [*shortcut, *((f"conv{i}", f"bn{i}") for i in (1, 2, 3))]
            layers += [(f"layer{stage}.{block}.{conv}", f"layer{stage}.{block}.{norm}") for conv, norm in names]
    rules = []
    for number, (conv, norm) in enumerate(layers):
        suffix = f"_{number}" if number else ""
        rules += [Rule(rf"conv2d{suffix}\.(.*)", rf"{conv}.\1")]
        rules += [Rule(rf"batch_normalization{suffix}\.(.*)", rf"{norm}.\1")]
    return tuple(rules)


# SimReg's ResNet-50x4 keeps TensorFlow's layer numbers; other converted files have torchvision's names
SIMCLR = (*_number_simclr_layers(), *PLAIN)
