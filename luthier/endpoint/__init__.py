"""OpenAI-compatible endpoints: their settings, the client, and the replies that are kept."""
