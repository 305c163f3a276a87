"""Products of packed bits: one rule, and one folder for each form that they take."""
