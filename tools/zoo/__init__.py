"""Models that people fine-tune, built from configurations: nothing is downloaded, weights are random."""
