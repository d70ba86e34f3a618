"""What runs nodes: joins the pure core with a transport, an event loop and the user's code."""
