"""The arithmetic that training and serving spend their time in, each fast path beside the plain version it equals."""
