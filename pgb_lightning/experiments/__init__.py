"""What makes the figures in the documentation. Nothing outside this package imports it."""
