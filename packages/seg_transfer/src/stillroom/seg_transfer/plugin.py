"""What a config of MMEngine names is known once this is imported: it is among the config's `custom_imports`."""

from stillroom.seg_transfer import bridge, data, heads, measure, nets, parallel, steady, transforms  # noqa: F401
