"""Options: what is refused, and what is chosen where a person leaves it open."""

from pathlib import Path

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recipe": "psq"}, "recipe is 'psq'; it must be one of scq+agp, scq, psq-8, psq-1, none"),
        ({"grad_bits": 5}, "grad_bits is 5; it must be one of 1, 2, 3, 4, 8"),
        ({"agp": "all"}, "agp is 'all'; it must be one of nested, tokens, sampled, once, topk"),
        ({"projection": "on"}, "projection is 'on'; it must be one of auto, off"),
        ({"activation_grid": "levels"}, "activation_grid is 'levels'; it must be one of sign, fitted"),
        ({"activation_bits": 5}, "activation_bits is 5; it must be one of 1, 2, 3, 4, 8"),
        ({"bits": {"a": (1, 5)}}, "the bits of the activations of 'a' are 5; they must be one of 1, 2, 3, 4, 8"),
        ({"bits": {"a": (3, 1)}}, "the bits of the weights of 'a' are 3; they must be one of 1"),
        ({"bits": {"": (1, 1)}}, "the glob of --bits are ''"),
        (
            {"bits": {"a": 2}},
            "it must be a dict from globs to bits of weights and activations, a list of LayerBits, or on the command",
        ),
        ({"grid": "even"}, "grid is 'even'; it must be one of zero, minmax"),
        ({"remat": True}, "remat is True; it must be one of off, auto"),
        ({"verify": "all"}, "verify is 'all'; it must be one of structure, numerics, off"),
        ({"grad_bits": True}, "grad_bits is True"),
        ({"recipe": None}, "recipe is None"),
        (
            {"optimizer": "rprop"},
            "optimizer is 'rprop'; it must be one of adam, adamw, sgd, rmsprop, lion, adafactor, "
            "adadelta, adagrad, radam, nadam, or an instance",
        ),
        ({"seed": -1}, "seed is -1; it must be an integer in [0, 2^63)"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"include": 3}, "include is 3; it must be a string that is not empty, or a list of such"),
        ({"exclude": ["a.*", ""]}, "exclude is ['a.*', '']"),
        ({"dump_ir": 3}, "dump_ir is 3; it must be a path"),
        ({"tune": 1}, "tune is 1; it must be True or False"),
        ({"grad_bits": 1, "grid": "zero"}, "at least 2 bits"),
        ({"recipe": "psq-1", "grid": "zero"}, "at least 2 bits"),
        (
            {"batch_norm": "synchronized"},
            "batch_norm 'synchronized' is for several processes, and distributed is 'off'",
        ),
    ],
)
def test_impossible_values_are_refused(given, said):
    with pytest.raises(FqtError) as caught:
        CompileOptions(**given)
    assert caught.value.code == "FQT202"
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("given", "bits", "grid"),
    [
        ({}, 3, "zero"),
        ({"agp": "nested"}, 3, "zero"),
        ({"agp": "tokens"}, 4, "zero"),
        ({"agp": "sampled"}, 4, "zero"),
        ({"recipe": "scq"}, 4, "zero"),
        ({"grad_bits": 1}, 1, "minmax"),
        ({"grad_bits": 2}, 2, "zero"),
        ({"grad_bits": 8, "grid": "minmax"}, 8, "minmax"),
        ({"recipe": "psq-8", "grad_bits": 2}, 8, "zero"),
        ({"recipe": "psq-1"}, 1, "minmax"),
        ({"recipe": "scq", "grad_bits": 2}, 2, "zero"),
    ],
)
def test_width_and_grid_follow_from_the_recipe(given, bits, grid):
    options = CompileOptions(**given)
    assert (options.gradient_bits, options.resolved_grid) == (bits, grid)
    assert options.numerics() == {
        "recipe": options.recipe, "agp": options.agp, "grad_bits": bits, "grid": grid, "projection": "auto",
        "include": [], "exclude": [],
    }  # fmt: skip


def test_values_are_held_in_one_form():
    options = CompileOptions(include="a.*", exclude=["b", "c"], dump_ir="ir", optimizer="sgd")
    assert (options.include, options.exclude, options.dump_ir) == (("a.*",), ("b", "c"), Path("ir"))
    assert options.optimizer == SGD()


def test_without_quantization_any_grid_is_allowed():
    assert CompileOptions(recipe="none", grad_bits=1, grid="zero").resolved_grid == "zero"


def test_what_changes_no_number_is_not_among_the_numerics():
    changed = CompileOptions(remat="auto", verify="off", seed=3, target="rpi5", time_passes=True, print_after=("x",))
    assert changed.numerics() == CompileOptions().numerics()
