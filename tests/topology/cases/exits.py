"""A module that ends the interpreter without ceremony."""

import os

print("good bye", flush=True)
os._exit(0)
