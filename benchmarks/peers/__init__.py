"""One short file for each contestant. Run as `python -m benchmarks.peers.NAME JOB_FILE OUT_FOLDER`."""
