"""Train a segmentation model on a backbone: pspnet, fcn, ..., resume, predict. The same as `stillroom-seg-transfer`."""

import sys

try:
    from stillroom.seg_transfer.cli import main
except ImportError as error:  # of MMSegmentation: it says what to install
    sys.exit(f"error: {error}")

if __name__ == "__main__":
    main()
