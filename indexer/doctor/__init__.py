"""What is wrong with an installation: checks that look, and change nothing."""
