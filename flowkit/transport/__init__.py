"""Moving messages between replicas: over ZeroMQ, or inside one process for tests."""
