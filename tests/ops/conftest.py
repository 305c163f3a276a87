import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_as_in_a_step(as_in_a_step):
    """All kernels of these tests are."""
