"""DistilBERT-base forwards: fastdistil beside the engines people use."""
