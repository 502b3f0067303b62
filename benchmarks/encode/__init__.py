"""Text to vectors, tokenisation included: fastdistil beside what people use today."""
