"""Class activation maps: where in an image the last feature maps hold the evidence for a class."""
