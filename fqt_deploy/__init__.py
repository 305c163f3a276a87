"""fqt-deploy: compile a PyTorch model into a 1-bit fully quantized training step that runs without PyTorch.

Public names are resolved on first use, so that ``import fqt_deploy.runtime`` loads neither torch nor the compiler.
"""

__version__ = "0.1.0"
