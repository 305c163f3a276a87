"""A preset stands for the settings that it lists; what is given beside it, and what is given later, counts first."""

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.preset import PRESETS, without_preset
from fqt_deploy.settings import merge_settings, options_of


def test_fast_is_what_the_options_are_without_a_preset():
    assert options_of({"preset": "fast"}) == options_of({})


def test_all_presets_choose_the_same_settings():
    assert {tuple(settings) for settings in PRESETS.values()} == {tuple(PRESETS["fast"])}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_settings_it_stands_for(name):
    assert options_of({"preset": name}) == options_of(PRESETS[name])


def test_a_setting_beside_a_preset_counts_first():
    settings = {"preset": "close", "weight_bits": 2, "lr": 0.1}
    assert without_preset(settings) == {**PRESETS["close"], "weight_bits": 2, "lr": 0.1}
    assert without_preset({"weight_bits": 2, "preset": "close"}) == {**PRESETS["close"], "weight_bits": 2}


def test_the_command_line_counts_before_the_model_file():
    assert merge_settings({"preset": "close"}, {"weight_bits": 1})["preset"] == "close"
    assert options_of(merge_settings({"preset": "close"}, {"preset": "fast"})) == options_of({})
    assert options_of(merge_settings({"weight_bits": 2, "seed": 3}, {"preset": "fast"})) == options_of({"seed": 3})


def test_there_are_no_other_presets():
    with pytest.raises(FqtError, match="preset is 'exact'; it must be one of fast, close") as caught:
        options_of({"preset": "exact"})
    assert caught.value.code == "FQT202"
