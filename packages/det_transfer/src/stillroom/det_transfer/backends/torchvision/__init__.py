"""torchvision's detectors on our backbones: they install wherever torch does."""
