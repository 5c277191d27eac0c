"""Training: the constrained DPO trainer on TRL, supervised context distillation, and the adapters they make."""
