"""From a model to an artifact on disk: capture, passes, code generation, verification, profile."""

from fqt_deploy.compiler.compile_model import CompileResult, compile_model
from fqt_deploy.compiler.profile import LayerTiming, check_can_profile, profile_artifact
from fqt_deploy.compiler.verify import VerificationReport, VerificationRow

__all__ = [
    "CompileResult",
    "LayerTiming",
    "VerificationReport",
    "VerificationRow",
    "check_can_profile",
    "compile_model",
    "profile_artifact",
]
