"""Programs for developers that train, time and check the examples."""
