"""Laws of the memory plan: nothing overlaps, nothing is wasted that need not be."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fqt_deploy.codegen.memory_plan import Lifetime, plan_memory

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
def test_values_alive_together_never_share_a_block(lifetimes):
    plan = plan_memory(lifetimes)
    for i, a in enumerate(lifetimes):
        assert plan.blocks[plan.block_of[i]] >= a.size
        for j, b in enumerate(lifetimes[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert plan.block_of[i] != plan.block_of[j]


@settings(deadline=None, derandomize=True)
@given(LIFETIMES)
def test_between_the_peak_and_no_sharing(lifetimes):
    plan = plan_memory(lifetimes)
    assert plan.peak <= plan.size <= sum(value.size for value in lifetimes)
    alive = [sum(v.size for v in lifetimes if v.first <= step <= v.last) for step in range(80)]
    assert plan.peak == max(alive)


def test_a_chain_needs_two_blocks():
    chain = [Lifetime(64, step, step + 1) for step in range(10)]
    assert sorted(plan_memory(chain).blocks) == [64, 64]


def test_a_value_takes_the_smallest_free_block():
    plan = plan_memory([Lifetime(100, 0, 0), Lifetime(50, 0, 0), Lifetime(40, 1, 1)])
    assert plan.blocks[plan.block_of[2]] == 50
