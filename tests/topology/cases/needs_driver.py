"""A module of which a dependency is missing."""

import a_driver_that_is_not_installed  # noqa: F401
