"""The planner: which layers run in 1 bit, and with how many bits, by what was measured of each."""
