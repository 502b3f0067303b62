"""Programs to read and run: what one trains with transformers and serves with fastdistil."""
