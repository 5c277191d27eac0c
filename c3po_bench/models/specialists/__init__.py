"""What made the weights of `model=specialists`, and what measures them. No command of the program needs it."""
