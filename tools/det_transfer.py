"""Train a detector on a backbone: faster-rcnn-fpn, ..., resume, predict. The same as `stillroom-det-transfer`."""

from stillroom.det_transfer.cli import main

if __name__ == "__main__":
    main()
