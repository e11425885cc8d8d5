"""The DINO pretraining loop and its parts."""
