"""Files that are no longer as they were written."""
