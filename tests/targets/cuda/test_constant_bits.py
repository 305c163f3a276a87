"""Constants whose bits are read as another type."""

from tvm import tirx

from fqt_deploy.ops.lib.float32 import number, opaque
from fqt_deploy.targets.cuda.constant_bits import with_constant_bits


def _folded(expression):
    return with_constant_bits(tirx.PrimFunc([], tirx.Evaluate(expression))).body.value


def test_a_constant_that_is_hidden_from_the_simplifier_is_itself_again():
    assert _folded(number(0.0, "float32")).value == 0.0
    assert _folded(opaque(tirx.const(1.5, "float32"))).value == 1.5


def test_bits_of_a_float_are_an_integer():
    assert _folded(tirx.reinterpret("int32", tirx.const(-2.0, "float32"))).value == -(2**30)


def test_a_nan_keeps_its_bits():
    marked = _folded(tirx.reinterpret("float32", tirx.const(0x7FC00005, "int32")))
    assert marked.args[0].value == "__int_as_float"
    assert marked.args[1].value == 0x7FC00005


def test_what_is_computed_stays():
    x = tirx.Var("x", "float32")
    read = _folded(tirx.reinterpret("int32", x))
    assert read.args[0].same_as(x)
