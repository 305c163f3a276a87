"""Programs for developers: train and time the examples."""
