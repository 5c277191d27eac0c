"""Our own task group: rules in pairs that share their content, which `model=specialists` was trained on."""
