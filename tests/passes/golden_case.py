"""Cases of a pass as text: a graph before, the passes that run, and the graph after.

A file ``golden/NAME.txt`` holds the cases of pass NAME, one after the other::

    ==== what the case shows
    passes: insert-scq{bits=3}
    graph stage=quantized batch=2
    ...
    ---- after
    graph stage=quantized batch=2
    ...

The last part is headed ``---- unchanged``, with nothing below, where the passes must leave the graph as it is, and
``---- error`` where they must refuse it. ``pytest --update-golden`` writes that part anew, and nothing else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.text import graph_text, parse_graph
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pass_names import parse_passes

FOLDER = Path(__file__).parent / "golden"

_CASE = re.compile(
    r"^==== (?P<title>.*)\npasses: (?P<passes>.*)\n(?P<before>graph [^-]*(?:-(?!---)[^-]*)*)"
    r"^---- (?P<kind>after|unchanged|error)\n(?P<after>(?:(?!^==== ).*\n)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class GoldenCase:
    title: str
    passes: str
    before: str
    kind: str
    after: str

    def graph(self):
        return parse_graph(self.before)

    def run(self):
        """The graph that the passes make."""
        return Pipeline(parse_passes(self.passes), ALWAYS).run(self.graph())

    def result(self):
        """What belongs below the last heading now."""
        if self.kind == "error":
            graph = self.graph()
            try:
                Pipeline(parse_passes(self.passes), ALWAYS).run(graph)
            except FqtError as error:
                return error.render() + "\n"
            return "there was no error\n"
        text = graph_text(self.run())
        stage = re.compile(r"stage=\w+")  # a pass may move a graph to another stage and change nothing else
        same = stage.sub("", text) == stage.sub("", graph_text(self.graph()))
        return "" if self.kind == "unchanged" and same else text

    def text(self, after):
        return f"==== {self.title}\npasses: {self.passes}\n{self.before}---- {self.kind}\n{after}"


def read_cases(name):
    text = (FOLDER / f"{name}.txt").read_text()
    cases = [GoldenCase(**match.groupdict()) for match in _CASE.finditer(text)]
    assert "".join(case.text(case.after) for case in cases) == text, f"{name}.txt holds more than cases"
    return cases
