"""Training: constrained DPO on TRL, supervised context distillation, and the adapters they make."""
