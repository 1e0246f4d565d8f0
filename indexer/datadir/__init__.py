"""The data folder: its layout, free space, write lock, and which index in it is in force."""
