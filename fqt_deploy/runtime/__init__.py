"""Runs compiled training steps; needs neither PyTorch nor the compiler."""

from fqt_deploy.runtime.session import Session, load

__all__ = ["Session", "load"]
