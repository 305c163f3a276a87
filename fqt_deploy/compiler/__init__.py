"""From a model to an artifact on disk: capture, passes, code generation, verification, profile."""

from fqt_deploy.compiler.compile_model import CompileResult, compile_model
from fqt_deploy.compiler.profile import LayerTiming, profile_artifact
from fqt_deploy.compiler.verify import VerificationReport, VerificationRow

__all__ = ["CompileResult", "LayerTiming", "VerificationReport", "VerificationRow", "compile_model", "profile_artifact"]
