"""Train a classifier on a backbone: finetune, scratch, resume, predict. The same as `stillroom-cls-transfer`."""

from stillroom.cls_transfer.cli import main

if __name__ == "__main__":
    main()
