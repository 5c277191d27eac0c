"""The testbed as an lm-eval task."""
