"""Feedback: from one sentence to a tuned adapter, judged where it should apply and where it should not."""
