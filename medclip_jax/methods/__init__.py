"""Published systems: one file each, which reads like the paper's method section."""
