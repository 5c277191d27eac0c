"""Baselines: other uses of the same reference set, scored on the same items as the rewirings.

One file each; a factory `f(backend, *, option=default, ...) -> Arm` whose keyword options are its config
(`arm_options.NAME.option`), and a line in `rewiring.arms.BASELINES`.
"""
