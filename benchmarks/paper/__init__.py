"""DistilBERT's paper measured again: what distillation gives, what kernels give, what both give."""
