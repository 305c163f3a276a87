"""A training graph as text, and text as a training graph: ``parse_graph(graph_text(graph))`` is ``graph``."""

from fqt_deploy.core.text.parse_graph import parse_graph
from fqt_deploy.core.text.print_graph import graph_text

__all__ = ["SUFFIX", "graph_text", "parse_graph"]

SUFFIX = ".fqtir"
"""The ending of a file that holds a graph as text."""
