"""What is said of a plan."""

import json

from fqt_deploy.planning.plan import Budget, GradientBits
from fqt_deploy.planning.plan_text import SHOWN, plan_json, plan_text, shown_points, verdict
from tests.planning.plans import a_plan


def test_the_text(golden):
    golden("plan.txt", plan_text(a_plan()) + "\n")


def test_some_points_of_the_frontier_are_shown_with_both_steps():
    plan = a_plan()
    assert len(plan.frontier) > SHOWN
    shown = shown_points(plan)
    assert len(shown) <= SHOWN + 2
    assert {plan.chosen, plan.asked, plan.frontier[0], plan.frontier[-1]} <= {*shown}
    assert [point.seconds for point in shown] == sorted(point.seconds for point in shown)


def test_the_verdict_doubts_and_admits():
    said = "\n".join(verdict(a_plan(other_cores=1.5)))
    assert said.startswith("warning: other processes used 1.5 cores meanwhile")
    assert "no plan was found that keeps within 1 of the time" in "\n".join(verdict(a_plan(budget=Budget(1.0))))
    assert "no plan was found" not in "\n".join(verdict(a_plan(budget=Budget(1.07))))
    same = a_plan()
    assert "the step asked for is the best one" in "\n".join(verdict(a_plan(chosen=same.asked)))


def test_the_verdict_says_where_nothing_is_quantized():
    assert "its gradients are not quantized" in "\n".join(verdict(a_plan((None, None, None))))
    assert "not quantized" not in "\n".join(verdict(a_plan((None, None, 1))))


def test_json():
    plan = a_plan((8, None, 1))
    found = json.loads(plan_json(plan))
    assert found["chosen"]["choices"] == ["8 bits", "fp32", "1 bit"]
    assert found["layers"][1]["seconds"]["fp32"] == plan.layers[1].seconds[None]
    assert len(found["frontier"]) == len(plan.frontier)
    assert found["measured_s"] == plan.measured


def test_gradients_are_a_table_of_their_own():
    gradients = (GradientBits(3, 0.02, 0.9, {"a": 0.9}), GradientBits(8, 0.025, 2.0, {"a": 2.0}))
    plan = a_plan(gradients=gradients, gradient_bits=3)
    table = plan_text(plan).partition("gradients of all layers, in the chosen step\n")[2].splitlines()[:3]
    assert [line.split() for line in table] == [
        ["bits", "of", "the", "time", "noise"],
        ["3", "bits", "1.00", "0.900", "asked", "for"],
        ["8", "bits", "1.25", "2.000"],
    ]
    assert json.loads(plan_json(plan))["gradients"][1]["layers"] == {"a": 2.0}
    assert "gradients of all layers" not in plan_text(a_plan())
