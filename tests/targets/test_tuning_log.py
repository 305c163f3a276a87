"""Logs of measured tiles: what is written is read, what is broken is said, what is not measured is left alone."""

import dataclasses
import json

import pytest
import torch

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.user_cache import default_log
from fqt_deploy.targets.cpu.products.bit_product_rule import FORMS
from fqt_deploy.targets.cpu.target import TUNED_TILES
from fqt_deploy.targets.tuning_log import TunedTile, append_tiles, kernel_signature, read_tiles, tiles_of
from tests.targets.op_kernel import op_function

TILE = TunedTile("znver3", "byte-shuffle", "binary_conv2d int32[1]", (4, 8), 2, 10.5, 12.0)


def test_what_is_appended_is_read(tmp_path):
    log = tmp_path / "folder" / "log.jsonl"
    assert read_tiles(log) == []
    append_tiles(log, [TILE])
    append_tiles(log, [dataclasses.replace(TILE, tile=(2, 2))])
    assert [tile.tile for tile in read_tiles(log)] == [(4, 8), (2, 2)]
    assert tiles_of("znver3", read_tiles(log)) == {(TILE.form, TILE.kernel): (2, 2)}, "the last line counts"
    assert tiles_of("znver4", read_tiles(log)) == {}


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "{}", json.dumps({**dataclasses.asdict(TILE), "tile": [0]}),
     json.dumps({**dataclasses.asdict(TILE), "tile": ["a"]}), json.dumps({**dataclasses.asdict(TILE), "more": 1})],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    log = tmp_path / "log.jsonl"
    append_tiles(log, [TILE])
    log.write_text(log.read_text() + line + "\n")
    with pytest.raises(FqtError, match=r"log\.jsonl:2 is not a line of a tuning log") as error:
        read_tiles(log)
    assert error.value.code == "FQT207"


def test_lines_that_name_a_class_of_rule_are_left_out(tmp_path):
    """Logs of users from before forms had names are read without an error; what they measured is measured again."""
    old = {key: value for key, value in dataclasses.asdict(TILE).items() if key != "form"}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({**old, "rule": "NibbleBinaryConv2dRule"}) + "\n")
    append_tiles(log, [TILE])
    assert read_tiles(log) == [TILE]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FqtError, match="cannot write the tuning log"):
        append_tiles(tmp_path / "file" / "log.jsonl", [TILE])


def test_the_users_log_is_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_log().parent.parent == tmp_path


def test_the_log_that_ships_is_whole():
    tiles = read_tiles(TUNED_TILES)
    assert tiles
    assert all(tile.microseconds <= tile.default_microseconds for tile in tiles)
    forms = {(op, form.name) for op, forms in FORMS.items() for form in forms}
    assert {(tile.kernel.partition(" ")[0], tile.form) for tile in tiles} <= forms


def test_a_kernel_is_signed_by_its_arguments_names():
    signs, weight = torch.zeros(2, 4, 4, 2, dtype=torch.int32), torch.zeros(4, 18, 16, dtype=torch.int32)
    function = op_function("binary_conv2d", (signs, weight, 64, 64, [3, 3], [1, 1], [1, 1]))
    assert kernel_signature(function) == (
        "binary_conv2d int32[2,4,4,2] int32[4,18,16] int16[2,4,4,64]"
        " in_channels=64 out_channels=64 kernel=[3,3] stride=[1,1] padding=[1,1]"
    )
