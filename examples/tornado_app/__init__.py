"""A web service around a stream: events by POST, results by WebSocket, health as JSON."""
