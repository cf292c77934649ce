"""Decision models: a Decision Transformer around any causal mixer, and behaviour cloning."""
