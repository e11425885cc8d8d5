"""Image + random numbers → multi-crop views."""
