"""What made the files that ship with the embedded models.

Run by hand, once; no command of the program needs it.
"""
