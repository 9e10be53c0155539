"""MMSegmentation, imported in silence: whoever needs it imports this first."""

import contextlib
import io
import warnings

from stillroom.seg_transfer.framework import find_framework

find_framework()
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # What they say of compiled operators and of a service of their makers: segmentation needs neither.
    warnings.simplefilter("ignore")
    import mmseg.datasets
    import mmseg.models  # noqa: F401
