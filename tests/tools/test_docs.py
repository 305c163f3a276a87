"""The documents name everything that the code defines."""

import dataclasses
import re
from pathlib import Path

import pytest

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.core.diagnostics import CODES
from fqt_deploy.core.manifest import SCHEMA_VERSION, Manifest
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.passes.pipelines import all_passes
from tools import operator_tables
from tools.option_tables import DOCS, TABLES, rewritten

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("command", TABLES)
def test_the_option_tables_follow_from_the_declarations(command):
    document = (DOCS / TABLES[command][0]).read_text()
    assert document.count(f"options of {command}") == 2
    assert rewritten(document, command) == document, "python -m tools.option_tables writes them"


def text(name):
    return (ROOT / "docs" / name).read_text()


def test_every_op_is_in_the_ir_document():
    missing = [name for name in FQT_OPS if f"`{name}`" not in text("ir.md")]
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


def test_every_field_of_the_manifest_is_in_the_bundle_document():
    fields = [field.name for field in dataclasses.fields(Manifest)]
    assert [name for name in fields if f"| `{name}` |" not in text("bundle.md")] == []
    assert f"`schema_version` is {SCHEMA_VERSION};" in text("bundle.md")


def test_every_function_of_the_c_header_is_in_its_document():
    header = (ROOT / "fqt_deploy" / "c_api" / "include" / "fqt_runtime.h").read_text()
    functions = re.findall(r"^FQT_API .*?(fqt_\w+)\(", header, re.MULTILINE)
    assert len(functions) > 15
    assert [name for name in functions if f"`{name}`" not in text("c_api.md")] == []


def test_the_list_of_operators_is_that_of_the_definitions():
    assert text("operators.md") == operator_tables.document(), "run python -m tools.operator_tables"
