"""Inspect, verify, import and export checkpoints: inspect | verify | import | export."""

from stillroom.backbone.cli import main

if __name__ == "__main__":
    main()
