"""The compiler: from a model to an artifact on disk, by capture, passes, code generation, verification and profile.

Import from the modules themselves: what only checks a model imports no code generation.
"""
