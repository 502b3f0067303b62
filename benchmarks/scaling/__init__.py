"""How the time of DistilBERT-base forwards grows: tokens, length, batch, threads."""
