"""Register every name that our MMEngine configs use: importing this is among a config's `custom_imports`."""

from stillroom.seg_transfer import bridge, data, heads, metrics, nets, parallel, reproducible, transforms  # noqa: F401
