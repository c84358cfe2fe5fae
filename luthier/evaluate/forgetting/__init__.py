"""What the model could do before tuning and cannot do now: probes put to both."""
