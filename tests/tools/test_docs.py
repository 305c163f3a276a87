"""The documents name everything that the code defines."""

import re
from pathlib import Path

import pytest

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.core.diagnostics import CODES
from fqt_deploy.ops.spec import OPS
from fqt_deploy.passes.pipelines import all_passes

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text(name):
    return (ROOT / "docs" / name).read_text()


def test_every_op_is_in_the_ir_document():
    missing = [name for name in OPS if f"`{name}`" not in text("ir.md")]
    assert not missing


def test_every_pass_is_in_the_architecture_document():
    missing = [p.name for p in all_passes() if f"`{p.name}`" not in text("architecture.md")]
    assert not missing


def test_every_error_code_is_in_its_document_and_no_other():
    assert sorted(set(re.findall(r"FQT\d{3}", text("errors.md")))) == sorted(CODES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_point_to_files(document):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link
