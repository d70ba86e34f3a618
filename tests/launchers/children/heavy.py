"""A module to preload: remembers which process imported it."""

import os

PID = os.getpid()
print("heavy was imported")
