import json
from pathlib import Path

import pytest

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.__main__ import main
from tools.accuracy.job import append_record
from tools.accuracy.report_command import filled


@pytest.fixture
def document(tmp_path, record):
    for row in ("none", "once-4"):
        for seed in (0, 100):
            append_record(tmp_path / "runs.jsonl", record(row=row, seed=seed))
    lines = [
        {"kind": "step", "point": "start", "row": "once-4", "layer": layer, "variance": 2.0, "bias": 0.0,
         "unbiasedness": 1.0, "cosine": 0.5}
        for layer in ("a.weight", "b.weight", "(all)")
    ]  # fmt: skip
    (tmp_path / "theory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for row, steps in (("torch-fp32", 20), ("none-a4", 20), ("none-a4", 40)):
        append_record(tmp_path / "full.jsonl", record(row=row, steps=steps, curve=[(10, 0.5), (steps, 0.6)]))
    races = [{"network": network, "step_s": {"torch-fp32": 0.2, "torch-bf16": 0.1, "none-a4": t}}
             for network, t in (("digits", 9.0), ("vgg6", 9.0), ("digits", 0.01))]  # fmt: skip
    (tmp_path / "race.jsonl").write_text("".join(json.dumps(line) + "\n" for line in races))
    path = tmp_path / "doc.md"
    path.write_text(
        "# Title\n\n<!-- accuracy results=runs.jsonl phase=transfer -->\nold\n<!-- end -->\n\ntext\n\n"
        "<!-- noise theory=theory.jsonl point=start -->\n<!-- end -->\n"
        "<!-- frontier results=full.jsonl network=digits race=race.jsonl -->\n<!-- end -->\n"
        "<!-- frontier-plot results=full.jsonl network=digits race=race.jsonl file=plots/frontier.svg -->\n"
        "<!-- end -->\n"
        "<!-- curves results=runs.jsonl file=plots/curves.svg -->\n<!-- end -->\n"
        "<!-- learning-rates results=runs.jsonl file=plots/rates.svg -->\n<!-- end -->\n"
        "<!-- noise-by-layer theory=theory.jsonl kind=step file=plots/noise.svg -->\n<!-- end -->\n"
        "<!-- sensitivity results=runs.jsonl theory=theory.jsonl file=plots/sensitivity.svg -->\n<!-- end -->\n"
    )
    return path


def test_blocks_are_replaced_and_the_text_stays(document):
    assert main(["report", str(document)]) == 0
    text = document.read_text()
    assert "old" not in text
    assert "text" in text
    assert "| once-4 | adam | 0.001 | 0 | 50.0 | 60.0 | +0.0 |  |" in text
    assert "| start | `once-4` | 2 | 0 | 1 | 0.5 |" in text
    assert "| torch-fp32 | 20 | 0 | 60.0 | 60.0 |  | 100.0 | 2.0 |  |" in text  # the faster type counts
    assert "| none-a4 | 40 | 0 | 60.0 | 60.0 | +0.0 | 10.0 | 0.4 | 5.0 times as long |" in text  # the last race counts
    assert "![curves](plots/curves.svg)" in text
    plots = {path.name: path.read_bytes() for path in (document.parent / "plots").iterdir()}
    assert set(plots) == {"curves.svg", "frontier.svg", "rates.svg", "noise.svg", "sensitivity.svg"}
    assert b"once-4" in plots["sensitivity.svg"]
    assert main(["report", str(document)]) == 0
    assert document.read_text() == text
    assert {path.name: path.read_bytes() for path in (document.parent / "plots").iterdir()} == plots


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("accuracy results=none.jsonl", "no results"),
        ("accuracy phase=transfer", "names no results"),
        ("acuracy results=runs.jsonl", "no such table"),
        ("noise theory=theory.jsonl point=end", "no results"),
    ],
)
def test_a_block_that_cannot_be_filled_is_an_error(document, block, message, capsys):
    before = f"<!-- {block} -->\n<!-- end -->\n"
    document.write_text(before)
    assert main(["report", str(document)]) == 1
    assert message in capsys.readouterr().err
    assert document.read_text() == before


def test_the_project_s_own_document_says_what_its_results_say():
    document = Path(__file__).parents[3] / "docs" / "accuracy.md"
    assert filled(document, plots=False) == document.read_text()


def test_settings_are_not_mixed_in_one_table(document, record):
    append_record(document.parent / "runs.jsonl", record(steps=99))
    with pytest.raises(FqtError, match="mixes settings"):
        filled(document, plots=False)
