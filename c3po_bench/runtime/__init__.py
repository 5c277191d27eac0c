"""Process matters: console, locks, ranks, signals, memory and threads."""
