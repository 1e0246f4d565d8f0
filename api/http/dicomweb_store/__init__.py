"""Takes instances by STOW-RS (PS3.18, 10.5) into the inbox in which C-STORE puts them."""
