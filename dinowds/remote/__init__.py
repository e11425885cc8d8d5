"""Files behind a URL."""
