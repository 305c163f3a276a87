"""Laws of the memory plan: nothing overlaps, nothing is wasted that need not be."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fqt_deploy.codegen.memory_plan import ALIGNMENT, Lifetime, plan_memory

LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(1, 1000),
        st.integers(0, 50),
        st.integers(0, 20),
    ),
    max_size=40,
)


@settings(deadline=None, derandomize=True)
@given(LIFETIMES)
def test_values_alive_together_share_no_byte(lifetimes):
    plan = plan_memory(lifetimes)
    for i, a in enumerate(lifetimes):
        assert plan.offsets[i] % ALIGNMENT == 0
        assert plan.offsets[i] + a.size <= plan.size
        for j, b in enumerate(lifetimes[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert plan.offsets[i] + a.size <= plan.offsets[j] or plan.offsets[j] + b.size <= plan.offsets[i]


@settings(deadline=None, derandomize=True)
@given(LIFETIMES)
def test_between_the_peak_and_no_sharing(lifetimes):
    plan = plan_memory(lifetimes)
    assert plan.peak <= plan.size <= sum(-(-value.size // ALIGNMENT) * ALIGNMENT for value in lifetimes)
    alive = [sum(v.size for v in lifetimes if v.first <= step <= v.last) for step in range(80)]
    assert plan.peak == max(alive)


def test_a_chain_needs_the_bytes_of_two():
    chain = [Lifetime(ALIGNMENT, step, step + 1) for step in range(10)]
    assert plan_memory(chain).size == 2 * ALIGNMENT


def test_many_values_take_the_place_of_a_large_one():
    small = [Lifetime(ALIGNMENT, 1, 2 + i) for i in range(4)]
    plan = plan_memory([Lifetime(4 * ALIGNMENT, 0, 0), *small])
    assert plan.size == plan.peak == 4 * ALIGNMENT


def test_a_value_takes_the_smallest_gap():
    # two large values bound gaps of two units and of one, in which the last value may lie
    values = [
        Lifetime(5 * ALIGNMENT, 0, 3),
        Lifetime(4 * ALIGNMENT, 0, 0),
        Lifetime(3 * ALIGNMENT, 0, 3),
        Lifetime(2 * ALIGNMENT, 1, 3),
        Lifetime(ALIGNMENT, 1, 3),
    ]
    plan = plan_memory(values)
    assert plan.offsets == tuple(n * ALIGNMENT for n in (0, 5, 9, 5, 7))


def test_nothing_takes_no_memory():
    assert plan_memory([]).size == 0
