"""What passes did to layers, from the texts of a dump."""

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.profiling.pass_changes import read_passes


def test_changes_are_told_by_layer(tmp_path):
    (tmp_path / "00-captured.fqtir").write_text("%1 = conv(%x) {layer=a}\n%2 = relu(%1) {layer=b}\n")
    (tmp_path / "01-rename.fqtir").write_text("%7 = conv(%x) {layer=a}\n%8 = relu(%7) {layer=b}\n")
    (tmp_path / "02-lower.fqtir").write_text("%7 = binary(%x) {layer=a seq=3}\n%8 = relu(%7) {layer=b}\n")
    assert read_passes(tmp_path) == {"a": (("lower", "%7 = conv(%x) {layer=a}", "%7 = binary(%x) {layer=a seq=3}"),)}


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(FqtError, match="FQT501"):
        read_passes(tmp_path)
