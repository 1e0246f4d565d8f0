"""The model: from an image's canvas to its blended feature z and its binary code.

A pretrained image tower gives two intermediate feature maps, DaRF fuses them into z, and a hash
head computes the code.
"""
