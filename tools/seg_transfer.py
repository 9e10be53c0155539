"""Train a segmentation model on a backbone: pspnet, fcn, ..., resume, predict. The same as `stillroom-seg-transfer`."""

from stillroom.seg_transfer.cli import main

if __name__ == "__main__":
    main()
