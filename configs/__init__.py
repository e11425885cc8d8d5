"""Complete, commented configurations."""
