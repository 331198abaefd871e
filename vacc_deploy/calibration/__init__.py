"""Documents to rows of token ids: written as a model does, split, sampled."""
