"""The models that need no hub: SmolLM2, the Mixture of Experts that is split from it, and the planted testbed."""
