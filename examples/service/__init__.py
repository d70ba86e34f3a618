"""Orders into a database, as a service: settings, a sink that batches, an end in order."""
