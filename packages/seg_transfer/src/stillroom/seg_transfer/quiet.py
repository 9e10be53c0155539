"""Import MMSegmentation without its warnings; modules that need it import this first."""

import contextlib
import io
import warnings

from stillroom.seg_transfer.framework import find_framework, set_cache_home

find_framework()
set_cache_home()
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # They warn of missing compiled operators and advertise a service; segmentation needs neither.
    warnings.simplefilter("ignore")
    import mmseg.datasets
    import mmseg.models  # noqa: F401
