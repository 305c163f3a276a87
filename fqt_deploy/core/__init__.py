"""Values shared by every stage: graph, diagnostics, manifest, capabilities."""
