"""Sources of training data: files and folders that are read batch by batch, in any order."""
