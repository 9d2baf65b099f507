"""pgb-lightning."""
