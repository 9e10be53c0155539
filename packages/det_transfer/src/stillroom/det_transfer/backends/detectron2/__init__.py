"""Detectron2's detectors on our backbones.

Detectron2 is in no package index; `refuse_missing_backend` names the page that says how to install it.
"""
