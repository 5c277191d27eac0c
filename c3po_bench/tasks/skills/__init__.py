"""Our own task group: rule-like skills in pairs that share their content, which `model=specialists` was trained on."""
