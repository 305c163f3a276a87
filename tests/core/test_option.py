"""Options as declarations: what follows from a field, and which values its kind takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import CHECKS, LAYERS, SECTIONS, by_section, check_options, option, options_in
from fqt_deploy.core.option import recorded_options as recorded
from fqt_deploy.core.option_kinds import kind_of


@dataclass(frozen=True, kw_only=True)
class Oven:
    mode: Literal["bake", "grill"] = option("bake", "Bake (bake) or grill (grill).", section=LAYERS, in_manifest=True)
    degrees: float | None = option(
        None,
        "Heat.",
        section=LAYERS,
        minimum=0,
        below=300,
        in_manifest=True,
        recorded_as="heat",
        default_text="by mode",
    )
    shelves: tuple[int, ...] = option((), "Where.", section=CHECKS, minimum=1, in_manifest=True)
    light: bool = option(False, "Look inside.", section=CHECKS)
    serial: int = 7

    def __post_init__(self):
        check_options(self)

    @property
    def heat(self):
        return self.degrees if self.degrees is not None else {"bake": 180, "grill": 240}[self.mode]


@dataclass(frozen=True, kw_only=True)
class SmallOven(Oven):
    mode: Literal["bake", "grill"] = "grill"


def test_a_field_is_an_option_where_it_is_declared_one():
    declared = options_in(Oven)
    assert list(declared) == ["mode", "degrees", "shelves", "light"]
    assert declared["mode"].flags == ("--mode",)
    assert declared["mode"].metavar == "[bake|grill]"
    assert [o.default_text for o in declared.values()] == ["bake", "by mode", "", ""]
    assert by_section(declared.values()) == {
        LAYERS: [declared["mode"], declared["degrees"]], CHECKS: [declared["shelves"], declared["light"]]
    }  # fmt: skip
    assert [*by_section(declared.values())] == [heading for heading in SECTIONS if heading in (LAYERS, CHECKS)]


def test_another_default_leaves_the_declaration():
    declared = options_in(SmallOven)["mode"]
    assert (declared.default_text, declared.told.text) == ("grill", "Bake (bake) or grill (grill).")
    assert SmallOven().heat == 240


def test_what_changes_numbers_is_recorded():
    assert recorded(Oven(shelves=[1, 2])) == {"mode": "bake", "degrees": 180, "shelves": [1, 2]}
    assert recorded(Oven(light=True)) == recorded(Oven())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "fry"}, "mode is 'fry'; it must be one of bake, grill"),
        ({"mode": None}, "mode is None"),
        ({"degrees": 300}, "degrees is 300; it must be a number in [0, 300)"),
        ({"degrees": float("nan")}, "degrees is nan"),
        ({"degrees": True}, "degrees is True"),
        ({"shelves": 0}, "shelves is 0; it must be an integer of at least 1, or a list of such"),
        ({"shelves": [1, 1.5]}, "shelves is [1, 1.5]"),
        ({"light": "on"}, "light is 'on'; it must be True or False"),
    ],
)
def test_what_a_kind_does_not_take_is_refused(given, said):
    with pytest.raises(FqtError) as caught:
        Oven(**given)
    assert caught.value.code == "FQT202"
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Literal[1, 2], "2", 2),
        (Literal["1", "2"], "2", "2"),
        (int, "12", 12),
        (float, "1e-3", 1e-3),
        (float | None, "3", 3.0),
        (str, "3", "3"),
        (Path | None, "a/b", Path("a/b")),
        (tuple[float, float], "0.9, 0.99", (0.9, 0.99)),
    ],
)
def test_text_of_the_command_line_is_read(annotation, text, value):
    kind = kind_of(annotation)
    found = kind.accept(kind.read(text))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("annotation", "text"), [(Literal[1, 2], "3"), (int, "1.5"), (float, "fast"), (float, "inf"), (str, "")]
)
def test_other_text_is_no_value(annotation, text):
    kind = kind_of(annotation)
    with pytest.raises(ValueError, match=r"^$"):
        kind.accept(kind.read(text))


def test_a_type_without_a_kind_is_an_error_of_the_declaration():
    with pytest.raises(TypeError, match="no kind of option value stands for"):
        kind_of(dict[str, int])
