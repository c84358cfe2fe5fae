"""Personal data and secrets: found by presidio and forms of our own, masked, replaced by stand-ins, or dropped."""
