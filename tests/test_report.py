"""Tables say what they were given, also where it looks like markup."""

from rich.console import Console

from fqt_deploy.core.manifest import LayerDecision
from fqt_deploy.report import decision_table


def test_a_table_of_layers_keeps_brackets():
    layers = [LayerDecision("blocks[bold].w", "linear", "fp32", "its weight is a matrix [in, out] in [red]a view")]
    console = Console(width=120)
    with console.capture() as captured:
        console.print(decision_table(layers))
    assert "blocks[bold].w" in captured.get()
    assert "its weight is a matrix [in, out] in [red]a view" in captured.get()
