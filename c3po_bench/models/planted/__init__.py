"""The planted testbed: a small OLMoE whose best pathways are known, because we put them there.

Eight domains own two of 16 experts in each of the last three layers, and have each its own code from word to
word. A question names a person; whose code the person uses is what the router must find out. It knows the
common names and guesses at the rare ones. Nothing here but `make`, `build` and `shape` needs torch.
"""
