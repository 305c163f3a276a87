"""The accuracy study: pretrain, fine-tune and train from scratch with compiled steps, one recipe beside the other.

``python -m tools.accuracy --help`` lists its commands, ``docs/accuracy.md`` says what was found with it.
"""
