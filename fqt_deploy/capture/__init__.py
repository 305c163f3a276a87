"""From a user's model file to a captured training graph."""
