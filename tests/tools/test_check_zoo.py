"""The zoo: its list holds what the tool builds, and a row of it is checked in a process of its own."""

from tools.check_zoo import chosen, in_process, parse, summary
from tools.zoo.build import TASKS, build, rows


def test_the_list_names_each_model_once_and_tasks_that_there_are():
    names = [row["model"] for row in rows()]
    assert len(set(names)) == len(names)
    assert {row["task"] for row in rows() if "task" in row} <= set(TASKS)
    assert all("class" in row for row in rows() if row["model"].startswith("hf/"))
    assert sum(row.get("part") == 1 for row in rows()) == 76


def test_models_are_chosen_by_part_by_name_and_for_training():
    assert {row["part"] for row in chosen(parse(["--part", "2"]))} == {2}
    assert [row["model"] for row in chosen(parse(["torch/l*"]))] == ["torch/lstm"]
    assert all(row["train"] for row in chosen(parse(["--train"])))


def test_a_batch_is_always_the_same():
    row = next(row for row in rows() if row["model"] == "torch/lstm")
    first, second = build(row), build(row)
    assert bool((first.batch[0] == second.batch[0]).all())
    assert first.module(first.batch[0]).shape == (4, 10)


def test_what_becomes_of_a_row():
    wrong = {"model": "timm/missing", "part": 2, "name": "no such model"}
    found = in_process(wrong, train=False)
    assert (found["model"], found["part"], found["state"]) == ("timm/missing", 2, "unbuilt")
    crashed, right = {"part": 2, "state": "crash"}, {"part": 2, "state": "ok"}
    assert summary([found, crashed, right]) == "part 2: 1 of 2 ok; {'unbuilt': 1, 'crash': 1, 'ok': 1}"
