"""Export: lowered graphs in other formats, ONNX."""

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops whose bodies are exported
