"""What made the weights of `model=specialists`, and what measures them. The program does not need it."""
