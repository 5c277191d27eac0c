"""What a cluster needs beyond Hydra's own launchers: frozen sweeps, resubmission, preemption, shards."""
