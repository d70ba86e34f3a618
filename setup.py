"""Everything is in setup.cfg; this file lets pip find setuptools."""

from setuptools import setup

setup()
