import pytest

from fqt_deploy.profiling.profile_artifact import profile_artifact


@pytest.fixture(scope="session")
def profile(digits_artifact):
    """The profile of the digits step, on noise."""
    return profile_artifact(digits_artifact, steps=3)
