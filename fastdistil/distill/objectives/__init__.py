"""What a student is taught: a file an objective."""
