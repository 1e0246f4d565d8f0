"""The network: taps of a tower, fused, hashed."""
