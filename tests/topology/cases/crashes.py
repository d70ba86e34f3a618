"""A module whose import ends the process, as a broken C extension does."""

import ctypes

print("about to crash", flush=True)
ctypes.string_at(0)
