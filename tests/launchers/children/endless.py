"""A module whose import holds the GIL for ten minutes."""

import ctypes

ctypes.PyDLL(None).sleep(600)
