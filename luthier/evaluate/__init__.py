"""Did tuning help? Metrics, their intervals and tests, the verdict, and the pages that show it."""
