"""The compiler: from a model to an artifact on disk, by capture, passes, code generation, verification and profile."""

from fqt_deploy.compiler.check import CheckReport, check_model
from fqt_deploy.compiler.compile_model import CompileResult, LoweredModel, check_can_compile, compile_model, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference, export_onnx_step
from fqt_deploy.compiler.profile import check_can_profile, compare_with_torch
from fqt_deploy.compiler.verify import VerificationReport, VerificationRow

__all__ = [
    "CheckReport",
    "CompileResult",
    "LoweredModel",
    "VerificationReport",
    "VerificationRow",
    "check_can_compile",
    "check_can_profile",
    "check_model",
    "compare_with_torch",
    "compile_model",
    "export_onnx",
    "export_onnx_inference",
    "export_onnx_step",
    "lower_model",
]
