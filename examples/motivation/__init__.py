"""One program four times: receive lines, send them on in capitals."""
